"""A real Prometheus beside real servers, and promtool over what is shipped for it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal

import pytest
from docs.test_docs import blocks
from support.client import ask, eventually, many, together
from support.daemons import Prometheus, promtool

ROOT = pathlib.Path(__file__).parents[2]
ALERTS = ROOT / "docs" / "alerts.yml"
DASHBOARD = ROOT / "docs" / "grafana.json"

# What Grafana puts there.
FILLED_IN = {"$__rate_interval": "5s", "$job": ".*", "$instance": ".*"}


def expressions():
    """Return every expression of the dashboard, by its panel."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in FILLED_IN.items():
                text = text.replace(name, value)
            yield panel["title"], text


def test_promtool_finds_no_fault_with_the_configuration_that_the_docs_show(tmp_path):
    [(_, shown)] = blocks(ROOT / "docs" / "metrics.rst", "yaml")
    path = tmp_path / "prometheus.yml"
    path.write_text(shown)
    promtool("check", "config", path)


def test_promtool_finds_no_fault_with_the_rules():
    promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)


def test_the_rules_say_what_they_should_of_given_series():
    promtool("test", "rules", ROOT / "tests" / "unit" / "metrics" / "alerts_test.yml")


def test_promtool_finds_no_fault_with_what_a_port_says(gunicorn):
    served = gunicorn("-w", "2")
    ask(served.port)
    promtool("check", "metrics", given=ask(served.check, path="/metrics").body)


def test_a_prometheus_sees_all_workers_and_no_counter_goes_down_when_one_is_killed(
    gunicorn, started, tmp_path
):
    served = gunicorn("-w", "3", "--threads", "8")
    prometheus = started(Prometheus, tmp_path, served.check, rules=[ALERTS])
    sent = 0
    for _ in range(3):
        answers, threads = many(20, served.port)
        together(threads)
        sent += sum(answer.status == 200 for answer in answers)
        eventually(lambda sent=sent: prometheus.value("busyguard_served_total") == sent)
        victim = served.load["processes"][0]["pid"]
        os.kill(victim, signal.SIGKILL)
        eventually(
            lambda victim=victim: (
                [row["state"] for row in served.load["processes"] if row["pid"] != victim]
                == ["ready"] * 3
            )
        )
    assert sent == 60
    for counter in ("served_total", "admitted_total", "service_time_seconds_count"):
        assert prometheus.value(f"resets(busyguard_{counter}[5m])") == 0
        assert prometheus.value(f"busyguard_{counter}") == sent
    eventually(lambda: prometheus.value("busyguard_capacity") == 24)
    assert sum(prometheus.values("busyguard_process_capacity").values()) == 24
    assert prometheus.value('busyguard_processes{state="ready"}') == 3
    asked = ask(served.check, path="/readyz")
    assert asked.status == 200
    checks = 'sum(busyguard_checks_total{policy="damped",answer="free",status="200"})'
    eventually(lambda: prometheus.value(checks) == 1)

    # What is shipped fits: every rule is loaded, and every expression of the dashboard understood.
    [group] = prometheus.ask("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    empty = {title for title, text in expressions() if not prometheus.values(text)}
    assert empty <= {"Requests a second", "Transitions a minute"}, empty


def test_a_scrape_in_openmetrics_is_understood(gunicorn, started, tmp_path):
    """Prometheus asks for it by itself; a fault in it would be a scrape that failed."""
    served = gunicorn("-w", "1")
    answer = ask(
        served.check,
        path="/metrics",
        headers={"Accept": "application/openmetrics-text;version=1.0.0;q=0.75,*/*;q=0.1"},
    )
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    prometheus = started(Prometheus, tmp_path, served.check)
    assert prometheus.value("up") == 1


def names_in(text):
    return set(re.findall(r"busyguard_[a-z_]+", text))


@pytest.mark.parametrize("file", [ALERTS, DASHBOARD], ids=lambda file: file.name)
def test_what_is_shipped_asks_for_what_there_is(file):
    from wsgi_busyguard.metrics.figures import COUNTER, FIGURES, HISTOGRAM
    from wsgi_busyguard.metrics.prometheus import named

    there = set()
    for figure in FIGURES:
        ends = {COUNTER: ["_total"], HISTOGRAM: ["_bucket", "_sum", "_count", ""]}
        there |= {named(figure) + end for end in ends.get(figure.kind, [""])}
    assert names_in(file.read_text()) - {"busyguard_"} <= there
