"""``BusyGuard(app, board=...)`` under a server that forks and knows nothing of it."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from support.client import ask, eventually, many, together
from support.processes import environment

from wsgi_busyguard import Board
from wsgi_busyguard.cli import main

APP = """
import os, time
from wsgi_busyguard import BusyGuard

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/sleep/"):
        time.sleep(float(path[7:]))
    while path.startswith("/until/") and not os.path.exists(path[6:]):
        time.sleep(0.02)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]

application = BusyGuard(app, slots=2, max_queue=20, max_wait=30, board=os.environ["BOARD"])
"""

KINDS = {
    "gthread": ["--workers=3", "--worker-class=gthread", "--threads=24"],
    "gthread, preload": ["--workers=3", "--worker-class=gthread", "--threads=24", "--preload"],
    "gevent": ["--workers=3", "--worker-class=gevent"],
    "gevent, preload": ["--workers=3", "--worker-class=gevent", "--preload"],
}


def listens(pid):
    """Whether a worker of gunicorn has come so far that it hears when it is told to end.

    What comes between its fork and its own handlers, of which that for SIGABRT is the last, is lost
    on it; then gunicorn's master waits for its graceful timeout, which is 30 s.
    """
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return bool(int(caught[1], 16) & 1 << signal.SIGABRT - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_worker_is_counted_and_the_master_is_not(process, tmp_path, held, kind):
    (tmp_path / "guarded.py").write_text(APP)
    path = tmp_path / "board"
    board = Board(path)
    env = environment(BOARD=str(path))
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    socket_path = tmp_path / "web"
    gunicorn = [sys.executable, "-m", "gunicorn", "--bind", f"unix:{socket_path}"]
    served = process(*gunicorn, *KINDS[kind], "guarded:application", env=env, cwd=tmp_path)
    eventually(lambda: board.read()[:3] == (0, 0, 6))
    states = sorted(row.state for row in board.rows())
    assert states == ["ready"] * 3 + ["starting"] * ("preload" in kind)
    assert check_at(socket_path).text == "free"
    answers, threads = many(8, None, path=held.path, unix=str(socket_path))
    eventually(lambda: board.read().active >= 2)
    told = check_at(socket_path)
    held.let_go()
    together(threads)
    assert {answer.status for answer in answers} == {200}
    assert told.status == 200
    victim = next(row.pid for row in board.rows() if row.state == "ready")
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in {row.pid for row in board.rows()})
    eventually(lambda: board.read()[:3] == (0, 0, 6))  # the one in its place
    eventually(lambda: all(map(listens, (row.pid for row in board.rows() if row.state == "ready"))))
    served.signal()
    assert served.ended() == 0
    eventually(lambda: board.rows() == [])


@pytest.mark.parametrize("more", [["sync"], ["sync", "--preload"], ["gthread"]], ids=" ".join)
def test_what_waits_for_all_of_them_is_posted_once(process, tmp_path, held, more):
    """Each worker finds out by itself which server it is in, and sees the same accept queue."""
    (tmp_path / "guarded.py").write_text(APP.replace("slots=2, max_queue=20, max_wait=30, ", ""))
    board = Board(tmp_path / "board")
    env = environment(BOARD=str(board.path))
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    web = tmp_path / "web"
    command = [sys.executable, "-m", "gunicorn", "--bind", f"unix:{web}", "--workers=3"]
    command += ["--worker-connections=1", "guarded:application", "--worker-class", *more]
    process(*command, env=env, cwd=tmp_path)
    eventually(lambda: [row.state for row in board.rows()].count("ready") == 3)
    _, first = many(12, None, path="/sleep/0.1", unix=str(web))  # by which each meets its server
    together(first)
    eventually(lambda: board.read()[:3] == (0, 0, 3))
    _, threads = many(12, None, path=held.path, unix=str(web))
    eventually(lambda: board.read()[:3] == (9, 3, 3))
    held.let_go()
    together(threads)


def check_at(path):
    return ask(None, "OPTIONS", "/", unix=str(path), version="1.0")


def test_a_server_drains_from_outside_until_it_is_started_anew(process, tmp_path):
    """Through a worker that is killed meanwhile; the master has imported the guard, and forks."""
    (tmp_path / "guarded.py").write_text(APP)
    board = Board(tmp_path / "board")
    env = environment(BOARD=str(board.path))
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    web = tmp_path / "web"
    command = [sys.executable, "-m", "gunicorn", "--bind", f"unix:{web}", "--preload"]
    command += ["--worker-class=gthread", "--threads=24", "guarded:application"]

    def workers():
        """Return those that serve, once there are any: the master listens, too, until then."""
        states = {row.pid: row.state for row in board.rows()}
        return [pid for pid in states if states[pid] == "ready" and pid != served.popen.pid]

    served = process(*command, env=env, cwd=tmp_path)
    eventually(lambda: len(workers()) == 1)
    (worker,) = workers()
    assert main(["drain", "--board", str(board.path)]) == 0
    assert check_at(web).text == "draining"
    assert ask(None, "GET", "/", unix=str(web)).status == 200
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: len(workers()) == 1 and workers() != [worker])
    assert check_at(web).text == "draining"
    eventually(lambda: all(map(listens, workers())))
    served.signal()
    assert served.ended() == 0
    served = process(*command, env=env, cwd=tmp_path)
    eventually(lambda: len(workers()) == 1)
    assert check_at(web).text == "free"
