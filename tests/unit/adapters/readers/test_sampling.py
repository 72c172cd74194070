"""How long a request takes, where no server says it; with real ones: test_gate_anywhere.py."""

from __future__ import annotations

import math
import threading

import pytest

from wsgi_busyguard import BusyGuard, Load, Monitor
from wsgi_busyguard.adapters.detect import Server
from wsgi_busyguard.adapters.readers.sampling import SamplingAdapter


class Calls:
    """A guard, as far as it is needed: the next call is timed when the test says so."""

    def __init__(self):
        self.asked = 0
        self.next = None

    def time_next(self, sampled):
        self.asked += 1
        self.next = object()
        return self.next

    def is_next(self, timed):
        return self.next is timed

    def begin(self, sampled):
        self.next = None
        return sampled.begin()


@pytest.fixture
def calls():
    return Calls()


@pytest.fixture
def sampled(adapter, calls, clock):
    return SamplingAdapter(adapter, calls, clock)


def test_nothing_is_timed_while_nobody_waits(sampled, adapter, calls):
    adapter.load = Load(0, 4, 4)
    assert sampled.read() == Load(0, 4, 4)
    assert calls.asked == 0


@pytest.mark.parametrize("load", [None, Load(3, 4, 4, 1.0, 0.5)], ids=["unknown", "all is known"])
def test_what_needs_nothing_is_passed_on(sampled, adapter, calls, load):
    adapter.load = load
    assert sampled.read() == load
    assert calls.asked == 0


def test_while_one_waits_and_nobody_gets_a_thread_that_is_how_long_it_has_been(
    sampled, adapter, calls, clock
):
    clock.now = 1000.0
    adapter.load = Load(1, 16, 16)
    assert sampled.read() == Load(1, 16, 16, 0.0)
    clock.now += 1.5
    assert sampled.read().waited == 1.5
    assert calls.asked == 1
    calls.begin(sampled)
    assert sampled.read().waited == 0.0
    assert calls.asked == 2


def test_a_queue_that_was_not_seen_to_stand_has_not_stood(sampled, adapter, calls, clock):
    """The looks may be a minute apart."""
    adapter.load = Load(1, 4, 4)
    sampled.read()
    calls.begin(sampled)
    clock.now += 60.0
    assert sampled.read().waited == 0.0
    adapter.load = Load(0, 1, 4)
    clock.now += 60.0
    sampled.read()
    adapter.load = Load(1, 4, 4)
    assert sampled.read().waited == 0.0


def test_the_mean_is_of_those_that_have_ended_and_the_running_count_at_their_age(
    sampled, adapter, calls, clock
):
    adapter.load = Load(8, 4, 4)
    sampled.read()
    call = calls.begin(sampled)
    clock.now += 0.25
    assert sampled.read().service == pytest.approx(0.25)
    sampled.end(call)
    assert sampled.read().service == pytest.approx(0.25)
    assert sampled.read().delay == pytest.approx(0.5)


def test_one_that_is_stuck_among_sixteen_hardly_moves_the_mean(sampled, adapter, calls, clock):
    adapter.load = Load(1, 16, 16)
    sampled.read()
    ended = calls.begin(sampled)
    clock.now += 0.1
    sampled.end(ended)
    sampled.read()
    stuck = calls.begin(sampled)
    clock.now += 60.0
    assert sampled.read().service == pytest.approx(0.1, rel=0.1)
    sampled.end(stuck)


def test_one_that_never_says_that_it_has_ended_is_forgotten(sampled, adapter, calls, clock):
    """A time limit of the app's may be raised between any two steps here."""
    adapter.load = Load(8, 4, 4)
    sampled.read()
    ended = calls.begin(sampled)
    clock.now += 0.25
    sampled.end(ended)
    sampled.read()
    calls.begin(sampled)
    clock.now += 60.0
    assert sampled.read().service == pytest.approx(0.25)


def test_progress_elsewhere_is_progress(adapter, calls, clock):
    """Of several processes each hears of its own calls only."""
    ended = [0]
    adapter.progress = lambda: ended[0]
    sampled = SamplingAdapter(adapter, calls, clock)
    adapter.load = Load(1, 16, 16)
    sampled.read()
    clock.now += 1.5
    ended[0] += 1
    assert sampled.read().waited == 0.0
    clock.now += 1.5
    assert sampled.read().waited == 1.5


def test_a_queue_that_gets_shorter_is_progress_in_whichever_process(sampled, adapter, clock):
    for queued, waited in ((5, 0.0), (5, 1.0), (4, 0.0), (6, 1.0)):
        adapter.load = Load(queued, 4, 4)
        assert sampled.read().waited == waited
        clock.now += 1.0


def test_without_a_guard_nothing_is_added(adapter):
    adapter.load = Load(1, 4, 4)
    assert SamplingAdapter(adapter).read() == Load(1, 4, 4)


# A guard


@pytest.fixture
def app():
    """An app in which requests hang until they are told to end."""
    entered, leave = threading.Semaphore(0), threading.Semaphore(0)

    def app(environ, start_response):
        entered.release()
        assert leave.acquire(timeout=20)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
        return [b"app"]

    app.entered, app.leave = entered, leave
    return app


def test_a_guard_times_the_next_request_and_none_after_it(app, adapter, ask, start, monkeypatch):
    monkeypatch.setattr(
        "wsgi_busyguard.adapters.first_request.find",
        lambda environ: Server("Peanut", 4, lambda: adapter, counts_checks=False),
    )
    guard = BusyGuard(app, max_wait=math.inf)  # else it looks by itself now and then
    adapter.load = Load(1, 4, 4)
    assert ask(guard, "GET", "/readyz").text == "busy"
    assert guard._first
    first = start(ask, guard, "GET", "/x")
    assert app.entered.acquire(timeout=20)
    assert not guard._first
    assert guard.monitor.load.service > 0.0
    second = start(ask, guard, "GET", "/x")
    assert app.entered.acquire(timeout=20)
    for thread in (first, second):
        app.leave.release()
        thread.join(20)
    assert not guard._first


def test_a_check_that_has_a_thread_says_that_the_server_gets_on_and_is_not_timed(
    app, adapter, ask, monkeypatch
):
    monkeypatch.setattr(
        "wsgi_busyguard.adapters.first_request.find",
        lambda environ: Server("Peanut", 4, lambda: adapter, counts_checks=False),
    )
    guard = BusyGuard(app)
    adapter.load = Load(1, 16, 16)
    for _ in range(3):
        answer = ask(guard, "GET", "/readyz")
        assert (answer.status, answer.text) == (200, "busy")
    assert guard.monitor.load.service is None


def test_a_request_that_raises_is_timed_as_well(adapter, environ, monkeypatch):
    monkeypatch.setattr(
        "wsgi_busyguard.adapters.first_request.find",
        lambda environ: Server("Peanut", 4, lambda: adapter, counts_checks=False),
    )

    def app(environ, start_response):
        raise ZeroDivisionError

    guard = BusyGuard(app)
    adapter.load = Load(1, 4, 4)
    assert guard.monitor.load.service is None
    for _ in range(2):  # the first finds out which server this is
        guard.monitor.refresh()
        with pytest.raises(ZeroDivisionError):
            guard(environ("GET", "/x"), print)
    assert guard.monitor.load.service > 0.0


# A monitor that nobody tells of calls


def test_a_queue_that_nobody_sees_get_shorter_is_a_delay_of_as_long(adapter, clock):
    monitor = Monitor(adapter, clock=clock)
    adapter.load = Load(5, 4, 4)
    assert monitor.check() == ("busy", True, Load(5, 4, 4))
    clock.now += 1.9
    assert monitor.check().ready
    clock.now += 0.1
    assert monitor.check() == ("busy", False, Load(5, 4, 4, waited=2.0))
    adapter.load = Load(4, 4, 4)
    assert monitor.check() == ("busy", True, Load(4, 4, 4))


def test_one_that_has_been_empty_has_not_stood(adapter, clock):
    monitor = Monitor(adapter, clock=clock)
    for queued in (1, 0, 1):
        adapter.load = Load(queued, 4, 4)
        assert monitor.check().ready
        clock.now += 5.0
