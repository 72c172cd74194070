"""Real servers on a board, some of whose processes are stopped, or cannot get a slot there."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from balancers.test_agent import AGENT
from support.client import ask, check, eventually, figures, many, together
from support.processes import environment
from support.uwsgis import Uwsgi

from wsgi_busyguard import Board

# What makes the workers of a gunicorn fail in their first moment, as long as a file is there.
CONFIGURED = """
import errno, os, signal
from pathlib import Path
from wsgi_busyguard.board import publisher
from wsgi_busyguard.board.table import Table

FAILS, STOPS = Path({folder!r}, "fails"), Path({folder!r}, "stops")
born, vacant = publisher.born, Table._vacant

def fails(*who):
    if FAILS.exists():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return born(*who)

def stops(*look):
    if STOPS.exists():
        STOPS.write_text(str(os.getpid()))
        STOPS.rename(STOPS.with_name("stopped"))
        os.kill(os.getpid(), signal.SIGSTOP)
    return vacant(*look)

publisher.born, Table._vacant = fails, stops
"""


@pytest.fixture
def configured(gunicorn, tmp_path):
    """Start a gunicorn whose workers cannot join while ``fails`` is there, or stop at ``stops``."""
    path = tmp_path / "gunicorn_conf.py"
    path.write_text(CONFIGURED.format(folder=str(tmp_path)))
    return lambda *arguments, **options: gunicorn("-c", path, *arguments, **options)


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync"])
def test_workers_that_cannot_join_the_board_serve_and_are_not_absent_and_join_later(
    configured, tmp_path, kind
):
    (tmp_path / "fails").touch()
    served = configured("-w2", "--threads=2", kind=kind, ports=False, check="127.0.0.1:0")
    served.check = int(served.logged(r"checks at http\S*:(\d+)"))
    assert ask(served.port, path="/").status == 200
    eventually(lambda: check(served.check).status == 200)
    until = time.monotonic() + 3  # longer than patience
    while time.monotonic() < until:
        assert (check(served.check).status, check(served.check).text) == (200, "free")
        time.sleep(0.05)
    assert served.load["processes"] == []
    (tmp_path / "fails").unlink()
    served.all_ready(2)
    assert served.output.count("this process is not on") == 2
    served.signal()
    assert served.ended() == 0


def test_a_worker_that_is_stopped_while_it_claims_a_row_does_not_stop_the_master(
    configured, tmp_path
):
    """It replaces those that die, goes on to answer, and ends when it is told.

    gunicorn itself never misses one that has not served yet.
    """
    served = configured("-w2", "--threads=2")
    served.all_ready(2)
    first, second = served.workers
    (tmp_path / "stops").touch()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: (tmp_path / "stopped").exists())
    os.kill(second, signal.SIGKILL)
    eventually(lambda: served.output.count("Booting worker") == 4)  # one more, which has no row yet
    assert ask(served.port, path="/").status == 200
    eventually(lambda: "this process is not on" in served.output)
    assert check(served.check).status == 200
    os.kill(int((tmp_path / "stopped").read_text()), signal.SIGKILL)
    served.all_ready(2)


def test_a_master_beside_a_worker_that_is_stopped_while_it_claims_a_row_ends_when_told(
    configured, tmp_path
):
    served = configured("-w2", "--threads=2", "--graceful-timeout=1")
    served.all_ready(2)
    (tmp_path / "stops").touch()
    os.kill(served.workers[0], signal.SIGKILL)
    eventually(lambda: (tmp_path / "stopped").exists())
    served.signal()
    assert served.ended() == 0


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync"])
def test_where_all_workers_are_stopped_and_somebody_waits_damped_says_no(gunicorn, kind):
    served = gunicorn("-w2", "--threads=1", kind=kind)
    served.all_ready(2)
    workers = served.workers
    try:
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        answers, threads = many(1, served.port, path="/")
        eventually(lambda: served.load["queued"] == 1)
        eventually(lambda: (check(served.check).status, check(served.check).text) == (503, "busy"))
        assert ask(served.check, path="/livez").status == 200
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    together(threads)
    assert [answer.status for answer in answers] == [200]
    eventually(lambda: check(served.check).status == 200)


def test_a_call_that_keeps_the_interpreter_is_seen_when_somebody_waits(gunicorn):
    served = gunicorn("-w1", "--threads=4")
    served.all_ready(1)
    _, one = many(1, served.port, path="/seize/5")
    eventually(lambda: served.load["processes"][0]["beat"] > 0.5)
    _, another = many(1, served.port, path="/")
    eventually(lambda: check(served.check).status == 503)
    together(one + another)
    eventually(lambda: check(served.check).status == 200)


# Beside servers that come and go


SHOP = """
from flask import Flask
from wsgi_busyguard import BusyGuard

app = Flask("shop")
app.wsgi_app = BusyGuard(app.wsgi_app, slots=4, board={board!r})


@app.route("/")
def home():
    return "home"
"""


@pytest.fixture
def shop(tmp_path):
    """Write an app whose guard posts on a board; return what its processes need."""
    (tmp_path / "shop.py").write_text(SHOP.format(board=str(tmp_path / "run" / "board")))
    (tmp_path / "run").mkdir()
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    return {"env": env, "cwd": tmp_path}


@pytest.fixture
def agent(process, tmp_path):
    """Start ``busyguard agent`` for that board, and return its check port."""

    def agent(env, cwd):
        board = tmp_path / "run" / "board"
        told = process(*AGENT, "--board", board, "--check", "127.0.0.1:0", env=env, cwd=cwd)
        return int(told.line("checks at http://127.0.0.1:"))

    return agent


def says(port):
    """What an agent's check port says: the status, the word, and the capacity."""
    answer = check(port)
    return answer.status, answer.text, figures(port)["capacity"]


def test_a_stock_server_is_there_before_its_first_request(process, shop, agent):
    """A balancer that asks the agent sends none before."""
    port = agent(**shop)
    assert says(port)[:2] == (503, "absent")
    gunicorn = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "-w", "2"]
    process(*gunicorn, "-k", "gthread", "--threads", "30", "shop:app", **shop)
    eventually(lambda: says(port) == (200, "free", 8))


@pytest.mark.slow
def test_of_a_debug_server_that_reloads_only_the_child_is_counted(process, shop, agent):
    port = agent(**shop)
    flask = [sys.executable, "-m", "flask", "--app", "shop", "run", "--debug", "--port", "0"]
    served = process(*flask, **shop)
    eventually(lambda: says(port) == (200, "free", 4))
    # For a moment the parent is counted, too: rather twice than not at all.
    eventually(lambda: counted(tmp(shop), served.popen.pid) == {"parent": False, "child": True})
    assert says(port) == (200, "free", 4)
    served.reap()
    eventually(lambda: says(port)[:2] == (503, "absent"))


def tmp(shop):
    return shop["cwd"] / "run" / "board"


def counted(path, parent):
    """Say whether a process and its child are counted in the sum of a board, as far as known."""
    rows = Board(path).rows()
    return {"parent" if row.pid == parent else "child": row.state == "ready" for row in rows}


@pytest.mark.slow
def test_a_mule_finds_a_board_that_was_made_anew(started, tmp_path, held):
    """By somebody who removed the file, and something that made it again."""
    server = started(Uwsgi, tmp_path, 2, 2, checks="mule")
    eventually(lambda: server.shows(queued=0, active=0, capacity=4))
    (tmp_path / "board").unlink()
    board = Board(tmp_path / "board")
    eventually(lambda: board.read()[:3] == (0, 0, 4))
    _, threads = many(1, server.port, path=held.path)
    eventually(lambda: server.shows(queued=0, active=1, capacity=4))
    eventually(lambda: board.read()[:3] == (0, 1, 4))
    held.let_go()
    together(threads)


def test_the_workers_of_a_master_and_itself_find_a_board_that_was_made_anew(
    gunicorn, tmp_path, held
):
    path = tmp_path / "board"
    served = gunicorn("-w2", "--threads=2", board=path)
    served.all_ready(2)
    path.unlink()
    board = Board(path)
    eventually(lambda: board.read()[:3] == (0, 0, 4))
    served.all_ready(2)
    os.kill(served.workers[0], signal.SIGKILL)
    eventually(lambda: board.read()[:3] == (0, 0, 4) and len(board.rows()) == 2)
    served.all_ready(2)
    _, threads = many(3, served.port, path=held.path)
    eventually(lambda: sum(board.read()[:2]) == 3)
    assert check(served.check).status == 200
    held.let_go()
    together(threads)
