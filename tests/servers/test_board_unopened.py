"""A board that cannot be opened: at a start somebody is told, and a respawn goes on without.

gunicorn ends its master, and with it the site, when a worker cannot load the app.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from support.client import ask, eventually, is_check
from support.processes import Process, environment

from servers.test_gunicorn_scarce import another, children
from wsgi_busyguard import Board
from wsgi_busyguard.board.respawn import STARTING_SECONDS

APP = """
import os
from wsgi_busyguard import BusyGuard

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "6")])
    return [b"served"]

application = BusyGuard(app, board=os.environ["BOARD"])
"""

# Workers get no descriptor for a board while the file is there.
SCARCE = """
import errno, os
def post_fork(server, worker):
    for name in ("open", "memfd_create"):
        def scarce(path, *arguments, real=getattr(os, name), **named):
            if os.path.exists({file!r}) and ({board!r} in str(path) or path == "busyguard"):
                raise OSError(errno.EMFILE, "Too many open files")
            return real(path, *arguments, **named)
        setattr(os, name, scarce)
"""


@pytest.fixture
def start(gunicorn, conf, tmp_path):
    """Starts a stock gunicorn whose app has a guard with a board."""
    (tmp_path / "app.py").write_text(APP)

    def start(board, kind, hook=""):
        env = environment(BOARD=str(board))
        arguments = (conf(hook), "-w1", "--threads=2", "--pythonpath", tmp_path)
        app = "app:application"
        return gunicorn(*arguments, kind=kind, app=app, env=env, ports=False)

    return start


def on_it(board):
    """The processes that are ready on a board."""
    return [row.pid for row in board.rows() if row.state == "ready"]


def respawned(served):
    """Kill the worker; return the next one."""
    [first] = children(served.popen.pid)
    os.kill(first, signal.SIGKILL)
    return another(served.popen.pid, first)


def is_old_enough(began):
    eventually(lambda: time.monotonic() > began + STARTING_SECONDS + 1)


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_a_respawn_goes_on_without_and_joins_as_soon_as_it_can(start, tmp_path, kind):
    began = time.monotonic()
    folder = tmp_path / "run"
    folder.mkdir()
    served = start(folder / "board", kind)
    eventually(lambda: ask(served.port).text == "served")
    board = Board(folder / "board")
    eventually(lambda: on_it(board) == children(served.popen.pid))
    is_old_enough(began)

    folder.rename(tmp_path / "away")
    second = respawned(served)
    assert [ask(served.port).text for _ in range(5)] == ["served"] * 5
    assert is_check(ask(served.port, path="/readyz"))
    served.logged("cannot open a board: the folder .* is missing")

    folder.mkdir()  # and the board is not in there: it is made anew
    eventually((folder / "board").exists)
    made_anew = Board(folder / "board")
    eventually(lambda: on_it(made_anew) == [second])
    assert served.output.count("cannot open a board") == 1
    assert served.output.count("is used from now on") == 1
    assert children(served.popen.pid) == [second]
    served.signal()
    assert served.ended() == 0
    assert "Traceback" not in served.output


def test_without_a_descriptor_it_is_so_at_any_time(start, tmp_path):
    """No configuration is to blame for that."""
    scarce, board = tmp_path / "scarce", tmp_path / "board"
    served = start(board, "gthread", SCARCE.format(file=str(scarce), board=str(board)))
    assert ask(served.port).text == "served"
    known = Board(board)
    eventually(lambda: len(on_it(known)) == 1)
    scarce.touch()
    second = respawned(served)
    assert [ask(served.port).text for _ in range(5)] == ["served"] * 5
    eventually(lambda: on_it(known) == [])  # a killed process is out of it within a second
    scarce.unlink()
    eventually(lambda: on_it(known) == [second])
    assert served.output.count("cannot open a board") == 1
    assert served.popen.poll() is None


def test_at_the_first_start_gunicorn_ends_in_words(gunicorn, conf, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    env = environment(BOARD=str(tmp_path / "missing" / "board"))
    arguments = (conf(""), "-w1", "--pythonpath", tmp_path)
    served = gunicorn(
        *arguments, kind="sync", app="app:application", env=env, ports=False, wait=False
    )
    assert served.ended() == 3
    assert "is missing: make it first, or name another" in served.output


def test_who_only_imports_the_app_is_told(started, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    env = environment(BOARD=str(tmp_path / "missing" / "board"))
    imported = started(Process, [sys.executable, "-c", "import app"], cwd=tmp_path, env=env)
    assert imported.ended() == 1
    assert "FileNotFoundError: the folder" in imported.output
    assert not Path(tmp_path / "missing").exists()
