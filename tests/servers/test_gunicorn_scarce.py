"""A gunicorn worker that is made while no thread can be started: it serves, and catches up later.

gunicorn ends its master, and with it the site, when a worker cannot boot. So nothing of the guard's
may raise while a worker is made, at a start or at a reload.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
from support.client import Line, ask, eventually, request
from support.processes import environment

from wsgi_busyguard import Board

# In workers no thread can be started while the file is there, as under RLIMIT_NPROC or pids.max.
SCARCE = """
import os, threading
def post_fork(server, worker):
    for name in ("_start_new_thread", "_start_joinable_thread"):  # the latter from Python 3.13 on
        start = getattr(threading, name, None)
        def scarce(*arguments, start=start, **named):
            if os.path.exists({file!r}):
                raise RuntimeError("can't start new thread")
            return start(*arguments, **named)
        if start is not None:
            setattr(threading, name, scarce)
"""

# gevent's threads are greenlets, which no limit counts; its workers are here for all the rest.
KINDS = ["GuardedThreads", "GuardedSync", "GuardedGevent", "gthread", "sync", "gevent"]


@pytest.fixture
def scarce(tmp_path):
    return tmp_path / "scarce"


@pytest.fixture
def start(gunicorn, conf, scarce, tmp_path):
    """Starts a gunicorn with one worker, guarded by its class or by its app."""

    def start(kind):
        arguments = [conf(SCARCE.format(file=str(scarce))), "-w1", "--timeout=3"]
        if kind.endswith("hreads") or kind == "gthread":
            arguments += ["--threads", "2"]
        board = tmp_path / "board"
        if kind.startswith("Guarded"):
            push = "tcp:127.0.0.1:1#app/web1"
            return gunicorn(*arguments, kind=kind, board=board, push=push)
        env = environment(BOARD=str(board))
        return gunicorn(*arguments, kind=kind, app="scarce_app:application", env=env, ports=False)

    return start


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def another(pid, first):
    """Wait until there is one child, another than the first; return it."""
    [second] = eventually(lambda: len(now := children(pid)) == 1 and now != [first] and now)
    return second


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_is_made_without_threads_serves_and_catches_up(start, scarce, tmp_path, kind):
    served = start(kind)
    [first] = children(served.popen.pid)
    if not kind.startswith("Guarded"):
        assert ask(served.port, path="/").text == "served"
    board = Board(tmp_path / "board")
    eventually(lambda: [(row.pid, row.state) for row in board.rows()] == [(first, "ready")])
    scarce.touch()
    os.kill(first, signal.SIGKILL)
    second = another(served.popen.pid, first)
    if kind.startswith("Guarded"):  # others look for a slot when they are called, without a thread
        eventually(lambda: [row.pid for row in board.rows()] == [second])

    # Threaded workers serve nobody without threads. The guarded one says so; the stock one dies.
    expected = {"GuardedThreads": 503, "gthread": None}.get(kind, 200)
    if expected is not None:
        assert [ask(served.port, path="/x").status for _ in range(5)] == [expected] * 5
    if kind.startswith("Guarded"):  # it beats all the same, so that nobody takes it for stuck
        began = time.monotonic()
        eventually(lambda: time.monotonic() > began + 1.5)
        eventually(lambda: board.rows()[0].beat < 1)
    assert served.popen.poll() is None
    assert children(served.popen.pid) == [second]
    if "event" not in kind:
        assert threads(second) == 1

    scarce.unlink()
    if kind.endswith("hreads"):  # with the first request it has pool threads, too
        eventually(lambda: ask(served.port, path="/x").status == 200)
    if "event" not in kind:
        if not kind.startswith("Guarded"):
            # Where nobody else comes by, the next requests start what could not be started.
            eventually(lambda: ask(served.port, path="/readyz").status == 200)
            wanted = 5  # beat, sender, push and its line
        else:
            wanted = 4  # beat, push and its line
        eventually(lambda: threads(second) >= wanted)
    eventually(lambda: board.rows()[0].beat < 1)
    eventually(lambda: [(row.pid, row.state) for row in board.rows()] == [(second, "ready")])
    assert "Traceback" not in served.output
    if "event" not in kind:
        # The stock threaded worker is not called meanwhile, so nothing is tried.
        assert served.output.count("cannot start a thread") == (kind != "gthread")
    served.signal()
    assert served.ended() == 0


def test_a_reload_to_a_guarded_class_that_cannot_listen_ends_nothing(gunicorn, conf):
    """At a start a mistake ends the master in one line; a master that serves goes on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        served = gunicorn(conf('worker_class = "sync"\n'), "-w1", kind=None, ports=False)
        [first] = children(served.popen.pid)
        assert ask(served.port, path="/x").status == 200
        conf(
            "from wsgi_busyguard.adapters.gunicorn import GuardedThreads\n"
            "worker_class = GuardedThreads\n"
            f'raw_env = ["BUSYGUARD_CHECK=127.0.0.1:{port}", "BUSYGUARD_AGENT=127.0.0.1:0"]\n'
        )
        served.signal(signal.SIGHUP)
        served.logged("cannot listen for checks: .*; going on without")
        another(served.popen.pid, first)
        eventually(lambda: ask(served.port, path="/readyz").text == "free")
        assert served.popen.poll() is None
        served.signal()
        assert served.ended() == 0


@pytest.mark.parametrize("value", ["BUSYGUARD_SLOTS=0", "BUSYGUARD_NONSENSE=1"])
def test_a_reload_to_a_guarded_class_with_a_mistake_ends_nothing(gunicorn, conf, value):
    served = gunicorn(conf('worker_class = "sync"\n'), "-w1", kind=None, ports=False)
    [first] = children(served.popen.pid)
    conf(f'worker_class = "wsgi_busyguard.adapters.gunicorn.GuardedSync"\nraw_env = [{value!r}]\n')
    served.signal(signal.SIGHUP)
    served.logged("going on with")
    another(served.popen.pid, first)
    assert ask(served.port, path="/x").status == 200
    assert served.popen.poll() is None
    served.signal()
    assert served.ended() == 0


def test_a_worker_that_has_lost_its_threads_refuses_in_words(start, scarce):
    """The stock worker dies of the first connection for which it can start no thread."""
    served = start("GuardedThreads")
    [worker] = children(served.popen.pid)
    scarce.touch()
    with Line(served.port) as line:
        line.send(request("POST", "/length", body=b"b" * 100))
        refused = line.answer()
    assert (refused.status, refused.headers["busyguard-refused"]) == (503, "queue-full")
    scarce.unlink()
    assert ask(served.port, path="/x").status == 200
    assert children(served.popen.pid) == [worker]
    assert "Traceback" not in served.output
