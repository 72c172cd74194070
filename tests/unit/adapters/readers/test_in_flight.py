"""Calls under way are counted by the references that they hold, and no stack is looked at."""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import sys
import threading

import gevent
import gevent.event
import pytest

import wsgi_busyguard
from wsgi_busyguard import BusyGuard, Load, Monitor
from wsgi_busyguard.adapters.readers.in_flight import Inside, inside


@pytest.fixture
def go_on():
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def visit(environ, start):
    """Call a guard in a thread of its own."""
    return lambda guard: start(guard, environ("GET", "/x"), print)


@pytest.fixture
def here():
    """How many are inside guards of this process, without whom other tests have left there."""
    before = inside()
    return lambda: inside() - before


def counts(guard):
    return guard._inside.count()


def test_it_counts_calls_while_they_are_under_way(visit, go_on, until, here):
    guard = BusyGuard(lambda *_: [go_on.wait(20)])
    assert counts(guard) == here() == 0
    for _ in range(5):
        visit(guard)
    until(lambda: counts(guard) == 5)
    assert guard.monitor.load == Load(0, 5, None)
    assert here() == 5
    go_on.set()
    until(lambda: counts(guard) == here() == 0)


def test_a_guard_that_reads_a_server_counts_too(visit, go_on, until, adapter, here):
    guard = BusyGuard(lambda *_: [go_on.wait(20)], monitor=Monitor(adapter))
    visit(guard)
    until(lambda: here() == 1)


def test_checks_are_not_inside(ask, here):
    seen = []

    class Noting:
        def read(self):
            seen.append(here())
            return Load(0, 0, 4)

    ask(BusyGuard(print, monitor=Monitor(Noting())), "OPTIONS")
    assert seen == [0]


def test_what_others_keep_of_a_call_does_not_count(environ):
    """Debuggers and error reporters keep frames, their variables, and exceptions."""
    kept, seen = [], []

    def app(environ, start_response):
        frame = sys._getframe(1)
        kept.append((frame, frame.f_locals))
        seen.append(counts(guard))
        if len(kept) % 2:
            raise ValueError
        return []

    guard = BusyGuard(app)
    for _ in range(10):
        try:
            guard(environ("GET", "/x"), print)
        except ValueError as error:
            kept[-1] += (error,)
    assert seen == [1] * 10
    assert counts(guard) == 0


@pytest.mark.slow
def test_a_million_calls_leave_nothing_behind(start):
    def app(environ, start_response):
        if environ["n"] % 3 == 0:
            raise ValueError
        return []

    guard = BusyGuard(app)

    def visit():
        for number in range(125_000):
            with contextlib.suppress(ValueError):
                guard({"PATH_INFO": "/x", "n": number}, None)

    for thread in [start(visit) for _ in range(8)]:
        thread.join(60)
    assert counts(guard) == 0


def test_a_guard_behind_a_guard_is_no_second_request(visit, go_on, until, here):
    inner = BusyGuard(lambda *_: [go_on.wait(20)])
    outer = BusyGuard(lambda environ, start_response: inner(environ, start_response))
    beside = BusyGuard(lambda *_: [go_on.wait(20)])
    for guard in (outer, outer, beside):
        visit(guard)
    until(lambda: (counts(outer), counts(inner), counts(beside)) == (2, 2, 1))
    assert here() == 3


def test_greenlets_that_wait_are_inside(environ):
    """All of them are on one thread, and only one can be on its stack."""
    go_on = gevent.event.Event()
    guard = BusyGuard(lambda *_: [go_on.wait(20)])
    greenlets = [gevent.spawn(guard, environ("GET", "/x"), print) for _ in range(7)]
    gevent.sleep(0)
    assert counts(guard) == 7
    greenlets[0].kill()
    assert counts(guard) == 6
    go_on.set()
    gevent.joinall(greenlets, timeout=20)
    assert counts(guard) == 0


def test_after_a_fork_nobody_is_inside(visit, go_on, until):
    guard = BusyGuard(lambda *_: [go_on.wait(20)])
    for _ in range(3):
        visit(guard)
    until(lambda: counts(guard) == 3)
    pid = os.fork()
    if pid == 0:
        os._exit(counts(guard) + 10 * inside())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert counts(guard) == 3


def test_who_is_gone_is_forgotten(here):
    one = Inside()
    token = one.token
    assert (one.count(), here()) == (1, 1)
    del one
    gc.collect()
    assert here() == 0
    del token


def test_where_references_are_not_counted_nobody_is_seen(monkeypatch):
    monkeypatch.setattr("wsgi_busyguard.adapters.readers.in_flight._references", lambda thing: 0)
    assert Inside().count() == 0


def test_it_says_what_it_is():
    assert repr(Inside()) == "<Inside: the calls of the app; no queue, no capacity>"


# Stacks of other threads

CHECKS = """
    import gc, logging, sys, threading, time
    from wsgi_busyguard import BusyGuard

    logging.disable()

    class Litter:
        def __init__(self):
            self.me, self.more = self, [[] for _ in range(20)]

        def __del__(self):
            sum(range(50))

    def deep(depth):
        depth % 10 or Litter()
        return depth and deep(depth - 1)

    def app(environ, start_response):
        start_response("200 OK", [])
        deep(30)
        return []

    def call(guard, method, path):
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": ""}
        while time.monotonic() < end:
            b"".join(guard(environ.copy(), lambda *said: None))

    end = time.monotonic() + float(sys.argv[1])
    gc.set_threshold(100)
    sys.setswitchinterval(1e-5)
    guard = BusyGuard(app)
    visits = 3 * [("GET", "/x")] + 2 * [("OPTIONS", "/")]
    threads = [threading.Thread(target=call, args=(guard, *visit)) for visit in visits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("all were answered")
"""


@pytest.mark.slow
def test_checks_while_garbage_is_collected_do_not_stop_the_process(python):
    """With a look at other threads' stacks this hung for ever on 3.11, or ended with a signal."""
    assert python(CHECKS, "4") == "all were answered\n"


def test_nobody_looks_at_the_stacks_of_other_threads():
    package = pathlib.Path(wsgi_busyguard.__file__).parent
    texts = {path: path.read_text() for path in package.rglob("*.py") if path.stem != "in_flight"}
    assert [path for path, text in texts.items() if "_current_frames" in text] == []
