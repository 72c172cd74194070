"""What a gunicorn host tells of itself: live, by its board, and to peers of every kind."""

from __future__ import annotations

import contextlib
import json
import operator
import signal
import socket
import struct
import sys

import pytest
from support.client import (
    Line,
    ask,
    check,
    checks,
    eventually,
    figures,
    many,
    request,
    together,
)
from support.gunicorns import Prober
from support.processes import environment

PLENTY = {"max_wait": 30, "max_queue": 100}


def live(served):
    answer = ask(served.check, path="/livez")
    return answer.status, answer.text


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync"])
def test_a_host_is_stalled_when_no_worker_gets_on_and_alive_when_one_does(gunicorn, kind):
    """A call into C that keeps the interpreter's lock; a busy host is another thing."""
    served = gunicorn("-w2", "--threads=1", kind=kind, stall_after=0.7, **PLENTY)
    served.all_ready(2)
    _, one = many(1, served.port, path="/seize/3")
    eventually(lambda: max(row["beat"] for row in served.load["processes"]) > 1)
    assert live(served) == (200, "alive")
    _, more = many(3, served.port, path="/seize/3")
    eventually(lambda: live(served) == (503, "stalled"))
    together(one + more)
    eventually(lambda: live(served) == (200, "alive"))


def test_a_busy_host_is_alive(gunicorn, held):
    served = gunicorn("-w2", "--threads=2", stall_after=0.7, ready="exact", **PLENTY)
    served.all_ready(2)
    _, threads = many(12, served.port, path=held.path)
    eventually(lambda: check(served.check).text == "busy")
    assert {live(served) for _ in range(50)} == {(200, "alive")}
    held.let_go()
    together(threads)
    _, threads = many(8, served.port, path="/compute/0.5")
    assert {live(served) for _ in range(50)} == {(200, "alive")}
    together(threads)


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync", "GuardedGevent"])
def test_the_lines_that_requests_of_all_workers_are_in_are_on_the_check_port(gunicorn, held, kind):
    served = gunicorn("-w2", "--threads=2", kind=kind, show_stacks=1, **PLENTY)
    served.all_ready(2)
    _, threads = many(2, served.port, path=held.path)
    served.filled(2)

    def seen():
        """Return how many are seen and in which functions, all from one look."""
        stacks = served.load["stacks"]
        return stacks["threads"], {line["at"].rpartition(" in ")[2] for line in stacks["lines"]}

    # None is seen before a worker has looked, and one may have looked before it had its request.
    eventually(lambda: seen() == (2, {"until"}))
    held.let_go()
    together(threads)
    eventually(lambda: seen() == (0, set()))


def test_without_the_option_no_line_is_on_the_check_port(gunicorn):
    assert "stacks" not in gunicorn("-w1").load


def agent_line(port, name=b""):
    with Line(port) as line:
        if name:
            line.send(name + b"\n")
        return line.socket.recv(100)


def test_silent_slow_and_broken_peers_hold_nobody_up(gunicorn):
    served = gunicorn("-w1")
    with contextlib.ExitStack() as stack:
        for port in (served.check, served.agent):
            for said in (b"", b"GET /rea", b"\x16\x03\x01\x02\x00\x01\x00", b"\0" * 100):
                for _ in range(5):
                    line = stack.enter_context(Line(port))
                    line.send(said)
            for _ in range(10):  # connects and resets
                peer = socket.create_connection(("127.0.0.1", port))
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()
            half = stack.enter_context(Line(port))
            half.send(request(path="/readyz")[:20])
            half.socket.shutdown(socket.SHUT_WR)
        assert {answer.status for answer in checks(served.check)} == {200}
        assert agent_line(served.agent, b"lb1").startswith(b"up maxconn:")
    for garbage in (b"\r\n\r\n", b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"x" * 20000):
        with Line(served.check) as line, contextlib.suppress(OSError):
            line.send(garbage)
            assert line.answer().status in (0, 400, 431)
        assert check(served.check).status == 200
    assert "Traceback" not in served.output


BUSYGUARD = [sys.executable, "-c", "from wsgi_busyguard.cli import main; raise SystemExit(main())"]


def agent_beside(process, board, command=BUSYGUARD, patience=2):
    agent = process(
        *command,
        *("agent", "--board", board, "--check", "127.0.0.1:0", "--agent", "127.0.0.1:0"),
        *("--ready", "exact", "--patience", str(patience)),
        env=environment(),
    )
    return (
        int(agent.line("checks at http://127.0.0.1:")),
        int(agent.line("agent at tcp://127.0.0.1:")),
    )


def test_an_agent_beside_it_reads_the_same_from_the_board(gunicorn, process, tmp_path, held):
    board = tmp_path / "board"
    served = gunicorn("-w2", "--threads=2", board=board, ready="exact", **PLENTY)
    served.all_ready(2)
    beside, _ = agent_beside(process, board)
    assert check(beside).text == check(served.check).text == "free"
    _, threads = many(10, served.port, path=held.path)
    told = operator.itemgetter("queued", "active", "capacity", "state")
    eventually(lambda: told(figures(beside)) == told(served.load) == (6, 4, 4, "busy"))
    assert check(beside).text == check(served.check).text == check(served.port).text == "busy"
    pids = {row["pid"] for row in figures(beside)["processes"]}
    assert pids == set(served.workers)
    held.let_go()
    together(threads)
    eventually(lambda: check(beside).text == check(served.check).text == "free")
    served.signal()
    assert served.ended() == 0
    eventually(lambda: figures(beside)["processes"] == [])


# Who is expected may take its time here, for the machine may be busy elsewhere.
PATIENT = "import wsgi_busyguard.board.board as known; known.JOINING_NS *= 20; "


def test_an_agent_beside_it_takes_no_reload_for_a_shutdown(gunicorn, process, tmp_path):
    board = tmp_path / "board"
    served = gunicorn("-w2", "--threads=2", kind="GuardedGevent", board=board)
    served.all_ready(2)
    *python, script = BUSYGUARD
    beside, _ = agent_beside(process, board, [*python, PATIENT + script], patience=60)
    with Prober(beside) as prober:
        before = served.workers
        served.signal(signal.SIGHUP)
        eventually(lambda: set(served.workers) - set(before))
        failed = {text for _, text in prober.failed}
        eventually(lambda: not set(before) & set(served.workers))
        served.all_ready(2)
    assert failed <= {"busy"}  # by a hub that starts late


def test_two_masters_on_one_board_tell_the_sum(gunicorn, tmp_path, held):
    board = tmp_path / "board"
    one = gunicorn("-w2", "--threads=2", board=board, **PLENTY)
    other = gunicorn("-w1", "--threads=3", board=board, **PLENTY)
    eventually(lambda: one.load["capacity"] == other.load["capacity"] == 7)
    _, threads = many(3, one.port, path=held.path)
    _, more = many(3, other.port, path=held.path)
    for served in (one, other):
        rows = served.load["processes"]
        assert len(rows) == 3
    eventually(lambda: one.load["active"] + one.load["queued"] == 6)
    eventually(lambda: other.load["active"] + other.load["queued"] == 6)
    held.let_go()
    together(threads + more)
    other.signal()
    assert other.ended() == 0
    eventually(lambda: one.load["capacity"] == 4)
    eventually(lambda: check(one.check).text == "free")


def test_the_load_is_json_with_a_row_for_each_worker(gunicorn):
    served = gunicorn("-w2", "--threads=2")
    served.all_ready(2)
    shown = json.loads(ask(served.check, path="/load").body)
    assert shown["capacity"] == 4
    assert all(row["beat"] < 1 for row in shown["processes"])


def test_computing_threads_do_not_delay_the_check_port(gunicorn):
    served = gunicorn("-w2", "--threads=4", **PLENTY)
    served.all_ready(2)
    answers, threads = many(8, served.port, path="/compute/2")  # beside much else it is soon over
    eventually(lambda: served.load["active"] + served.load["queued"] == 8)
    checks(served.check)
    assert len(answers) < 8
    together(threads)
