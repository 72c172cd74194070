"""Calls under way are counted by the references that they hold, and no stack is looked at."""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import gevent
import gevent.event
import pytest

import wsgi_busyguard
from wsgi_busyguard import BusyGuard, Load, Monitor
from wsgi_busyguard.adapters.detect import Server
from wsgi_busyguard.adapters.readers.in_flight import InFlight, calls_in_flight, count_calls
from wsgi_busyguard.adapters.readers.threadpool import ThreadPoolAdapter


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
    before = calls_in_flight()
    return lambda: calls_in_flight() - before


def counts(guard):
    return guard._in_flight.count()


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


@pytest.fixture
def unwanted(monkeypatch):
    """No reader of this process needs the count."""
    monkeypatch.setattr("wsgi_busyguard.adapters.readers.in_flight._wanted", False)


@pytest.mark.usefixtures("unwanted")
@pytest.mark.parametrize("options", [{}, {"slots": 4}], ids=["pass-through", "gate"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_guard_that_reads_a_server_counts_as_soon_as_any_reader_needs_it(
    visit, go_on, until, adapter, here, options, when
):
    options = options or {"monitor": Monitor(adapter)}
    if when == "before":
        count_calls()
    came = []
    guard = BusyGuard(lambda *_: [came.append(1), go_on.wait(20)], **options)
    if when == "after":
        visit(guard)
        until(lambda: came)
        count_calls()
        assert here() == 0  # it came before, and had no such layer around it
    visit(guard)
    until(lambda: here() == 1)


@pytest.mark.usefixtures("unwanted")
@pytest.mark.parametrize("kind", ["gate", "adapter", "a server's reader"])
def test_no_call_pays_for_a_count_that_nobody_reads(kind, environ, adapter, monkeypatch):
    layers = []

    def app(environ, start_response):
        frame = sys._getframe(1)
        while frame.f_code.co_name != "test_no_call_pays_for_a_count_that_nobody_reads":
            layers.append(frame.f_code.co_name)
            frame = frame.f_back
        return []

    monkeypatch.setattr(
        "wsgi_busyguard.adapters.first_request.find",
        lambda environ: Server("Peanut", 99, lambda: adapter, counts_checks=False),
    )
    options = {"gate": {"slots": 2}, "adapter": {"monitor": Monitor(adapter)}}
    guard = BusyGuard(app, **options.get(kind, {}))
    for _ in range(2):
        guard(environ("GET", "/x"), print)
    assert "__call__" in layers
    assert "counted" not in layers


@pytest.mark.usefixtures("unwanted")
@pytest.mark.parametrize("made", [ThreadPoolAdapter, None], ids=["by itself", "told another way"])
def test_an_executors_reader_needs_it_unless_it_is_told_another_way(made, adapter):
    guard = BusyGuard(print, monitor=Monitor(adapter))
    before = guard._app
    with ThreadPoolExecutor(1) as executor:
        if made is None:
            ThreadPoolAdapter(executor, active=int)
        else:
            made(executor)
    assert (guard._app is before) == (made is None)


def test_one_that_needs_it_for_itself_counts_also_behind_a_guard():
    one = InFlight(True)
    one.nested = True
    assert one.is_wanted


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
        os._exit(counts(guard) + 10 * calls_in_flight())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert counts(guard) == 3


def test_who_is_gone_is_forgotten(here):
    one = InFlight()
    token = one.token
    assert (one.count(), here()) == (1, 1)
    del one
    gc.collect()
    assert here() == 0
    del token


def test_where_references_are_not_counted_nobody_is_seen(monkeypatch):
    monkeypatch.setattr("wsgi_busyguard.adapters.readers.in_flight._references", lambda thing: 0)
    assert InFlight().count() == 0


def test_it_says_what_it_is():
    assert repr(InFlight()) == "<InFlight: the calls of the app; no queue, no capacity>"


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
