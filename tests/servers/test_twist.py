"""``twist busyguard``: Twisted's own runner with our plugin."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from support.client import (
    Line,
    ask,
    check,
    eventually,
    figures,
    free_port,
    is_check,
    many,
    together,
)
from support.processes import environment

APP = """
import os, time

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/sleep/"):
        time.sleep(float(path[7:]))
    while path.startswith("/until/") and not os.path.exists(path[6:]):
        time.sleep(0.02)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"done"]

number = 7


async def coming(scope, receive, send):
    pass
"""


@pytest.fixture
def twist(process, tmp_path):
    """Starts ``twist busyguard`` in a folder with an app in it."""
    (tmp_path / "app.py").write_text(APP)

    def start(*options):
        # The script, as people call it: with "python -m" the folder is searched anyway.
        command = [sys.executable, Path(sys.executable).with_name("twist"), "busyguard", *options]
        return process(*command, cwd=tmp_path, server="twisted")

    return start


def port_of(running, what):
    """Return the port that Twisted's log says that ``what`` listens at."""
    pattern = re.compile(what + r" (?:starting on|listens at \S*?:?)\s*(\d+)")
    found = eventually(lambda: pattern.search(running.output) or running.popen.poll() is not None)
    assert found is not True, running.output
    return int(found[1])


def answering(port):
    """Wait until somebody listens at the port."""

    def listens():
        try:
            return ask(port, path="/livez").status == 200
        except OSError:
            return False

    eventually(listens)


@pytest.fixture
def served(twist):
    """A site with all its options, and its three ports."""
    web, check_port, agent = free_port(), free_port(), free_port()
    running = twist(
        "--wsgi=app.application",
        f"--listen=tcp:{web}:interface=127.0.0.1",
        f"--check=tcp:{check_port}",
        f"--agent=tcp:{agent}",
        "--threads=2",
        "--max-queue=2",
        "--max-wait=20",
        "--client-timeout=8",
        "--ready=exact",
        "--patience=0.5",
        "--grace=100",
    )
    answering(web)
    return running, web, check_port, agent


def test_twist_serves_checks_and_tells_the_agent(served, held):
    running, web, check_port, agent = served
    assert ask(web, path="/").text == "done"
    assert is_check(check(web))
    with Line(agent) as line:
        assert line.socket.recv(100) == b"up maxconn:2\n"
    answers, threads = many(6, web, path=held.path)
    eventually(lambda: figures(check_port)["queued"] == 2)
    assert check(web).status == 503
    assert ask(check_port, path="/readyz").status == 503
    eventually(lambda: len(answers) == 2)
    held.let_go()
    together(threads)
    assert sorted(answer.status for answer in answers) == [200] * 4 + [503] * 2
    running.signal()
    assert running.ended() in (0, -signal.SIGTERM)
    assert "Traceback" not in running.output


def test_twist_speaks_http_2_at_an_endpoint_with_tls(twist, certificate):
    web = free_port()
    keys = f"privateKey={certificate}:certKey={certificate}"
    running = twist(
        "--wsgi=app.application",
        f"--listen=ssl:{web}:interface=127.0.0.1:{keys}",
        "--threads=1",
        "--max-queue=0",
        "--grace=5",
    )
    eventually(lambda: f"starting on {web}" in running.output)
    inside = []
    with httpx.Client(http2=True, verify=False, timeout=10) as client:

        def ask(path):
            return client.get(f"https://127.0.0.1:{web}{path}")

        assert (ask("/").text, ask("/").http_version) == ("done", "HTTP/2")
        assert ask("/readyz").http_version == "HTTP/2"
        assert is_check(ask("/readyz"))
        thread = threading.Thread(target=lambda: inside.append(ask("/sleep/1")))
        thread.start()
        refused = eventually(lambda: (said := ask("/")).status_code == 503 and said)
        assert refused.headers["busyguard-refused"] == "queue-full"
        running.signal()
        eventually(lambda: ask("/readyz").text == "draining")
        thread.join()
        assert inside[0].text == "done"
    assert running.ended() in (0, -signal.SIGTERM)
    assert "Traceback" not in running.output


def test_twist_drains_before_it_stops_listening(served, held):
    running, web, check_port, _ = served
    answers, threads = many(4, web, path=held.path)
    eventually(lambda: (figures(check_port)["active"], figures(check_port)["queued"]) == (2, 2))
    running.signal()
    eventually(lambda: check(web).text == "draining")
    assert ask(check_port, path="/readyz").text == "draining"
    assert ask(web, path="/new").headers["busyguard-refused"] == "draining"
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200] * 4
    assert running.ended() in (0, -signal.SIGTERM)


def test_the_patience_is_the_check_ports_too(twist):
    web, check_port = free_port(), free_port()
    running = twist(
        "--wsgi=app.application",
        f"--listen=tcp:{web}:interface=127.0.0.1",
        f"--check=tcp:{check_port}",
        "--threads=1",
        "--max-queue=5",
        "--max-wait=20",
        "--patience=0.2",
    )
    answering(web)
    ask(web, path="/sleep/0.05")
    _, threads = many(3, web, path="/sleep/0.6")
    eventually(lambda: figures(check_port)["delay"] > 0.3)
    assert check(web).status == 503
    assert ask(check_port, path="/readyz").status == 503
    together(threads)
    running.signal()


@pytest.mark.parametrize("exposed", [True, False])
def test_the_load_is_in_each_answer_if_it_is_to_be(twist, exposed):
    options = ["--expose-load"] if exposed else []
    running = twist("--wsgi=app.application", "--listen=tcp:0:interface=127.0.0.1", *options)
    web = port_of(running, "GuardedSite")
    assert ("endpoint-load-metrics" in ask(web, path="/").headers) == exposed
    assert ("capacity=10" in check(web).text) == exposed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "say which app"),
        (["--wsgi=nothing.here"], "nothing"),
        (["--wsgi=app.nothing"], "nothing"),
        (["--wsgi=app.number"], "WSGI app"),
        (["--wsgi=app.coming"], "which is an ASGI app: give the framework's WSGI app"),
        (["--wsgi=app.application", "--threads=0"], "threads must be at least 1"),
        (["--wsgi=app.application", "--threads=x"], "x"),
        (["--wsgi=app.application", "--max-queue=-1"], "max_queue must be at least 0"),
        (["--wsgi=app.application", "--max-wait=0"], "max_wait must be more than 0"),
        (["--wsgi=app.application", "--ready=maybe"], "ready must be one of"),
        (["--wsgi=app.application", "--patience=-2"], "patience must be more than 0"),
        (["--wsgi=app.application", "--client-timeout=0"], "client_timeout must be more than 0"),
        (["--wsgi=app.application", "--grace=0"], "grace must be more than 0"),
        (["--wsgi=app.application", "--check=here"], "expected HOST:PORT"),
        (["--wsgi=app.application", "--agent=here"], "expected HOST:PORT"),
        (["--wsgi=app.application", "--listen=nowhere:1"], "nowhere"),
        (["--wsgi=app.application", "--slots=4"], "--slots is not taken here: --threads is that"),
        (["--wsgi=app.application", "--dry-run"], "--dry-run is not taken here: a guard in"),
        (["--wsgi=app.application", "--refusal=app.none"], "app has no 'none'"),
    ],
    ids=lambda value: " ".join(value[-1:]) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_a_usage_error_in_one_line(twist, options, words):
    running = twist(*options)
    assert running.ended() not in (0, None)
    errors = [line for line in running.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, running.output
    assert words in errors[0]
    assert "Traceback" not in running.output


def test_twistd_goes_into_the_background_and_serves_there(process, twist, tmp_path):
    """It forks after the service is made: threads and beats that began before would be gone."""
    web, check_port, agent = free_port(), free_port(), free_port()
    command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
    command += ["--pidfile=twistd.pid", "--logfile=twistd.log", "busyguard"]
    command += ["--wsgi=app.application", "--threads=1", "--max-queue=1", "--max-wait=0.5"]
    command += [f"--listen=tcp:{web}:interface=127.0.0.1"]
    command += [f"--check=tcp:{check_port}", f"--agent=tcp:{agent}"]
    env = environment()
    env["PYTHONPATH"] = f"{tmp_path}:{env['PYTHONPATH']}"
    assert process(*command, cwd=tmp_path, env=env).ended() == 0
    answering(web)
    pid = int((tmp_path / "twistd.pid").read_text())
    try:
        answers, threads = many(3, web, path="/sleep/1.2")
        together(threads)
        refusals = [answer.headers.get("busyguard-refused") for answer in answers]
        assert sorted(refusals, key=str) == [None, "queue-age", "queue-full"]
        eventually(lambda: check(web).text == "free")
        assert figures(check_port)["lag"] < 1
        with Line(agent) as line:
            assert line.socket.recv(100) == b"up maxconn:1\n"
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not (tmp_path / "twistd.pid").exists())
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert "Traceback" not in (tmp_path / "twistd.log").read_text()


@pytest.mark.parametrize("option", ["--listen", "--check", "--agent"])
def test_a_port_that_is_taken_is_told_in_one_line(twist, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen = [] if option == "--listen" else ["--listen=tcp:0:interface=127.0.0.1"]
        mine = f"{option}=tcp:{port}:interface=127.0.0.1"
        running = twist("--wsgi=app.application", *listen, mine)
        assert running.ended() not in (0, None)
    assert "Traceback" not in running.output
    assert f"{port}" in running.errors[-1]
    assert "Address already in use" in running.errors[-1]
