from __future__ import annotations

import gc
import logging
import os
import pathlib
import signal
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard import BusyGuard, Load, Monitor
from wsgi_busyguard.gate import Gate
from wsgi_busyguard.gate.dry_run import EVERY, DryRun, Shadow
from wsgi_busyguard.policy import Reason, Verdict


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
    assert guard.monitor.load[:3] == (3, 2, 2)
    crowd.leave()
    assert crowd.statuses == ["200 OK"] * 9
    assert guard.dry_run.requests == 9
    assert guard.dry_run.refused == {"queue-full": 4}


def test_the_state_and_the_callbacks_are_those_of_a_guard_that_acts(crowd, until):
    told = []
    guard = BusyGuard(crowd.app, slots=2, dry_run=True, on_busy=told.append, on_free=told.append)
    crowd.come(guard, 4)
    until(lambda: told)
    assert told[0].state.value == "busy"
    crowd.leave()
    until(lambda: guard.monitor.state.value == "free")
    until(lambda: len(told) == 2)


def test_checks_say_free_and_the_busy_ones_are_counted(crowd, ask):
    guard = BusyGuard(crowd.app, slots=1, ready="exact", dry_run=True)
    assert ask(guard, "OPTIONS", "/").text == "free"
    crowd.come(guard, 5)
    answer = ask(guard, "OPTIONS", "/")
    assert (answer.status, answer.text) == (200, "free")
    assert (guard.dry_run.checks, guard.dry_run.answered_busy) == (2, 1)
    crowd.leave()


def test_so_do_they_without_slots(ask, adapter):
    guard = BusyGuard(lambda e, s: [b""], monitor=Monitor(adapter), ready="exact", dry_run=True)
    adapter.load = Load(9, 4, 4)
    assert ask(guard, "GET", "/readyz").text == "free"
    assert guard.dry_run.answered_busy == 1


def test_a_server_that_shuts_down_says_so(ask, adapter):
    """That is not for load, and whoever called drain() meant it."""
    guard = BusyGuard(lambda e, s: [b""], monitor=Monitor(adapter), dry_run=True)
    guard.monitor.drain()
    assert ask(guard, "GET", "/readyz").status == 503
    assert guard.dry_run.answered_busy == 0


def test_live_checks_are_not_counted(ask):
    guard = BusyGuard(lambda e, s: [b""], slots=1, dry_run=True)
    assert ask(guard, "GET", "/livez").text == "alive"
    assert guard.dry_run.checks == 0


def test_a_guard_that_acts_has_no_dry_run():
    assert BusyGuard(lambda e, s: [b""]).dry_run is None


def test_only_true_and_false_are_known():
    with pytest.raises(TypeError, match="dry_run must be True or False, not 'no'"):
        BusyGuard(lambda e, s: [b""], dry_run="no")


# Bodies


def test_the_response_stays_as_it_is(environ):
    for body in ([b"1"], (b"1",)):
        guard = BusyGuard(lambda e, s, body=body: body, slots=1, dry_run=True)
        assert guard(environ(path="/x"), None) is body
        assert guard.monitor.load.active == 0


def test_a_request_lasts_until_its_body_is_closed(environ):
    guard = BusyGuard(lambda e, s: (part for part in [b"1"]), slots=1, dry_run=True)
    body = guard(environ(path="/x"), None)
    assert list(body) == [b"1"]
    assert guard.monitor.load.active == 1
    body.close()
    body.close()
    assert guard.monitor.load.active == 0


def test_or_dropped(environ):
    guard = BusyGuard(lambda e, s: (part for part in [b"1"]), slots=1, dry_run=True)
    body = guard(environ(path="/x"), None)
    assert guard.monitor.load.active == 1
    del body
    gc.collect()
    assert guard.monitor.load.active == 0


def test_an_app_that_raises_has_left(environ):
    def app(environ, start_response):
        raise KeyError("app")

    guard = BusyGuard(app, slots=1, dry_run=True)
    with pytest.raises(KeyError):
        guard(environ(path="/x"), None)
    assert guard.monitor.load.active == 0


# The gate beside the requests, on a clock


@pytest.fixture
def report(clock):
    return DryRun(clock)


@pytest.fixture
def shadow(clock, report):
    """Two slots, a queue of three, and 1 s of patience."""
    return Shadow(Gate(2, 3, 1.0, clock=clock), report, clock)


def test_who_would_have_waited_stays_for_as_much_longer(shadow, clock):
    first, second, waiting = (shadow.come(0.0) for _ in range(3))
    clock.now += 0.5
    first.end()  # its slot goes to the one who waits, and runs already
    clock.now += 0.1
    second.end()
    waiting.end()  # after 0.6 s, but it would have begun 0.5 s later
    assert shadow.read()[:3] == (0, 1, 2)
    clock.now += 0.6
    assert shadow.read().active == 0


def test_who_ends_before_he_would_have_begun_needs_his_time_all_the_same(shadow, clock):
    stuck = [shadow.come(0.0) for _ in range(2)]
    waiting = shadow.come(0.0)
    clock.now += 0.3
    waiting.end()
    assert shadow.read()[:3] == (1, 2, 2)
    stuck[0].end()
    assert shadow.read()[:3] == (0, 2, 2)
    clock.now += 0.29
    assert shadow.read().active == 2
    clock.now += 0.02
    assert shadow.read().active == 1


def test_who_would_have_waited_too_long_is_counted_once(shadow, clock, report):
    for _ in range(2):
        shadow.come(0.0)
    late = shadow.come(0.0)
    clock.now += 1.5
    shadow.read()
    late.end()
    assert report.refused == {"queue-age": 1}
    assert shadow.read()[:2] == (0, 2)


def test_what_it_has_waited_before_counts(shadow, report):
    for _ in range(3):
        shadow.come(1.5)
    assert report.refused == {"queue-age": 1}  # the two slots were free


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("whose", ["shadow", "report"])
def test_a_child_waits_for_no_thread_of_its_parents(shadow, report, start, whose):
    """A server that forks for each request, say."""
    lock = (shadow if whose == "shadow" else report)._lock
    taken, forked = threading.Event(), threading.Event()

    def hold():
        with lock:
            taken.set()
            assert forked.wait(20)

    shadow.come(0.0)
    start(hold)
    assert taken.wait(20)
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        shadow.come(0.0).end()
        os._exit(shadow.read().active)
    forked.set()
    assert os.waitpid(pid, 0)[1] == 0


def test_it_counts_what_a_gate_refuses(shadow, clock, report):
    """A steady stream of twice what two slots can do, 20 a second of 0.2 s each."""
    running = []
    for tick in range(40_000):  # of half a millisecond
        while running and running[0][0] <= tick:
            running.pop(0)[1].end()
        shadow.read()
        if tick % 100 == 0:
            running.append((tick + 400, shadow.come(0.0)))
        clock.now += 0.0005
    assert sum(report.refused.values()) == pytest.approx(200, abs=10)


@given(
    st.lists(
        st.one_of(
            st.floats(0.0, 2.0).map(lambda ago: ("come", ago)),
            st.integers(0, 20).map(lambda which: ("end", which)),
            st.floats(0.0, 1.5).map(lambda seconds: ("wait", seconds)),
        ),
        max_size=60,
    )
)
def test_whatever_comes_and_goes_is_counted_once_and_all_leave(steps):
    now = 1000.0

    def clock():
        return now

    report = DryRun(clock)
    gate = Gate(2, 3, 1.0, clock=clock)
    shadow = Shadow(gate, report, clock)
    inside, came = [], 0
    for what, value in steps:
        if what == "come":
            inside.append(shadow.come(value))
            came += 1
        elif what == "wait":
            now += value
        elif inside:
            inside.pop(value % len(inside)).end()
        load = shadow.read()
        assert load.active <= 2
        assert load.queued <= 3
    for guest in inside:
        guest.end()
        guest.end()
    for _ in range(100):
        now += 10.0
        shadow.settle()
    assert shadow.read()[:2] == (0, 0)
    counts = gate.counts()
    assert report.requests == came == counts.admitted + sum(report.refused.values())
    assert counts.served == counts.admitted
    assert sum(report.refused.values()) == sum(counts.refused)


def test_metrics_tell_what_would_have_been(crowd):
    guard = BusyGuard(crowd.app, slots=2, max_queue=3, max_wait=20.0, dry_run=True)
    crowd.come(guard, 9)
    counts = guard.monitor.counts()
    assert (counts.admitted, sum(counts.refused)) == (2, 4)
    crowd.leave()


# The report


def test_a_line_a_minute_is_logged(clock, report, caplog):
    for _ in range(5):
        report.request()
        report.refuse(Reason.QUEUE_FULL)
    assert [record.getMessage() for record in caplog.records] == [
        "dry run: 1 of 1 requests would have been refused (1 queue-full) and 0 of 0 checks"
        " answered busy, since the start"
    ]
    clock.now += EVERY
    report.judged(Verdict("busy", False, Load(9, 1, 1)))
    assert len(caplog.records) == 2
    assert caplog.records[0].levelno == logging.WARNING
    assert "5 of 5 requests" in caplog.records[1].getMessage()
    assert "1 of 1 checks answered busy" in caplog.records[1].getMessage()


def test_the_page_shows_what_is_said(report):
    report.requests, report.checks, report.answered_busy = 3400, 900, 3
    report.refused.update({"queue-full": 10, "queue-age": 2})
    page = pathlib.Path(__file__).parents[3] / "docs" / "dryrun.rst"
    assert f"\n   {report}\n" in page.read_text()


def test_nothing_is_logged_where_nothing_would_have_been_done(report, caplog):
    report.request()
    report.judged(Verdict("free", True, Load(0, 0, 1)))
    report.judged(Verdict("busy", True, Load(9, 1, 1)))
    assert caplog.records == []
    assert repr(report).startswith("<DryRun: 0 of 1 requests would have been refused and 0 of 2")
