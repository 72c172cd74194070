"""What is told from an environ, a thread and frames; with real servers: test_gate_anywhere.py."""

from __future__ import annotations

import functools
import logging
import math
import multiprocessing
import os
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from paste.httpserver import ThreadPool as PasteThreadPool

from wsgi_busyguard import BusyGuard, Load, Monitor
from wsgi_busyguard.adapters import detect as detection
from wsgi_busyguard.adapters.detect import UNPATCHED, Server, find, find_early
from wsgi_busyguard.adapters.executor import CountingExecutor
from wsgi_busyguard.adapters.first_request import WithoutChecks
from wsgi_busyguard.adapters.readers.gevent_pywsgi import PywsgiAdapter
from wsgi_busyguard.adapters.readers.in_flight import InFlight
from wsgi_busyguard.adapters.readers.paste import PasteAdapter
from wsgi_busyguard.adapters.readers.threadpool import ThreadPoolAdapter
from wsgi_busyguard.adapters.thread_budget import too_few
from wsgi_busyguard.policy import Limits


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"app"]


@pytest.fixture
def module(monkeypatch):
    """Put a module of this name and with these attributes where others look for it."""

    def module(name, **attributes):
        fake = types.ModuleType(name)
        fake.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, fake)

    return module


@pytest.fixture
def found(monkeypatch):
    """Have every guard find this server, and count how often it looks."""
    looks = []

    def found(server):
        monkeypatch.setattr(
            "wsgi_busyguard.adapters.first_request.find",
            lambda environ: looks.append(environ) or server,
        )
        return looks

    return found


@pytest.fixture
def early(monkeypatch):
    def early(server):
        monkeypatch.setattr("wsgi_busyguard.adapters.first_request.find_early", lambda: server)

    return early


# Markers

MARKERS = [
    *("gunicorn.socket", "waitress.client_disconnected", "uwsgi.version", "mod_wsgi.version"),
    *("paste.httpserver.thread_pool", "werkzeug.socket", "SERVER_SOFTWARE"),
]


@pytest.mark.parametrize(
    "thing", ["1", b"1", (1, 2), None, object(), print], ids=lambda thing: type(thing).__name__
)
def test_a_marker_of_another_type_is_none(thing):
    """Some servers merge os.environ into every environ, and frameworks put there what they like."""
    assert find(dict.fromkeys(MARKERS, thing)) is None


def test_no_server_is_imported(python):
    said = python(
        """
        import sys
        from wsgi_busyguard import BusyGuard
        from wsgi_busyguard.adapters.detect import find
        guard = BusyGuard(lambda environ, start_response: [])
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "uwsgi.version": b"2",
                   "mod_wsgi.version": (4, 9), "gunicorn.socket": "x", "asgi.scope": {}}
        import logging; logging.disable()
        guard(environ, print)
        servers = "twisted gunicorn waitress cheroot uwsgi mod_wsgi gevent granian paste.httpserver"
        print([name for name in servers.split() if name in sys.modules])
        """
    )
    assert said.strip() == "[]"


def test_uwsgi_is_told_by_its_module(module):
    assert find({"uwsgi.version": b"2.0.31"}) is None
    module("uwsgi", cores=4)
    server = find({"uwsgi.version": b"2.0.31"})
    assert (server.name, server.threads, server.counts_checks) == ("uWSGI", 4, False)
    assert find_early().threads == 4
    assert find({"uwsgi.version": "2.0.31"}) is None


def test_mod_wsgi_is_told_by_its_threads_for_its_package_can_be_imported_anywhere(module):
    module("mod_wsgi")
    assert find({"mod_wsgi.version": (4, 9, 4)}) is None
    assert find_early() is None
    module("mod_wsgi", threads_per_process=15)
    assert find({"mod_wsgi.version": (4, 9, 4)}).threads == 15
    assert find_early().name == "mod_wsgi"


def test_bjoern_is_told_by_the_function_that_runs_it():
    def found_in(module):
        runs = types.ModuleType(module)
        exec("def server_run(sock, call):\n    return call()", runs.__dict__)
        return runs.server_run(None, lambda: find({}))

    server = found_in("bjoern")
    assert (server.name, server.threads, server.adapter) == ("bjoern", math.inf, None)
    assert "leave it out" in server.blocks
    assert found_in("unicorn") is None


def test_granian_is_told_by_what_its_worker_process_was_given(monkeypatch):
    def _spawn_wsgi_worker(worker_id, callback, blocking_threads, http1_settings, metrics):
        """Take what granian's own takes, and in that order."""

    @functools.wraps(_spawn_wsgi_worker)
    def wrapped(worker_id, process_name, callback_loader, env_files, *args):
        """Take what multiprocessing gives it, as granian's own wrapper does."""

    process = types.SimpleNamespace(
        _target=wrapped, _args=(3, "name", None, (), 8, None, (1, None))
    )
    monkeypatch.setattr(multiprocessing, "current_process", lambda: process)
    wrapped.__module__ = "granian.server.mp"
    assert find({}) == Server("granian", 8, start="granian --blocking-threads {0}")
    wrapped.__module__ = "hypercorn.run"
    assert find({}) is None


def test_a_thread_of_an_executor_is_told_wherever_it_comes_from():
    with ThreadPoolExecutor(3, "mine") as executor:
        server = executor.submit(find, {}).result()
        assert (server.threads, repr(server.adapter())) == (3, "<ThreadPoolAdapter of mine>")
        assert not server.counts_checks
    assert find({}) is None


def test_an_executor_that_counts_by_itself_is_asked_itself():
    with CountingExecutor(3) as executor:
        server = executor.submit(find, {}).result()
        assert (server.threads, server.adapter()) == (3, executor)


def test_what_a_look_raises_is_passed_over(monkeypatch):
    def broken(environ):
        raise AttributeError("a name of tomorrow")

    monkeypatch.setattr(detection, "OF_A_CALL", (broken, lambda environ: Server("next")))
    assert find({}).name == "next"


def test_without_a_server_none_is_found():
    assert find({}) is None
    assert find_early() is None


# Readers


def test_readers_say_what_they_wanted():
    with pytest.raises(TypeError, match=r"^executor must be a ThreadPoolExecutor, not 3$"):
        ThreadPoolAdapter(3)
    with pytest.raises(TypeError, match=r"^pool must be a paste.httpserver.ThreadPool, .*not 3$"):
        PasteAdapter(3)
    with pytest.raises(TypeError, match=r"^server must be .* with spawn=Pool\(N\), not 3$"):
        PywsgiAdapter(3)


def test_an_executor_that_has_yet_to_start_its_threads_has_its_whole_capacity():
    with ThreadPoolExecutor(3) as executor:
        adapter = ThreadPoolAdapter(executor)
        assert adapter.read() == Load(0, 0, 3)


class Hanging:
    """Jobs that run until each is let go."""

    def __init__(self):
        self._go_on = threading.Semaphore(0)

    def hang(self):
        assert self._go_on.acquire(timeout=20)

    def finish(self):
        self._go_on.release()


@pytest.mark.parametrize("kind", ["executor", "paste"])
@pytest.mark.parametrize("sent", [0, 1, 5, 6, 20])
def test_of_n_sent_to_five_threads_five_are_active_and_the_rest_is_queued(
    until, kind, sent, environ
):
    jobs = Hanging()
    if kind == "executor":
        pool = ThreadPoolExecutor(5)
        adapter, close = ThreadPoolAdapter(pool), pool.shutdown
        guard = BusyGuard(lambda environ, start_response: [environ["x.job"]()])

        def submit(job):
            return pool.submit(guard, environ("GET", "/x", **{"x.job": job}), print)
    else:
        pool = PasteThreadPool(5, daemon=True)
        adapter, submit, close = PasteAdapter(pool), pool.add_task, pool.shutdown
        until(lambda: len(pool.idle_workers) == 5)
    for _ in range(sent):
        submit(jobs.hang)
    until(lambda: adapter.read() == Load(max(0, sent - 5), min(sent, 5), 5))
    for _ in range(sent):
        jobs.finish()
    until(lambda: adapter.read() == Load(0, 0, 5))
    close()


# The first call


def done(guard):
    """Return whether a guard has done what its first call is for; any call may time, or look."""
    look = guard._crowd._look
    return all(step.sampled is not None or step.work == look for step in guard._first)


def test_the_guard_reads_what_it_finds_and_looks_no_more(ask, found, adapter, caplog):
    adapter.load = Load(7, 4, 4)
    looks = found(Server("Peanut", 4, lambda: adapter))
    guard = BusyGuard(app)
    assert isinstance(guard.monitor.adapter, InFlight)
    for _ in range(3):
        assert ask(guard, "GET", "/x").text == "app"
    assert len(looks) == 1
    assert done(guard)
    assert guard.monitor.load[:3] == (7, 4, 4)
    assert repr(guard.monitor.adapter) == repr(adapter)
    assert ask(guard, "OPTIONS", query="ready=exact")[::3] == (503, "busy")
    assert caplog.records == []


def test_listeners_from_before_the_first_call_hear_of_what_is_found(ask, found, telling, until):
    heard = []
    found(Server("Peanut", 4, lambda: telling))
    guard = BusyGuard(app, on_busy=heard.append, on_free=heard.append)
    telling.set(Load(7, 4, 4))
    ask(guard, "GET", "/x")
    until(lambda: [change.state.value for change in heard] == ["busy"])
    telling.set(Load(0, 0, 4))
    until(lambda: [change.state.value for change in heard] == ["busy", "free"])


@pytest.mark.parametrize(
    ("load", "without"),
    [
        (Load(0, 1, 4), Load(0, 0, 4)),
        (Load(1, 4, 4), Load(0, 4, 4)),
        (Load(9, 4, 4), Load(8, 4, 4)),
        (Load(0, 0, 4), Load(0, 0, 4)),
        (Load(0, 3, None), Load(0, 3, None)),
        (None, None),
    ],
)
def test_a_check_that_takes_a_thread_is_not_counted(adapter, load, without):
    adapter.load = load
    assert WithoutChecks(adapter, [None]).read() == without
    assert WithoutChecks(adapter, []).read() == load


def test_a_check_does_not_see_itself(ask, found, adapter):
    """One waits, and only because the check has the thread that it would have."""
    adapter.load = Load(1, 4, 4)
    found(Server("Peanut", 4, lambda: adapter))
    guard = BusyGuard(app, ready="exact")
    assert ask(guard, "OPTIONS").text == "free"
    adapter.load = Load(2, 4, 4)
    assert ask(guard, "OPTIONS").text == "busy"


def test_behind_another_guard_its_monitor_is_read_and_nothing_is_said(ask, adapter, caplog):
    adapter.load = Load(7, 4, 4)
    inner = BusyGuard(app)
    outer = BusyGuard(inner, monitor=Monitor(adapter), client_timeout=5.0)
    assert ask(outer, "GET", "/x").text == "app"
    assert inner.monitor.load == Load(7, 4, 4)
    assert inner.monitor.state.value == "busy"
    assert caplog.records == []


def test_the_monitor_of_another_guard_is_followed_where_it_turns_to(ask, adapter):
    monitor, inner = Monitor(adapter), BusyGuard(app)
    assert ask(BusyGuard(inner, monitor=monitor, client_timeout=5.0), "GET", "/x").text == "app"
    other = type(adapter)()
    other.load = Load(1, 1, 1)
    monitor.read_from(other)
    assert inner.monitor.load == Load(1, 1, 1)


def test_a_server_that_cannot_be_read_is_told_once_with_the_way_out(ask, found, caplog):
    found(Server("Peanut", why="is a nut", way="crack it"))
    guard = BusyGuard(app)
    for _ in range(3):
        ask(guard, "GET", "/x")
        assert ask(guard, "OPTIONS").text == "free"
    [record] = caplog.records
    assert record.getMessage() == "this server (Peanut) is a nut; every check says free; crack it"


def test_a_reader_that_cannot_be_made_is_logged_and_the_request_served(ask, found, caplog):
    def broken():
        raise ImportError("no such adapter")

    found(Server("Peanut", 4, broken))
    guard = BusyGuard(app)
    for _ in range(3):
        assert ask(guard, "GET", "/x").text == "app"
    [record] = caplog.records
    assert record.getMessage() == "could not find out which server this is"
    assert ask(guard, "OPTIONS").text == "free"


def test_of_many_first_calls_at_once_one_looks_and_none_goes_ahead(
    environ, found, adapter, start, hurry
):
    looks = found(Server("Peanut", 4, lambda: adapter))
    guard = BusyGuard(app)
    together = threading.Barrier(8)

    def visit():
        together.wait()
        assert guard(environ("GET", "/x"), lambda *said: None) == [b"app"]
        assert repr(guard.monitor.adapter) == repr(adapter)

    for thread in [start(visit) for _ in range(8)]:
        thread.join(20)
    assert len(looks) == 1


def test_who_comes_while_one_looks_waits_for_what_it_finds(environ, found, adapter, start):
    """Nobody may be inside a gate when that is given up."""
    others = []

    def look():
        others.append(start(guard, environ("GET", "/x"), lambda *said: None))
        others[0].join(0.1)
        assert others[0].is_alive()
        return adapter

    looks = found(Server("Peanut", 4, look))
    guard = BusyGuard(app)
    assert guard(environ("GET", "/x"), lambda *said: None) == [b"app"]
    others[0].join(20)
    assert len(looks) == 1
    assert repr(guard.monitor.adapter) == repr(adapter)


@pytest.mark.parametrize("on_board", [False, True], ids=["alone", "on a board"])
def test_a_child_process_looks_anew(environ, found, adapter, on_board, tmp_path):
    adapter.load = Load(7, 4, 4)
    looks = found(Server("Peanut", 4, lambda: adapter))
    guard = BusyGuard(app, **({"board": tmp_path / "board"} if on_board else {}))

    def reads():
        reader = guard.monitor.adapter
        return reader.adapter if on_board else reader

    def visit():
        guard(environ("GET", "/x"), lambda *said: None)

    visit()
    assert repr(reads()) == repr(adapter)
    pid = os.fork()
    if pid == 0:
        try:
            assert isinstance(reads(), InFlight)
            assert guard._first
            visit()
            assert len(looks) == 2
            assert repr(reads()) == repr(adapter)
            visit()
            assert len(looks) == 2
            assert done(guard)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert done(guard)
    if on_board:
        guard.monitor.adapter.stop()


def test_a_monitor_turns_to_another_reader_and_its_listeners_stay(telling, adapter, until):
    heard = []
    monitor = Monitor(adapter, on_busy=heard.append, interval=0.01)
    with pytest.raises(TypeError, match=r"^adapter must have a read\(\) that returns a Load"):
        monitor.read_from(3)
    monitor.read_from(telling)
    telling.set(Load(7, 4, 4))
    assert len(heard) == 1
    adapter.load = Load(0, 0, 4)
    monitor.read_from(adapter)
    until(lambda: monitor.load == Load(0, 0, 4))
    adapter.load = Load(7, 4, 4)
    until(lambda: len(heard) == 2)


def test_a_monitor_that_turns_to_a_reader_that_tells_nothing_looks(telling, adapter, until):
    heard = []
    monitor = Monitor(telling, on_busy=heard.append, interval=0.01)
    adapter.load = Load(7, 4, 4)
    monitor.read_from(adapter)
    until(lambda: len(heard) == 1)


def test_on_a_board_what_is_found_is_posted(ask, found, adapter, tmp_path):
    adapter.load = Load(7, 4, 4)
    found(Server("Peanut", 4, lambda: adapter))
    guard = BusyGuard(app, board=tmp_path / "board")
    ask(guard, "GET", "/x")
    assert guard.monitor.load[:3] == (7, 4, 4)
    guard.monitor.adapter.stop()
    guard.monitor.adapter.leave()


# Room for a gate


def test_the_words_for_too_few_threads():
    few = too_few(Limits(8, 32, 1.0), 8, "Peanut", "peanut --threads={0}")
    assert few == (
        "threads=8 is too few for slots=8 and max_queue=32: start the server with at least 42"
        " threads (peanut --threads=42), or leave slots out"
    )
    assert too_few(Limits(8, 32, 1.0), 8, "Peanut") == (
        "threads=8 is too few for slots=8 and max_queue=32: start the server with at least 42"
        " threads, or leave slots out"
    )
    assert too_few(Limits(8, math.inf, 1.0), 20, "Peanut") == (
        "threads=20 is too few for slots=8 and max_queue=inf: make max_queue 10 or less"
    )
    assert too_few(Limits(8, math.inf, 1.0), 9, "Peanut", "peanut --threads={0}") == (
        "threads=9 is too few for slots=8 and max_queue=inf: make max_queue 32 and start the"
        " server with at least 42 threads (peanut --threads=42), or leave slots out"
    )
    assert too_few(Limits(1, 0, 1.0), 1, "Peanut", "peanut --threads={0}") == (
        "slots=1 makes no sense on Peanut, which runs one request at a time in each process:"
        " nothing can queue here; start the server with at least 3 threads (peanut --threads=3),"
        " or leave slots out"
    )
    assert too_few(Limits(8, 32, 1.0), 41, "Peanut") is not None
    assert too_few(Limits(8, 32, 1.0), 42, "Peanut") is None
    assert too_few(Limits(8, math.inf, 1.0), math.inf, "Peanut") is None


def test_a_gate_without_room_is_refused_where_that_is_known_so_early(early):
    early(Server("Peanut", 8, start="peanut --threads={0}"))
    with pytest.raises(ValueError, match=r"^threads=8 is too few .* \(peanut --threads=42\), or"):
        BusyGuard(app, slots=8)
    BusyGuard(app, slots=2, max_queue=4)
    BusyGuard(app)


UNTIL_THEN = "; until then "


@pytest.mark.parametrize("on_board", [False, True], ids=["alone", "on a board"])
def test_a_gate_without_room_is_given_up_and_the_servers_own_queue_is_read(
    ask, found, adapter, caplog, on_board, tmp_path
):
    """Those who wait at it would keep out whom the server alone would serve."""
    adapter.load = Load(7, 4, 4)
    found(Server("Peanut", 4, lambda: adapter, start="peanut --threads={0}"))
    guard = BusyGuard(app, slots=1, **({"board": tmp_path / "board"} if on_board else {}))
    gate = guard.monitor.adapter.adapter if on_board else guard.monitor.adapter
    slot = gate.enter()
    for _ in range(3):
        assert ask(guard, "GET", "/x").text == "app"
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        "threads=4 is too few for slots=1 and max_queue=4: start the server with at least 7"
        f" threads (peanut --threads=7), or leave slots out{UNTIL_THEN}requests are refused at"
        " pick-up only"
    )
    assert guard.monitor.load[:3] == (7, 4, 4)
    assert ask(guard, "GET", "/readyz", "ready=exact").text == "busy"
    assert done(guard)
    gate.leave(slot)
    if on_board:
        guard.monitor.adapter.stop()


def test_where_the_servers_queue_cannot_be_read_either_that_is_in_the_same_line(ask, found, caplog):
    found(Server("Peanut", 8))
    guard = BusyGuard(app, slots=8)
    assert ask(guard, "GET", "/x").text == "app"
    assert ask(guard, "GET", "/readyz").text == "free"
    [record] = caplog.records
    nothing = "the guard refuses nothing and answers checks, which all say free"
    assert record.getMessage().endswith(UNTIL_THEN + nothing)
    assert isinstance(guard.monitor.adapter, InFlight)


def test_what_a_gate_leaves_in_the_environ_is_there_without_it_too(environ, found):
    found(Server("Peanut", 8))
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        return [b"app"]

    BusyGuard(app, slots=8, client_timeout=60.0)(environ("GET", "/x"), None)
    assert seen["busyguard.waited"] == 0.0
    assert isinstance(seen["busyguard.monitor"], Monitor)
    assert 50.0 < seen["busyguard.deadline"] - time.monotonic() <= 60.0


def test_a_reader_that_cannot_be_made_leaves_the_server_as_it_would_be_alone(ask, found, caplog):
    def broken():
        raise RuntimeError("of tomorrow")

    found(Server("Peanut", 2, broken))
    guard = BusyGuard(app, slots=1)
    slot = guard.monitor.adapter.enter()
    assert ask(guard, "GET", "/x").text == "app"
    assert "is too few" in caplog.text
    guard.monitor.adapter.leave(slot)


def test_a_child_process_that_has_room_has_its_gate(ask, found, adapter):
    found(Server("Peanut", 2, lambda: adapter))
    guard = BusyGuard(app, slots=4)
    gate = guard.monitor.adapter
    ask(guard, "GET", "/x")
    assert repr(guard.monitor.adapter) == repr(adapter)
    pid = os.fork()
    if pid == 0:
        try:
            found(Server("Peanut", 100))
            assert guard.monitor.adapter is gate
            ask(guard, "GET", "/x")
            assert guard.monitor.adapter is gate
            assert gate.counts().served == 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_where_nobody_knows_the_threads_that_is_said_once_with_the_numbers(ask, found, caplog):
    found(None)
    guard = BusyGuard(app, slots=4, max_queue=20)
    for _ in range(3):
        ask(guard, "GET", "/x", SERVER_SOFTWARE="Peanut/1")
    [record] = caplog.records
    assert record.getMessage() == (
        "cannot tell how many threads this server (Peanut/1) has: with slots=4 and max_queue=20"
        " checks wait unless it has at least 26"
    )


def test_where_one_who_waits_would_block_all_there_is_no_gate(ask, found, caplog):
    """A greenlet that is not patched waits with the whole thread."""
    found(Server("gevent.pywsgi", math.inf, blocks=UNPATCHED))
    guard = BusyGuard(app, slots=1)
    slot = guard.monitor.adapter.enter()
    assert ask(guard, "GET", "/x").text == "app"
    assert isinstance(guard.monitor.adapter, InFlight)
    assert "gevent.monkey.patch_all()" in caplog.text
    del slot
