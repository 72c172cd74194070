"""``busyguard serve --server gunicorn`` in a real process."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from support.client import (
    Line,
    Stopwatch,
    ask,
    check,
    eventually,
    figures,
    free_port,
    many,
    of_forty_24_are_served,
    request,
    together,
)
from support.gunicorns import HEARD
from support.processes import environment

from servers.test_serve import COMMAND, LONG_GRACE, Serve, folder

__all__ = ["folder"]

STATES = "busyguard: busy for ", "busyguard: free again "


@pytest.fixture
def serve(started, folder):
    """Starts ``busyguard serve`` on gunicorn."""

    def serve(*options):
        served = started(Serve, folder, "--server=gunicorn", *options)
        eventually(lambda: figures(served.check)["capacity"])  # a worker is there
        return served

    return serve


def test_forty_requests_are_24_answers_and_16_refusals_and_checks_wait_for_none(serve, held):
    served = serve("--threads=4", "--max-queue=20", "--max-wait=30")
    ports = served.port, served.check
    of_forty_24_are_served(served.port, held, lambda: figures(served.check)["queued"] > 10, ports)
    with Line(served.agent) as line:
        assert line.socket.recv(100).startswith(b"up maxconn:")
    assert ask(served.port, path="/count").text == "25"
    # A line a request is what an overloaded server needs least; of a queue that lasts there is one.
    lines = [line for line in served.lines + served.errors if not line.startswith(STATES)]
    assert len(lines) == 3


def in_the_kernel(port):
    """How many connections to a port of 127.0.0.1 nobody has accepted."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = [row for row in rows if row[1] == f"0100007F:{port:04X}" and row[3] == "0A"]
    return sum(int(row[4].split(":")[1], 16) for row in ours)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_when_everybody_is_served(serve, held, number):
    served = serve("--threads=2", "--max-queue=10", "--max-wait=30", *LONG_GRACE)
    answers, threads = many(4, served.port, path=held.path)
    # What waits in the kernel still is queued, too, and gunicorn's master resets it at its end.
    eventually(lambda: not in_the_kernel(served.port) and figures(served.check)["queued"] == 2)
    served.signal(number)
    if number == signal.SIGTERM:
        eventually(lambda: ask(served.check, path="/readyz").text == "draining", within=HEARD)
        held.let_go()
        together(threads)
        assert [answer.status for answer in answers] == [200] * 4
    held.let_go()  # of those that run gunicorn waits for the grace, whichever signal it is
    assert served.ended() == 0
    assert "Traceback" not in served.output


def test_the_grace_is_the_limit_when_requests_do_not_end(serve):
    served = serve("--threads=2", "--grace=1")
    many(2, served.port, path="/sleep/30")
    eventually(lambda: figures(served.check)["active"] == 2)
    began = time.monotonic()
    with Stopwatch() as watch:
        served.signal()
        assert served.ended() == 0
    assert time.monotonic() - began > 0.9
    assert watch.seconds < 5


def test_more_threads_than_gunicorn_has_connections_by_itself(serve):
    served = serve("--threads=1200", "--max-queue=400")
    assert figures(served.check)["capacity"] == 1200
    assert ask(served.port, path="/count").status == 200


def test_several_workers_are_one_host(started, folder, monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    served = started(Serve, folder, "--server=gunicorn", "--threads=3")
    assert "2 x 3 at once" in served.output
    eventually(lambda: figures(served.check)["capacity"] == 6)
    eventually(lambda: check(served.port).text == "free")


def told(folder, *arguments):
    command = [*COMMAND, "serve", "app:application", "--server=gunicorn", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=30
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("option", ["--listen", "--check", "--agent"])
def test_a_port_that_is_taken_is_told_in_one_line(folder, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        options = {"--listen": "127.0.0.1:0", option: where}
        code, output, errors = told(folder, *(word for pair in options.items() for word in pair))
    assert code in (1, 2)
    assert output == ""
    assert errors.startswith("busyguard: cannot listen ")
    assert "Address already in use" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threads=0"], "threads must be at least 1, not 0"),
        (["--max-queue=-1"], "max_queue must be at least 0, not -1"),
        (["--max-wait=-1"], "max_wait must be"),
        (["--listen=nowhere"], "expected HOST:PORT"),
        (["--listen=nowhere.invalid:80"], "cannot listen at nowhere.invalid:80"),
        (["--check=127.0.0.1:99999"], "expected HOST:PORT"),
        (["--board=/nowhere/board"], "the folder '/nowhere' for the board is missing"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(folder, arguments, words):
    code, output, errors = told(folder, "--listen=127.0.0.1:0", *arguments)
    assert code in (1, 2)
    assert output == ""
    assert errors.startswith("busyguard: ")
    assert words in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("spelled", ["{}", ":{}", "tcp:{}"])
def test_an_address_means_what_it_means_elsewhere(started, folder, spelled):
    port = free_port()
    # Serve gives --listen first; the last one counts.
    served = started(Serve, folder, "--server=gunicorn", f"--listen={spelled.format(port)}")
    assert served.port == port
    with Line(port) as line:
        line.send(request(path="/count"))
        assert line.answer().status == 200
