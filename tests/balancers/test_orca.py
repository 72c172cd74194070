"""The load in the answers of real servers."""

from __future__ import annotations

import json

import pytest
from support.balanced import APP, Server
from support.client import ask, eventually, many, together

HEADER = "endpoint-load-metrics"

GUARDED = f"""{APP}
from wsgi_busyguard import BusyGuard
application = BusyGuard(application, expose_load=True)
"""


def report(answer):
    kind, _, rest = answer.headers[HEADER].partition(" ")
    assert kind == "JSON"
    return json.loads(rest)


@pytest.mark.parametrize("kind", ["werkzeug", "twisted", "waitress", "gunicorn"])
def test_an_app_reports_the_load_of_the_server_that_stands_in_front(started, tmp_path, kind):
    options = ("--threads=2", "--max-queue=4", "--max-wait=5")
    server = started(Server, tmp_path, "a", *options, kind=kind, app=GUARDED).wait()
    ask(server.port, path="/x")  # at which the app's guard finds out which server this is
    eventually(lambda: server.load["active"] == 0)  # it has been answered, and may not be gone yet
    answers, threads = many(6, server.port, path="/sleep/0.7")
    together(threads)
    assert [answer.status for answer in answers] == [200] * 6
    found = [report(answer) for answer in answers]
    assert max(one["application_utilization"] for one in found) >= 1
    assert all(one["rps_fractional"] > 0 for one in found)
    asked = ask(server.port, path="/x", headers={"endpoint-load-metrics-format": "TEXT"})
    assert asked.headers[HEADER].startswith("TEXT application_utilization=")


def test_a_guarded_site_reports_what_it_serves_and_what_it_refuses(site):
    reports = site(threads=1, max_queue=0, expose_load=True)
    answers, threads = many(1, reports.port, path="/hang")
    eventually(lambda: reports.load["active"] == 1)
    refused = ask(reports.port, path="/x")
    reports.tell("release")
    together(threads)
    assert (refused.status, answers[0].status) == (503, 200)
    for answer in (refused, answers[0]):
        assert report(answer)["application_utilization"] == 1.0
    assert report(refused)["eps"] > 0


def test_a_guarded_site_reports_nothing_unless_it_is_told_to(site):
    answer = ask(site().port, path="/x", headers={"endpoint-load-metrics-format": "JSON"})
    assert HEADER not in answer.headers


def test_the_check_port_warns_who_asks_for_it(site):
    """As Consul asks: there, and so that it does not take busy for critical."""
    busy = site(threads=1, max_queue=4, max_wait=5)
    answers, threads = many(3, busy.port, path="/hang")
    eventually(lambda: busy.load["queued"] == 2)
    assert ask(busy.check, path="/readyz?ready=always&warn=429").status == 429
    busy.tell("release")
    together(threads)
    assert [answer.status for answer in answers] == [200] * 3
    eventually(lambda: ask(busy.check, path="/readyz?ready=always&warn=429").status == 200)
