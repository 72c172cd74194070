"""BUSYGUARD_DISABLE: each face only answers checks; what cannot be meant is an error."""

from __future__ import annotations

import contextlib
import threading

import pytest
from twisted.internet.testing import MemoryReactorClock
from waitress.wasyncore import close_all

from wsgi_busyguard import BusyGuard
from wsgi_busyguard.adapters.cheroot.front import CherootFront
from wsgi_busyguard.adapters.executor import CountingExecutor
from wsgi_busyguard.adapters.gunicorn.options import read_options
from wsgi_busyguard.adapters.gunicorn.pool import pool_limits
from wsgi_busyguard.adapters.twisted import guarded_site
from wsgi_busyguard.adapters.waitress.dispatcher import WaitressFront
from wsgi_busyguard.bulkhead import Bulkhead
from wsgi_busyguard.dashboard.sentences import sentences
from wsgi_busyguard.deadlines.deadline import DEADLINE
from wsgi_busyguard.gate.limits_in_force import in_force
from wsgi_busyguard.load import DISABLE, GATE
from wsgi_busyguard.metrics.report import look
from wsgi_busyguard.options import GuardOptions

OFF = f"only answers checks, disabled by {DISABLE}: ready damped (default), patience 2 s (default)"


@pytest.fixture
def disabled(monkeypatch):
    monkeypatch.setenv(DISABLE, "1")


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"app"]


class Reactor(MemoryReactorClock):
    def callFromThread(self, call, *arguments):  # noqa: N802
        self.callLater(0, call, *arguments)


def waitress_front(**options):
    sockets = {}
    front = WaitressFront(2, sockets, **options)
    close_all(sockets)  # what wakes its loop
    return front


GUARDS = {
    "middleware": lambda **options: BusyGuard(app, slots=2, **options),
    "twisted": lambda **options: guarded_site(app, 2, reactor=Reactor(), **options).guard,
    "waitress": waitress_front,
    "cheroot": lambda **options: CherootFront(2, **options),
}


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
def test_a_guard_that_is_disabled_says_so(disabled, guard):
    made = guard(max_queue=0, max_wait=0.1, client_timeout=2.0)
    assert str(made.limits) == OFF
    shown = look(made.monitor)
    assert shown["limits"][0]["acts"] == "disabled"
    said = f"The guard is disabled by {DISABLE}: it answers checks, and does nothing else."
    assert said in [sentence.text for sentence in sentences(shown)]


@pytest.mark.parametrize("value", ["", "0", "no", "False", " off "])
def test_these_leave_it_on(monkeypatch, value):
    monkeypatch.setenv(DISABLE, value)
    assert str(BusyGuard(app, slots=2).limits).startswith("gate: slots 2")


@pytest.mark.parametrize("value", ["yes", "TRUE", "on"])
def test_and_these_turn_it_off(monkeypatch, value):
    monkeypatch.setenv(DISABLE, value)
    assert str(BusyGuard(app, slots=2).limits) == OFF


@pytest.mark.parametrize("guard", [*GUARDS.values(), lambda: CountingExecutor(1)])
def test_a_value_that_cannot_be_meant_is_an_error_in_one_line(monkeypatch, guard):
    monkeypatch.setenv(DISABLE, "maybe")
    words = f"^{DISABLE} must be one of 1, yes, true, on, 0, no, false, off, not 'maybe'$"
    with pytest.raises(ValueError, match=words):
        guard()


def test_gunicorn_is_told_likewise(monkeypatch):
    monkeypatch.setenv(DISABLE, "maybe")
    with pytest.raises(ValueError, match=f"^{DISABLE} must be one of"):
        read_options({DISABLE: "maybe"})
    monkeypatch.setenv(DISABLE, "1")
    options = read_options({DISABLE: "1", "BUSYGUARD_MAX_QUEUE": "2"})
    cfg = type("Cfg", (), {"threads": 4, "worker_connections": 20})
    assert options.disabled
    assert pool_limits(options, cfg) == (4, float("inf"), float("inf"))
    assert str(in_force(options, GATE, pool_limits(options, cfg))) == OFF


def test_it_is_read_when_a_guard_is_made_and_not_later(monkeypatch, ask):
    guard = BusyGuard(app, slots=1, max_queue=0)
    monkeypatch.setenv(DISABLE, "1")
    slot = guard.monitor.adapter.enter()
    assert ask(guard, "GET", "/x").status == 503
    guard.monitor.adapter.leave(slot)


def test_requests_go_to_the_app_as_without_a_guard(disabled, ask):
    seen = {}

    def keeps(environ, start_response):
        seen.update(environ)
        return app(environ, start_response)

    guard = BusyGuard(keeps, slots=1, max_queue=0, client_timeout=2.0)
    assert ask(guard, "GET", "/x").text == "app"
    assert not [name for name in seen if name.startswith("busyguard.")]
    assert DEADLINE not in seen


def test_and_checks_are_answered(disabled, ask):
    guard = BusyGuard(app, slots=1)
    assert ask(guard, "GET", "/readyz").text == "free"
    assert ask(guard, "GET", "/livez").text == "alive"


def test_as_many_as_come_get_in(disabled):
    """A gate of one slot with no queue would refuse all but one."""
    go = threading.Event()
    guard = BusyGuard(lambda *_: [str(go.wait(9)).encode()], slots=1, max_queue=0)
    bodies = []

    def call():
        bodies.append(b"".join(guard({"REQUEST_METHOD": "GET", "PATH_INFO": "/x"}, None)))

    threads = [threading.Thread(target=call) for _ in range(5)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert bodies == [b"True"] * 5


def test_an_executor_queues_whatever_comes(disabled):
    with CountingExecutor(1, max_queue=0, max_wait=0.001) as executor:
        futures = [executor.submit(len, "abc") for _ in range(50)]
        assert [future.result() for future in futures] == [3] * 50
    assert executor.counts().refused == (0, 0, 0)


def test_a_bulkhead_lets_all_calls_through(disabled):
    rates = Bulkhead("disabled rates", at_most=1)
    with rates, rates, contextlib.ExitStack() as calls:
        for _ in range(5):
            calls.enter_context(call_to(rates))
    assert rates.figures()["refused"] == 0


@contextlib.contextmanager
def call_to(bulkhead):
    with bulkhead:
        yield


def test_options_say_what_is_off(disabled):
    options = GuardOptions(slots=8, max_wait=0.1, client_timeout=2.0, adaptive=True)
    assert options.disabled
    assert (options.slots, options.max_wait, options.adaptive) == (None, float("inf"), False)
    assert options.timeout == 5.0
