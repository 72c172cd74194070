from __future__ import annotations

import builtins
import contextlib
import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse
from support.client import ask

from wsgi_busyguard import Board, Gate, Load, Monitor
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.board.watcher import Watcher
from wsgi_busyguard.bulkhead import Bulkhead
from wsgi_busyguard.checkport.ports import AgentPort, CheckPort, introduce
from wsgi_busyguard.gate.limits_in_force import in_force
from wsgi_busyguard.metrics.figures import FIGURES, HISTOGRAM, Times
from wsgi_busyguard.metrics.prometheus import Collector, Exposition, buckets
from wsgi_busyguard.options import GuardOptions


@pytest.fixture
def gate():
    gate = Gate(4, 2)
    gate.leave(gate.enter())
    gate.enter()
    return gate


def values(text, parse=parse):
    """Return the value of every sample by its name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def test_every_figure_is_exposed(gate):
    board = Board()
    publisher = Publisher(board, gate)
    publisher.limits = lambda: in_force(GuardOptions(), "gate", gate.limits)
    publisher.join()
    publisher.ready()
    agent = AgentPort(Monitor(gate), "127.0.0.1:0")
    collector = Collector(Monitor(publisher), agent.agent)
    agent.stop()
    rates = Bulkhead("rates", at_most=2)
    for _ in range(3):  # three that were cut shut it
        with contextlib.suppress(TimeoutError), rates:
            raise TimeoutError
    publisher.beat()
    assert len(list(collector.collect())) == len(FIGURES)


def test_the_text_says_what_the_figures_are(gate):
    text, content_type = Exposition(Collector(Monitor(gate)))(None)
    assert content_type.startswith("text/plain; version=0.0.4")
    found = values(text.decode())
    assert found["busyguard_capacity",] == 4
    assert found["busyguard_active",] == 1
    assert found["busyguard_admitted_total",] == 2
    assert found["busyguard_refused_total", ("reason", "queue-full")] == 0
    assert found["busyguard_service_time_seconds_count",] == 1
    assert found["busyguard_service_time_seconds_bucket", ("le", "0.005")] == 1
    assert found["busyguard_service_time_seconds_bucket", ("le", "+Inf")] == 1
    assert found["busyguard_queue_time_seconds_count",] == 2
    assert found["busyguard_busy_seconds_total",] == 0


@pytest.mark.parametrize("version", ["1.0.0", "0.0.1"])
def test_openmetrics_is_for_those_who_ask_for_it(gate, version):
    accept = f"application/openmetrics-text;version={version},text/plain;version=0.0.4;q=0.5"
    text, content_type = Exposition(Collector(Monitor(gate)))(accept)
    if version == "0.0.1":  # not spoken here
        assert content_type.startswith("text/plain")
    else:
        assert content_type.startswith("application/openmetrics-text")
        assert text.endswith(b"# EOF\n")
        assert values(text.decode(), parse_openmetrics)["busyguard_capacity",] == 4


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "text/html", "application/openmetrics-text;version=x.y", ";;=,=;", "é" * 5000],
)
def test_whatever_a_scraper_says_it_gets_its_text(gate, accept):
    text, content_type = Exposition(Collector(Monitor(gate)))(accept)
    assert b"busyguard_capacity 4.0\n" in text
    assert content_type


def test_buckets_are_those_below_too():
    times = Times((0.5, 1.0), (1, 2, 3), 9.0)
    assert buckets(times) == [("0.5", 1), ("1.0", 3), ("+Inf", 6)]


def test_a_registry_of_the_users_own_takes_it(gate):
    registry = CollectorRegistry()
    registry.register(Collector(Monitor(gate)))
    assert b"busyguard_admitted_total 2.0" in generate_latest(registry)


def test_what_is_not_known_is_not_there(adapter):
    adapter.load = Load(0, 0, None)
    found = values(Exposition(Collector(Monitor(adapter)))(None)[0].decode())
    assert ("busyguard_capacity",) not in found
    assert ("busyguard_admitted_total",) not in found
    assert found["busyguard_is_busy",] == 0


def test_a_scrape_takes_no_lock_that_others_have(gate, monkeypatch):
    """Nor does it import: it runs in a thread of a process that forks all the time."""
    import prometheus_client.registry

    exposition = Exposition(Collector(Watcher(Board())))

    def never(*_, **__):
        raise AssertionError("imported at run time")

    with prometheus_client.registry.REGISTRY._lock:
        monkeypatch.setattr(builtins, "__import__", never)
        try:
            for accept in (None, "application/openmetrics-text; version=1.0.0"):
                exposition(accept)
        finally:
            monkeypatch.undo()


# on the check port


@pytest.fixture
def check(gate):
    monitor = Monitor(gate)
    port, agent = CheckPort(monitor, "127.0.0.1:0"), AgentPort(monitor, "127.0.0.1:0")
    introduce([port, agent])
    agent.agent.note("lb1")
    port.start()
    yield port.address[1]
    port.stop()
    agent.stop()


def test_metrics_are_on_the_check_port(check):
    answer = ask(check, path="/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert values(answer.text)["busyguard_balancers",] == 1


def test_head_of_metrics_has_no_body(check):
    answer = ask(check, "HEAD", "/metrics")
    assert answer.status == 200
    assert int(answer.headers["content-length"]) > 1000
    assert answer.body == b""


def test_openmetrics_is_on_the_check_port(check):
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = ask(check, path="/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_without_the_library_metrics_say_how_to_get_it(gate, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("prometheus_client")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    port = CheckPort(Monitor(gate), "127.0.0.1:0").start()
    try:
        answer = ask(port.address[1], path="/metrics")
        assert answer.status == 501
        assert "pip install 'wsgi-busyguard[prometheus]'" in answer.text
        assert "\n" not in answer.text
        assert ask(port.address[1], path="/load").status == 200
    finally:
        port.stop()


def test_histograms_have_as_many_as_there_are_requests(gate):
    found = values(Exposition(Collector(Monitor(gate)))(None)[0].decode())
    for figure in FIGURES:
        if figure.kind == HISTOGRAM:
            name = f"busyguard_{figure.name}_seconds"
            assert found[f"{name}_count",] == found[f"{name}_bucket", ("le", "+Inf")]
