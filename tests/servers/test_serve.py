"""``busyguard serve`` in a real process, on each server it has."""

from __future__ import annotations

import json
import re
import socket
import sys
import time

import pytest
from support.client import (
    Line,
    Stopwatch,
    ask,
    check,
    eventually,
    figures,
    is_check,
    many,
    of_forty_24_are_served,
    request,
    together,
)
from support.processes import Process, environment

# Longer than these tests wait for an end that does not wait for it.
LONG_GRACE = ["--grace=100"]

COMMAND = [sys.executable, "-c", "from wsgi_busyguard.cli import main; raise SystemExit(main())"]

APP = """
import os, threading, time

ran = []

def application(environ, start_response):
    path = environ["PATH_INFO"]
    ran.append(path)
    if path.startswith("/sleep/"):
        time.sleep(float(path[7:]))
    while path.startswith("/until/") and not os.path.exists(path[6:]):
        time.sleep(0.02)
    if path == "/raise":
        raise RuntimeError("the app's own fault")
    body = b"x" * int(path[5:]) if path.startswith("/big/") else str(len(ran)).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

class Holder:
    application = staticmethod(application)

number = 7


async def coming(scope, receive, send):
    pass
"""


class Serve(Process):
    """``busyguard serve app:application`` with ports from the kernel."""

    def __init__(self, folder, *options, server=None):
        ports = ["--listen=127.0.0.1:0", "--check=127.0.0.1:0", "--agent=127.0.0.1:0"]
        command = [*COMMAND, "serve", "app:application", *ports, *options]
        if server:
            command.append(f"--server={server}")
        super().__init__(command, cwd=folder, env=environment(), server=server)
        self.kind = server
        self.said_first = self.line("serving ")
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", self.said_first)[1])
        self.check = int(self.line("checks at http://127.0.0.1:"))
        self.agent = int(self.line("agent at tcp://127.0.0.1:"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with modules in it, good and bad."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "app.py").write_text(APP)
    (folder / "raises.py").write_text("raise ValueError('first\\nsecond line')\n")
    (folder / "exits.py").write_text("raise SystemExit(0)\n")
    (folder / "needs.py").write_text("import nowhere.to_be_found\n")
    (folder / "syntax.py").write_text("def (:\n")
    return folder


@pytest.fixture(params=["werkzeug", "twisted", "waitress", "cheroot"])
def serve(request, started, folder):
    """Starts ``busyguard serve`` on one server or the other."""
    return lambda *options: started(Serve, folder, *options, server=request.param)


def test_forty_requests_are_24_answers_and_16_refusals_and_checks_wait_for_none(serve, held):
    served = serve("--threads=4", "--max-queue=20", "--max-wait=30")
    ports = served.port, served.check
    of_forty_24_are_served(served.port, held, lambda: figures(served.check)["queued"] > 10, ports)
    with Line(served.agent) as line:
        assert line.socket.recv(100).startswith(b"up maxconn:")
    assert ask(served.port, path="/count").text == "25"


def test_sigterm_drains(serve, held):
    served = serve("--threads=2", "--max-queue=10", "--max-wait=30", *LONG_GRACE)
    answers, threads = many(4, served.port, path=held.path)
    eventually(lambda: figures(served.check)["queued"] == 2)
    served.signal()
    eventually(lambda: check(served.port).text == "draining")
    refused = ask(served.port, path="/new")
    assert (refused.status, refused.headers["busyguard-refused"]) == (503, "draining")
    assert ask(served.check, path="/readyz").text == "draining"
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200] * 4
    assert served.ended() == 0
    assert "Traceback" not in served.output


def test_sigterm_lets_a_slow_client_read_the_rest_of_its_answer(serve):
    served = serve("--threads=2", *LONG_GRACE)
    with Line(served.port) as line:
        line.send(request(path="/big/48000000", version="1.0"))
        first = len(line.socket.recv(1000))
        # cheroot's thread sends the answer itself; the others have handed it over by then.
        sending = 1 if served.kind == "cheroot" else 0
        eventually(lambda: figures(served.check)["active"] == sending)
        served.signal()
        read = first
        while data := line.socket.recv(500_000):
            read += len(data)
            time.sleep(0.01)  # the slow client: 48 MB in about a second
    assert read > 48_000_000
    assert served.ended() == 0


def test_sigterm_ends_an_idle_server_at_once(serve):
    """It waits neither for the grace nor for the idle client, which has a minute or two."""
    served = serve(*LONG_GRACE)
    with Line(served.port):
        served.signal()
        assert served.ended() == 0


def test_the_grace_is_the_limit_when_requests_do_not_end(serve):
    served = serve("--threads=1", "--grace=0.5")
    many(1, served.port, path="/sleep/30")
    eventually(lambda: figures(served.check)["active"] == 1)
    began = time.monotonic()
    with Stopwatch() as watch:
        served.signal()
        served.ended()
    assert time.monotonic() - began > 0.4
    assert watch.seconds < 4


def test_a_second_signal_ends_it_at_once(serve):
    served = serve("--threads=1", "--grace=60")
    many(1, served.port, path="/sleep/60")
    eventually(lambda: figures(served.check)["active"] == 1)
    served.signal()
    eventually(lambda: figures(served.check)["state"] == "draining")
    with Stopwatch() as watch:
        served.signal()
        assert served.ended() == 1
    assert watch.seconds < 2


def test_an_app_that_raises_is_a_500_and_a_traceback_for_the_operator(serve):
    served = serve("--threads=1")
    for _ in range(3):
        assert ask(served.port, path="/raise").status == 500
    eventually(lambda: "the app's own fault" in served.output)
    eventually(lambda: figures(served.check)["active"] == 0)
    assert ask(served.port, path="/").status == 200


def test_waitress_leaves_the_lines_of_the_guard_as_they_are(started, folder, held):
    """Its own server had a handler for all loggers, with which nobody saw whose line it was."""
    options = ("--threads=1", "--on-busy=app:application")  # which takes two arguments, not one
    served = started(Serve, folder, *options, server="waitress")
    _, threads = many(2, served.port, path=held.path)
    eventually(lambda: "busyguard: " in served.output)
    held.let_go()
    together(threads)


def test_nothing_is_written_for_a_request_that_went_well(serve):
    served = serve("--threads=1")
    for _ in range(5):
        ask(served.port, path="/")
        check(served.port)
    served.signal()
    assert served.ended() == 0
    assert len(served.lines) == 3, served.output
    assert served.errors == []


REPORT = "endpoint-load-metrics"


def test_the_load_is_in_each_answer_if_it_is_to_be(serve):
    served = serve("--threads=3", "--expose-load")
    assert ask(served.port, path="/").headers[REPORT].startswith("JSON {")
    assert "capacity=3" in check(served.port).text
    reserved = serve("--threads=3")
    assert REPORT not in ask(reserved.port, path="/").headers
    assert is_check(check(reserved.port))


def test_the_lines_in_which_the_requests_are_are_on_the_check_port_if_they_are_to_be(serve, held):
    served = serve("--threads=3", "--show-stacks")
    _, threads = many(3, served.port, path=held.path)

    def lines():
        shown = json.loads(ask(served.check, path="/load").text)["stacks"]
        return [(line["threads"], line["at"].rpartition(" in ")[2]) for line in shown["lines"]]

    eventually(lambda: lines() == [(3, "application")])
    held.let_go()
    together(threads)
    eventually(lambda: lines() == [])


def test_under_gunicorn_it_is_in_those_of_the_app(started, folder, held):
    served = started(Serve, folder, "--server=gunicorn", "--threads=3", "--expose-load")
    ask(served.port, path="/")
    answers, threads = many(2, served.port, path=held.path)
    eventually(lambda: figures(served.check)["active"] == 2)
    assert figures(served.check)["app"] == "app:application"
    held.let_go()
    together(threads)
    found = [json.loads(answer.headers[REPORT].partition(" ")[2]) for answer in answers]
    assert max(one["application_utilization"] for one in found) == pytest.approx(2 / 3, abs=0.001)
    assert "capacity=3" in check(served.port).text


def run(folder, *arguments):
    """Run the command to its end; return its exit code and what it wrote to standard error."""
    process = Process([*COMMAND, *arguments], cwd=folder, server="werkzeug")
    try:
        return process.ended(within=30), "".join(process.errors)
    finally:
        process.reap()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere:app"], "no module 'nowhere'"),
        (["app.nowhere:app"], "no module 'app.nowhere'"),
        (["raises:app"], "importing raises raised ValueError: first second line"),
        (["exits:app"], "importing exits raised SystemExit"),
        (["syntax:app"], "importing syntax raised SyntaxError"),
        (["needs:app"], "needs needs a module that is missing: nowhere"),
        (["app:nothing"], "app has no 'nothing'"),
        (["app:Holder.nothing"], "app has no 'Holder.nothing'"),
        (["app:create_app()"], "app has no 'create_app()': write app = create_app() in a file"),
        (["app:number"], "app:number is no WSGI app: 7 cannot be called"),
        (["app:coming"], "app:coming must be a WSGI app, not <function coming at"),
        (["app:coming", "--server=gunicorn"], "which is an ASGI app: give the framework's WSGI"),
        (["app"], "expected MODULE:APP"),
        (["app:application", "--threads=0"], "threads must be at least 1, not 0"),
        (["app:application", "--threads=many"], "--threads: invalid int value: 'many'"),
        (["app:application", "--max-queue=-1"], "max_queue must be at least 0, not -1"),
        (["app:application", "--max-wait=0"], "max_wait must be more than 0 seconds"),
        (["app:application", "--max-wait=nan"], "max_wait must be more than 0 seconds"),
        (["app:application", "--client-timeout=-1"], "client_timeout must be more than 0"),
        (["app:application", "--patience=0"], "patience must be more than 0"),
        (["app:application", "--grace=0"], "grace must be more than 0"),
        (["app:application", "--ready=maybe"], "invalid choice: 'maybe'"),
        (["app:application", "--server=nginx"], "invalid choice: 'nginx'"),
        (["app:application", "--port=8080"], "--port=8080; see busyguard serve --help"),
        (["app:application", "--listen=here"], "expected HOST:PORT"),
        (["app:application", "--listen=127.0.0.1:65536"], "expected HOST:PORT"),
        (["app:application", "--check=here"], "expected HOST:PORT"),
        (["app:application", "--agent=::1"], "expected HOST:PORT"),
        (["app:application", "--listen=no.such.host.invalid:0"], "cannot listen at no.such.host"),
        (["app:application", "--slots=4"], "--slots is not taken here: --threads is that number"),
        (["app:application", "--dry-run"], "--dry-run is not taken here: a guard in front of"),
        (["app:application", "--refusal=app:none"], "app has no 'none'"),
        (
            ["app:application", "--server=twisted", "--progress-timeout=9"],
            "progress_timeout is not taken here: Twisted's reactor reads",
        ),
        ([], "required"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_told_in_one_line(folder, arguments, words):
    code, said = run(folder, "serve", *arguments)
    assert code == 2
    assert len(said.splitlines()) == 1, said
    assert said.startswith("busyguard: ")
    assert words in said


@pytest.mark.parametrize("server", ["werkzeug", "twisted", "waitress", "cheroot"])
@pytest.mark.parametrize("option", ["--listen", "--check", "--agent"])
def test_a_port_that_is_taken_is_told_in_one_line(folder, server, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        others = [] if option == "--listen" else ["--listen=127.0.0.1:0"]
        code, said = run(
            folder, "serve", "app:application", f"--server={server}", *others, option, where
        )
    assert (code, said) == (
        2,
        f"busyguard: cannot listen at {where}: Address already in use\n",
    )


def test_the_command_alone_says_what_there_is(folder):
    assert run(folder)[0] == 2
    assert run(folder, "--version")[0] == 0
    assert run(folder, "serve", "--help")[0] == 0
