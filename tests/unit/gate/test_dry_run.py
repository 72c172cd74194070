from __future__ import annotations

import logging
import os
import pathlib
import signal
import threading

import pytest

from wsgi_busyguard import BusyGuard, Load, Monitor
from wsgi_busyguard.adapters.detect import Server
from wsgi_busyguard.gate.dry_run import LOG_INTERVAL_SECONDS, DryRun
from wsgi_busyguard.policy import Discipline


@pytest.fixture
def crowd(environ, start, until):
    """Have requests stay inside a guard's app for as long as the test wants."""

    class Crowd:
        def __init__(self):
            self.inside = 0
            self.statuses = []
            self.go_on = threading.Event()

        def app(self, environ, start_response):
            self.inside += 1
            assert self.go_on.wait(20)
            start_response("200 OK", [])
            return [b"app"]

        def come(self, guard, count):
            def begin(status, headers, exc_info=None):
                self.statuses.append(status)

            before = self.inside
            self.threads = [start(guard, environ(path="/page"), begin) for _ in range(count)]
            until(lambda: self.inside == before + count)

        def leave(self):
            self.go_on.set()
            for thread in self.threads:
                thread.join(20)

    crowd = Crowd()
    yield crowd
    crowd.go_on.set()


def test_nobody_is_refused_and_nobody_waits(crowd):
    guard = BusyGuard(crowd.app, slots=2, max_queue=3, max_wait=20.0, dry_run=True)
    crowd.come(guard, 9)  # all are inside at once
    crowd.leave()
    assert crowd.statuses == ["200 OK"] * 9
    assert guard.dry_run.requests == 9
    assert guard.dry_run.refused == {"queue-full": 4}


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"app"]


@pytest.mark.parametrize("options", [{}, {"slots": 1}], ids=["no gate", "a gate"])
def test_the_load_and_the_callbacks_are_those_of_the_server(ask, adapter, options, monkeypatch):
    heard = []
    server = Server("Peanut", 99, lambda: adapter)
    monkeypatch.setattr("wsgi_busyguard.adapters.first_request.find", lambda _: server)
    guard = BusyGuard(app, dry_run=True, on_busy=heard.append, **options)
    ask(guard, "GET", "/page")
    adapter.load = Load(9, 4, 4)
    assert guard.monitor.load[:3] == (9, 4, 4)
    assert [change.state.value for change in heard] == ["busy"]


@pytest.mark.parametrize("query", ["", "ready=exact"])
def test_a_check_says_busy_and_stays_200(ask, adapter, query):
    guard = BusyGuard(lambda e, s: [b""], monitor=Monitor(adapter), ready="exact", dry_run=True)
    adapter.load = Load(9, 4, 4)
    answer = ask(guard, "GET", "/readyz", QUERY_STRING=query)
    assert (answer.status, answer.text) == (200, "busy")


def test_a_server_that_shuts_down_says_so(ask, adapter):
    """That is not for load, and whoever called drain() meant it."""
    guard = BusyGuard(lambda e, s: [b""], monitor=Monitor(adapter), dry_run=True)
    guard.monitor.drain()
    assert ask(guard, "GET", "/readyz").status == 503


def test_checks_are_not_counted(ask):
    guard = BusyGuard(lambda e, s: [b""], slots=1, dry_run=True)
    assert ask(guard, "GET", "/livez").text == "alive"
    assert ask(guard, "GET", "/readyz").text == "free"
    assert guard.dry_run.requests == 0


def test_a_guard_that_acts_has_no_dry_run():
    assert BusyGuard(lambda e, s: [b""]).dry_run is None


def test_only_true_and_false_are_known():
    with pytest.raises(TypeError, match="dry_run must be True or False, not 'no'"):
        BusyGuard(lambda e, s: [b""], dry_run="no")


def test_the_response_stays_as_it_is(environ):
    for body in ([b"1"], (b"1",)):
        guard = BusyGuard(lambda e, s, body=body: body, slots=1, dry_run=True)
        assert guard(environ(path="/x"), None) is body


def test_an_app_that_raises_has_left(environ):
    def app(environ, start_response):
        raise KeyError("app")

    guard = BusyGuard(app, slots=1, max_queue=0, dry_run=True)
    for _ in range(3):
        with pytest.raises(KeyError):
            guard(environ(path="/x"), None)
    assert not guard.dry_run.refused


# The estimate, on a clock


@pytest.fixture
def report(clock):
    """Two slots, a queue of three, and 1 s of patience."""
    return DryRun(Discipline(2, 3, 1.0), clock)


def test_who_would_have_waited_too_long_is_counted(report, clock):
    for request in range(2):
        report.arrive(request)
    clock.now += 1.5  # both still run, so each takes that long at least
    for request in range(2, 5):
        report.arrive(request)
    assert report.refused == {"queue-age": 2}


def test_what_it_has_waited_before_counts(report):
    for request in range(3):
        report.arrive(request, 1.5)
    assert report.refused == {"queue-age": 1}  # the two slots were free


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_waits_for_no_thread_of_its_parents(report, start):
    """A server that forks for each request, say."""
    taken, forked = threading.Event(), threading.Event()

    def hold():
        with report._lock:
            taken.set()
            assert forked.wait(20)

    report.arrive("before")
    start(hold)
    assert taken.wait(20)
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        report.arrive("in the child")
        os._exit(report.requests)
    forked.set()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2


@pytest.mark.parametrize("times", [0.7, 2, 10])
def test_it_counts_about_what_a_gate_refuses(report, clock, times):
    """A steady stream of so many times what two slots can do, requests of 0.2 s each."""
    running, start = [], clock.now
    for arrival in range(400):
        now = start + arrival * 0.1 / times
        while running and running[0][0] <= now:
            clock.now, request = running.pop(0)
            report.leave(request)
        clock.now = now
        report.arrive(arrival)
        running.append((now + 0.2, arrival))
    refused = sum(report.refused.values()) / report.requests
    assert refused == pytest.approx(max(0.0, 1 - 1 / times), abs=0.05)


# The report


def test_a_line_a_minute_is_logged(clock, caplog):
    report = DryRun(Discipline(1, 0, 1.0), clock)
    for request in range(5):
        report.arrive(request)
    assert [record.getMessage() for record in caplog.records] == [
        "dry run: about 1 of 2 requests would have been refused (1 queue-full), since the start"
    ]
    assert caplog.records[0].levelno == logging.WARNING
    clock.now += LOG_INTERVAL_SECONDS
    report.arrive("another")
    assert len(caplog.records) == 2
    assert "5 of 6 requests" in caplog.records[1].getMessage()


def test_the_page_shows_what_is_said(report):
    report.requests = 3400
    report.refused.update({"queue-full": 10, "queue-age": 2})
    page = pathlib.Path(__file__).parents[3] / "docs" / "dryrun.rst"
    assert f"\n   {report}\n" in page.read_text()


def test_nothing_is_logged_where_nothing_would_have_been_done(report, caplog):
    report.arrive("request")
    assert caplog.records == []
    assert repr(report) == "<DryRun: about 0 of 1 requests would have been refused>"
