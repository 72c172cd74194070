"""uWSGI's module is a stand-in here; tests/servers/test_uwsgi.py has the real one."""

from __future__ import annotations

import os
import socket
import sys
import threading
import types

import pytest

from wsgi_busyguard import Board, BusyGuard, Load
from wsgi_busyguard.adapters.readers.uwsgi import UwsgiAdapter, WorkerAdapter, threads
from wsgi_busyguard.adapters.uwsgi import guarded_app

QUIET = {"check_root": True, "ready": "exact"}


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0), backlog=20) as listener:
        yield listener


@pytest.fixture
def clients(listener):
    """Come to the door and wait."""
    open_ones = []

    def clients(count):
        open_ones.extend(socket.create_connection(listener.getsockname()) for _ in range(count))

    yield clients
    for client in open_ones:
        client.close()


@pytest.fixture
def uwsgi(monkeypatch, listener):
    """The module as it is in the first worker of two that have one thread each."""
    module = types.ModuleType("uwsgi")
    module.numproc, module.cores, module.has_threads = 2, 1, 1
    module.sockets = [listener.fileno()]
    module.worker, module.mule, module.spooler = 1, 0, None
    module.worker_id = lambda: module.worker
    module.mule_id = lambda: module.mule
    module.i_am_the_spooler = lambda: module.spooler
    module.dicts = tuple(
        {"id": n, "pid": 1000 + n, "status": b"idle", "requests": 0} for n in (1, 2)
    )
    module.workers = lambda: module.dicts
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    monkeypatch.setitem(sys.modules, "uwsgidecorators", None)
    return module


def status(uwsgi, *statuses):
    for worker, word in zip(uwsgi.dicts, statuses, strict=True):
        worker["status"] = word


def test_of_processes_with_one_thread_each_is_known_by_its_status(uwsgi, clients, until):
    adapter = UwsgiAdapter()
    assert adapter.read() == Load(0, 0, 2)
    status(uwsgi, b"busy", b"idle")
    assert adapter.read() == Load(0, 1, 2)
    status(uwsgi, b"busy", b"sig7")
    clients(3)
    until(lambda: adapter.read() == Load(3, 2, 2))
    assert WorkerAdapter().read() == Load(3, 1, 1)
    assert threads() == 1


@pytest.mark.parametrize("word", [b"cheap", b"pause", b"idle"])
def test_who_is_not_at_work_is_not_active(uwsgi, word):
    status(uwsgi, word, b"busy")
    assert UwsgiAdapter().read() == Load(0, 1, 2)
    assert WorkerAdapter().read() == Load(0, 0, 1)


def test_a_worker_that_is_dead_is_not_active(uwsgi):
    status(uwsgi, b"busy", b"busy")
    uwsgi.dicts[1]["pid"] = 0
    assert UwsgiAdapter().read() == Load(0, 1, 2)


def test_the_capacity_may_be_given(uwsgi):
    assert UwsgiAdapter(capacity=7).read() == Load(0, 0, 7)
    with pytest.raises(ValueError, match=r"^capacity must be at least 1, not 0$"):
        UwsgiAdapter(capacity=0)


@pytest.fixture
def hanging(start):
    """Call an app through a guard, in as many threads, until the test ends."""
    leave, entered = threading.Event(), threading.Semaphore(0)

    def app(environ, start_response):
        entered.release()
        leave.wait(20)
        return []

    def hanging(guard, count):
        for _ in range(count):
            start(guard, {"REQUEST_METHOD": "GET", "PATH_INFO": "/page"}, print)
        for _ in range(count):
            assert entered.acquire(timeout=20)

    hanging.app = app
    yield hanging
    leave.set()


def test_of_threads_in_this_process_those_inside_a_guard_are_counted(uwsgi, hanging):
    uwsgi.numproc, uwsgi.cores = 1, 4
    guard = guarded_app(hanging.app)
    assert guard.monitor.load == Load(0, 0, 4)
    hanging(guard, 3)
    assert guard.monitor.load == Load(0, 3, 4)
    assert WorkerAdapter().read() == Load(0, 3, 4)


def test_one_process_knows_its_own_also_while_one_waits(uwsgi, hanging, clients, until):
    """As it is for the moment in which a free thread is about to accept."""
    uwsgi.numproc, uwsgi.cores = 1, 4
    guard = guarded_app(hanging.app)
    hanging(guard, 1)
    clients(1)
    until(lambda: guard.monitor.load[:3] == (1, 1, 4))


def test_in_other_processes_of_threads_all_are_taken_to_be_inside_while_one_waits(
    uwsgi, hanging, clients, until
):
    uwsgi.cores = 4
    guard = guarded_app(hanging.app)
    hanging(guard, 1)
    assert guard.monitor.load == Load(0, 1, 8)
    clients(1)
    until(lambda: guard.monitor.load[:3] == (1, 8, 8))
    assert WorkerAdapter().read() == Load(1, 1, 4)


@pytest.mark.parametrize("cores", [1, 4])
def test_the_check_for_which_it_is_read_is_not_counted(uwsgi, hanging, ask, cores):
    uwsgi.numproc, uwsgi.cores = 1, cores
    status(uwsgi, b"busy", b"idle")  # as it is while this very thread is called
    guard = guarded_app(hanging.app, expose_load=True)
    assert "active=0" in ask(guard, "OPTIONS", "/").text


def test_a_descriptor_that_is_somebody_elses_by_now_is_not_read(uwsgi, listener, clients):
    clients(2)
    adapter = UwsgiAdapter()
    with socket.create_server(("127.0.0.1", 0)) as other:
        name, number = listener.getsockname(), listener.detach()
        socket.socket(fileno=number).close()
        assert adapter.read() is None
        os.dup2(other.fileno(), number)
        assert other.getsockname() != name
        assert adapter.read() is None
        os.close(number)


def test_several_listeners_are_added_up_and_what_is_none_is_passed_over(uwsgi, clients, until):
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as fresh:
        uwsgi.sockets += [other.fileno(), fresh.fileno(), 9999]
        adapter = UwsgiAdapter()
        clients(2)
        with socket.create_connection(other.getsockname()):
            until(lambda: adapter.read().queued == 3)


# Where it cannot be


def test_outside_uwsgi_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "uwsgi", None)
    with pytest.raises(RuntimeError, match=r"^expected to run inside uWSGI"):
        UwsgiAdapter()
    monkeypatch.setitem(sys.modules, "uwsgi", types.ModuleType("uwsgi"))
    with pytest.raises(RuntimeError, match=r"^expected uWSGI's own module uwsgi, not"):
        guarded_app(print)


@pytest.mark.parametrize(("where", "value"), [("mule", 1), ("spooler", 1)])
def test_in_a_mule_it_says_what_to_read(uwsgi, where, value):
    setattr(uwsgi, where, value)
    with pytest.raises(RuntimeError, match=r"read the board there, by Watcher\(Board\(FILE\)\)$"):
        UwsgiAdapter()


def test_without_python_threads_it_says_the_option(uwsgi):
    uwsgi.has_threads = 0
    with pytest.raises(RuntimeError, match=r"start it with enable-threads = true$"):
        guarded_app(print)


# On a board


@pytest.fixture
def board():
    return Board()


def rows(board):
    return [(row.state, row.load) for row in board.rows()]


def test_a_worker_is_on_the_board_at_once_and_the_master_never(uwsgi, board):
    uwsgi.worker = 0
    guard = guarded_app(print, board=board, **QUIET)
    assert rows(board) == []
    uwsgi.worker = 1
    uwsgi.post_fork_hook()
    assert rows(board) == [("ready", Load(0, 0, 1))]
    leave(guard)


def leave(guard):
    guard.monitor.adapter.stop()
    guard.monitor.adapter.leave()


def test_a_gate_is_on_the_board_at_once_too(uwsgi, board):
    uwsgi.cores = 8
    guard = guarded_app(print, board=board, slots=2, max_queue=3)
    assert rows(board) == [("ready", Load(0, 0, 2))]
    leave(guard)


def test_the_master_has_no_thread_that_could_hold_a_lock_when_it_forks(uwsgi, board):
    uwsgi.worker, uwsgi.cores = 0, 12
    guard = guarded_app(print, board=board, slots=2)
    assert not guard.monitor.adapter._beats.running
    assert rows(board) == []
    uwsgi.worker = 1
    uwsgi.post_fork_hook()
    assert guard.monitor.adapter.joined
    assert guard.monitor.adapter._beats.running
    leave(guard)


def test_one_that_drains_is_not_counted_on(uwsgi, board, until):
    guard = guarded_app(print, board=board)
    guard.monitor.drain()
    until(lambda: rows(board) == [("stopping", Load(0, 0, 1))])
    leave(guard)


def test_a_hook_that_is_there_already_is_called_too(uwsgi):
    called = []
    uwsgi.post_fork_hook = lambda: called.append("before")
    guarded_app(print)
    uwsgi.post_fork_hook()
    assert called == ["before"]


def test_uwsgidecorators_keeps_the_hook_if_it_is_to_be_had(uwsgi, monkeypatch):
    decorators = types.ModuleType("uwsgidecorators")
    kept = []
    decorators.postfork = kept.append
    monkeypatch.setitem(sys.modules, "uwsgidecorators", decorators)
    guarded_app(print)
    assert len(kept) == 1
    assert not hasattr(uwsgi, "post_fork_hook")


def test_it_is_not_imported_over_what_somebody_has_set(uwsgi, monkeypatch, tmp_path):
    (tmp_path / "uwsgidecorators.py").write_text("postfork = print")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "uwsgidecorators")
    uwsgi.mule_msg_hook = print
    guarded_app(print)
    assert "uwsgidecorators" not in sys.modules
    assert callable(uwsgi.post_fork_hook)


def test_what_it_is_is_said(uwsgi, listener):
    name = f"<Listeners at [{listener.getsockname()}]>"
    assert repr(UwsgiAdapter()) == f"<UwsgiAdapter of 2 at {name}>"
    assert repr(UwsgiAdapter().share(Board())) == f"<WorkerAdapter at {name}>"
    assert isinstance(guarded_app(print), BusyGuard)
