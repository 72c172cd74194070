"""``busyguard agent`` in a real process, beside real servers."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys

import pytest
from servers.test_serve import APP, COMMAND
from support.client import ask, check, checks, eventually, figures, many, together
from support.processes import Process, environment

from wsgi_busyguard import Board

AGENT = [*COMMAND, "agent"]


class Agent(Process):
    """``busyguard agent`` with ports from the kernel."""

    def __init__(self, board, *options):
        ports = ["--check=127.0.0.1:0", "--agent=127.0.0.1:0"]
        super().__init__([*AGENT, f"--board={board}", *ports, *options], server="checks")
        assert self.line("watching the board ") == str(board)
        self.check = int(self.line("checks at http://127.0.0.1:"))
        self.agent = int(self.line("agent at tcp://127.0.0.1:"))

    @property
    def ready(self):
        answer = ask(self.check, path="/readyz")
        return answer.status, answer.text

    @property
    def live(self):
        answer = ask(self.check, path="/livez")
        return answer.status, answer.text

    @property
    def load(self):
        return figures(self.check)

    @property
    def line_for_haproxy(self):
        with socket.create_connection(("127.0.0.1", self.agent), 10) as connection:
            connection.sendall(b"lb1\n")
            return connection.makefile("rb").read()


class Serve(Process):
    """``busyguard serve app:application --board`` at a port from the kernel."""

    def __init__(self, folder, board, server, *options):
        (folder / "app.py").write_text(APP)
        command = [*COMMAND, "serve", "app:application", "--listen=127.0.0.1:0"]
        options = [f"--board={board}", f"--server={server}", *options]
        super().__init__([*command, *options], cwd=folder, server=server)
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", self.line("serving "))[1])


@pytest.fixture
def board(tmp_path):
    return tmp_path / "board"


@pytest.fixture
def agent(started, board):
    return lambda *options: started(Agent, board, *options)


@pytest.fixture(params=["werkzeug", "twisted"])
def serve(request, started, tmp_path, board):
    """Starts ``busyguard serve`` with a board, on one server or the other."""
    return lambda *options: started(Serve, tmp_path, board, request.param, *options)


def test_the_server_may_come_and_go_and_the_agent_says_so(agent, serve):
    agent = agent("--patience=0.5")
    assert agent.ready == (503, "absent")
    assert agent.live == (200, "alive")
    assert agent.line_for_haproxy == b"up\n"
    served = serve("--threads=3")
    eventually(lambda: agent.ready == (200, "free"))
    assert agent.line_for_haproxy == b"up maxconn:3\n"
    served.signal(signal.SIGKILL)
    eventually(lambda: agent.ready == (503, "absent"))
    assert agent.live == (200, "alive")
    again = serve("--threads=5")
    eventually(lambda: agent.load["capacity"] == 5)
    eventually(lambda: agent.ready == (200, "free"))
    again.signal()
    assert again.ended() == 0
    eventually(lambda: agent.ready == (503, "absent"))


def test_the_agent_may_come_after_the_server(agent, serve):
    serve("--threads=3")
    serve("--threads=4")
    agent = agent()
    eventually(lambda: [row["state"] for row in agent.load["processes"]] == ["ready"] * 2)
    assert agent.ready == (200, "free")
    load = agent.load
    assert (load["state"], load["capacity"], load["queued"]) == ("free", 7, 0)
    assert sorted(row["capacity"] for row in load["processes"]) == [3, 4]


def test_the_truth_of_all_processes_is_told_by_each_and_by_the_agent(agent, serve, held):
    one, other = serve("--threads=2", "--max-wait=30"), serve("--threads=2", "--max-wait=30")
    agent = agent("--ready=exact")
    eventually(lambda: agent.load["capacity"] == 4)
    answers, threads = many(9, one.port, path=held.path)
    eventually(lambda: agent.load["queued"] == 7)
    assert agent.ready == (503, "busy")
    assert check(other.port).text == "busy"  # though it has nothing to do itself
    assert ask(other.port, path="/readyz?ready=exact").status == 503
    held.let_go()
    together(threads)
    assert {answer.status for answer in answers} == {200}
    eventually(lambda: (agent.load["queued"], agent.load["active"]) == (0, 0))
    eventually(lambda: agent.ready == (200, "free"))
    eventually(lambda: check(other.port).text == "free")


def test_a_server_that_drains_is_said_to(agent, serve, held):
    agent, served = agent(), serve("--threads=2")
    eventually(lambda: agent.ready == (200, "free"))
    answers, threads = many(1, served.port, path=held.path)
    eventually(lambda: agent.load["active"] == 1)
    served.signal()
    eventually(lambda: agent.ready == (503, "draining"))
    assert agent.line_for_haproxy == b"up maxconn:1\n"
    held.let_go()
    together(threads)
    assert answers[0].status == 200
    assert served.ended() == 0


def test_live_is_503_only_when_nobody_gets_on(agent, serve):
    """A process that is stopped is as stuck as one that can be: it answers nothing itself."""
    one, other = serve("--threads=2"), serve("--threads=2")
    agent = agent("--stall-after=1.5")
    eventually(lambda: agent.load["capacity"] == 4)
    one.signal(signal.SIGSTOP)
    eventually(lambda: max(row["beat"] for row in agent.load["processes"]) > 1.6)
    assert agent.live == (200, "alive")
    other.signal(signal.SIGSTOP)
    eventually(lambda: agent.live == (503, "stalled"))
    assert agent.load["capacity"] == 4  # they are there
    other.signal(signal.SIGCONT)
    eventually(lambda: agent.live == (200, "alive"))
    one.signal(signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_the_board_stays(agent, board, number):
    agent = agent()
    agent.signal(number)
    assert agent.ended() == 0
    assert agent.errors == []
    assert Board(board).rows() == []


TOLD_WHILE_IT_WAITS = """
import os, signal, sys, threading
from wsgi_busyguard.cli import main

def watch(frame, event, argument):
    waits = event == "call" and frame.f_code is threading.Condition.wait.__code__
    if waits or event == "c_call" and getattr(argument, "__name__", "") == "sigwait":
        os.kill(os.getpid(), signal.SIGTERM)

sys.setprofile(watch)
raise SystemExit(main())
"""


def test_a_signal_that_comes_while_it_begins_to_wait_is_heard(process, tmp_path):
    ports = [f"--board={tmp_path / 'board'}", "--check=127.0.0.1:0"]
    agent = process(sys.executable, "-c", TOLD_WHILE_IT_WAITS, "agent", *ports, env=environment())
    agent.line("checks at http://127.0.0.1:")
    assert agent.ended() == 0
    assert agent.errors == []


MISTAKES = {
    "no board": (["--check=0"], "the following arguments are required: --board"),
    "no port": (["--board=new"], "give --check or --agent, or both: an address to answer at"),
    "no number": (["--board=new", "--check=here"], "expected HOST:PORT"),
    "no patience": (["--board=new", "--check=0", "--patience=0"], "patience must be more than 0"),
    "no stall": (["--board=new", "--check=0", "--stall-after=-1"], "stall_after must be more than"),
    "no policy": (["--board=new", "--check=0", "--ready=odd"], "invalid choice: 'odd'"),
    "garbage": (["--board=garbage", "--check=0"], "expected a board in 'garbage'"),
    "a folder": (["--board=.", "--check=0"], "a board, not the folder"),
    "nowhere": (["--board=no/where", "--check=0"], "for the board is missing: make it first"),
    "a host": (["--board=new", "--check=192.0.2.1:80"], "cannot listen at 192.0.2.1:80"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(process, tmp_path, mistake):
    (tmp_path / "garbage").write_bytes(b"\xff" * 500)
    arguments, words = MISTAKES[mistake]
    told = process(*AGENT, *arguments, cwd=tmp_path, server="checks")
    assert told.ended() == 2
    [line] = told.errors
    assert line.startswith("busyguard: ")
    assert words in line


@pytest.mark.parametrize("server", ["werkzeug", "twisted"])
def test_a_server_that_is_given_garbage_says_so_in_one_line(process, tmp_path, server):
    (tmp_path / "garbage").write_bytes(b"\xff" * 500)
    (tmp_path / "app.py").write_text(APP)
    command = [*COMMAND, "serve", "app:application", "--board=garbage", f"--server={server}"]
    told = process(*command, cwd=tmp_path, server=server)
    assert told.ended() == 2
    [line] = told.errors
    assert "expected a board in 'garbage'" in line


def test_checks_are_true_and_before_any_answer_while_ten_threads_compute(site, agent, board):
    agent = agent()
    waits = {"max_queue": 40, "max_wait": 60, "client_timeout": 60}
    site = site(threads=10, adaptive=False, board=str(board), **waits)  # or else one at a time does
    eventually(lambda: agent.load["capacity"] == 10)
    answers, threads = many(16, site.port, path="/cpu/0.4", timeout=60)
    eventually(lambda: agent.load["queued"] + agent.load["active"] == 16)
    assert {answer.text for answer in checks(agent.check, 10)} == {"busy"}
    assert agent.load["active"] == 10
    assert not answers
    together(threads, 60)
    assert {answer.status for answer in answers} == {200}
    eventually(lambda: agent.load["active"] == 0)


def test_a_reactor_that_is_stuck_is_late_on_the_board(site, agent, board):
    """It posts nothing of it, and no queue would show it."""
    agent, site = agent("--ready=exact"), site(threads=2, board=str(board))
    eventually(lambda: agent.ready == (200, "free"))
    site.tell("block/2")
    eventually(lambda: agent.ready == (503, "busy"))
    assert agent.load["lag"] > 0.25
    eventually(lambda: agent.ready == (200, "free"))


def test_twist_posts_on_a_board(started, process, agent, board, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    agent = agent()
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    twist = [sys.executable, "-m", "twisted", "busyguard", "--wsgi=app.application"]
    options = ["--listen=tcp:0:interface=127.0.0.1", "--threads=6", f"--board={board}"]
    twisted = process(*twist, *options, env=env, cwd=tmp_path)
    eventually(lambda: agent.load["capacity"] == 6)
    twisted.signal()
    twisted.ended()
    eventually(lambda: agent.load["processes"] == [])
