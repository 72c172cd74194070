"""Clients that mean harm, at every port of every front, with visitors and checks beside them.

What a front does with one such client is in ``contracts/front.py``; here are crowds of them.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import time

import pytest
from balancers.test_agent import Agent
from support.client import Line, ask, check, checks, eventually, request
from support.gunicorns import FrontGunicorn
from support.processes import Site, ThreadedSite

from wsgi_busyguard.haproxy.agent import MOST_OF_ADDRESS

CROWD = 24
HELLO = bytes.fromhex("16030100c8010000c40303") + b"a" * 190
ENDLESS = b"GET /page HTTP/1.1\r\n" + b"X: y\r\n" * 2000
UPLOAD = b"POST /page HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n0123456789"

# What each of a crowd says before it falls silent.
SAID = {
    "nothing": b"",
    "one byte": b"G",
    "half a head": b"GET /page HTTP/1.1\r\nHost: a\r\nX: y",
    "TLS": HELLO,
    "noise": bytes(range(128, 256)) * 20,
    "checks, and noise behind them": request("OPTIONS", "/") * 5 + b"\x00\xff\r\n\r\n" * 50,
    "questions whose answers it never reads": request(path="/load?watch") * 20,
    "names of balancers": b"made-up\nlb1\nlb2\n" * 20,
}


class Watched(ThreadedSite):
    """A site whose checks are answered by ``busyguard agent`` from its board."""

    def __init__(self, *, board, **options):
        super().__init__(server="waitress", board=str(board), **options)
        try:
            self.watcher = Agent(board)
        except BaseException:
            super().reap()  # nobody else has it yet
            raise
        self.check, self.agent = self.watcher.check, self.watcher.agent
        eventually(lambda: check(self.check).status == 200)

    def reap(self):
        self.watcher.reap()
        super().reap()


FRONTS = {
    "Twisted": (Site, {}),
    "waitress": (ThreadedSite, {"server": "waitress"}),
    "cheroot": (ThreadedSite, {"server": "cheroot"}),
    "gunicorn": (FrontGunicorn, {}),
    "gevent": (FrontGunicorn, {"kind": "GuardedGevent"}),
    "a board": (Watched, {}),
}


@pytest.fixture(scope="module", params=FRONTS)
def served(request, tmp_path_factory):
    kind, options = FRONTS[request.param]
    if kind is Watched:
        options = {"board": tmp_path_factory.mktemp("run") / "board"}
    server = kind(threads=4, max_queue=40, **options)
    yield server
    server.reap()


@contextlib.contextmanager
def crowd(port, said):
    """Have so many connect and say this; they stay until the end."""
    with contextlib.ExitStack() as lines:
        for _ in range(CROWD):
            line = lines.enter_context(Line(port))
            with contextlib.suppress(ConnectionError):  # closed before it had said it all
                line.send(said)
        yield


@contextlib.contextmanager
def all_the_while(step, *arguments, **named):
    """Do this again and again on a thread."""
    end = threading.Event()

    def work():
        while not end.wait(0.01):
            with contextlib.suppress(OSError):
                step(*arguments, **named)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def reset(port):
    """Connect, begin to ask, and leave without a goodbye: ten, one after the other."""
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"GET /page HTTP/1.1\r\n")


def drip(port):
    """Ask for a page a byte at a time."""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        for byte in request(path="/page")[:20]:
            client.sendall(bytes([byte]))
            time.sleep(0.02)


def agent_says(port, name=b"lb1"):
    with socket.create_connection(("127.0.0.1", port), 10) as line:
        line.sendall(name + b"\n")
        return line.makefile("rb").read()


def agent_hears(port, names=itertools.count()):  # noqa: B008, one for all calls
    """Be another balancer, which asks twice, as only those that come again get a share."""
    name = b"made-up-%d" % next(names)
    assert [agent_says(port, name)[:11] for _ in range(2)] == [b"up maxconn:"] * 2


def well(served):
    """Whoever means well is served, and every check says that this server is to have requests."""
    for port in (served.port, served.check):
        assert [check(port).status for _ in range(3)] == [200] * 3
    assert agent_says(served.agent).startswith(b"up maxconn:")
    assert ask(served.port, path="/page").status == 200


@pytest.mark.parametrize("port", ["port", "check", "agent"])
@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_a_crowd_holds_up_nobody(served, port, said):
    with crowd(getattr(served, port), said):
        eventually(lambda: served.load["queued"] == 0)  # what was a request is served
        well(served)
    served.at_rest()
    well(served)


@pytest.mark.parametrize("port", ["port", "check", "agent"])
@pytest.mark.parametrize("step", [reset, drip])
def test_who_comes_again_and_again_holds_up_nobody(served, port, step):
    with all_the_while(step, getattr(served, port)):
        for _ in range(3):
            well(served)
    served.at_rest()
    well(served)


def test_made_up_balancers_take_no_share_from_those_that_are_known(served):
    """All of an address are at most so many, and each that is known gets one at least."""
    for _ in range(30):
        agent_hears(served.agent)
    known = served.load.get("balancers", [])  # where one loop has both ports
    assert len(known) <= MOST_OF_ADDRESS, known
    with all_the_while(agent_hears, served.agent):
        assert {agent_says(served.agent, b"lb1") for _ in range(10)} == {b"up maxconn:1\n"}
        well(served)


@contextlib.contextmanager
def feeds(port, count):
    """Have so many watch the figures, who read nothing of what comes."""
    with contextlib.ExitStack() as lines:
        for _ in range(count):
            line = lines.enter_context(socket.socket())
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            line.settimeout(10)
            line.connect(("127.0.0.1", port))
            line.sendall(request(path="/load?watch"))
        yield


def test_feeds_that_nobody_reads_hold_up_nobody(served):
    with feeds(served.check, 50), all_the_while(ask, served.port, path="/page"):
        for _ in range(10):
            checks(served.check, 2)
            time.sleep(0.1)
        well(served)
    served.at_rest()
    well(served)


@pytest.mark.parametrize("said", [UPLOAD, ENDLESS], ids=["an upload", "more than 8 KiB of a head"])
def test_what_takes_a_thread_holds_up_no_check(served, said):
    """Where the server reads this in its threads, they are held until the guard cuts it off.

    Until then every check says what is true: the threads are taken.
    """
    with crowd(served.port, said):
        for port in (served.port, served.check):
            assert {check(port).status for _ in range(3)} <= {200, 503}
        assert agent_says(served.agent).startswith(b"up maxconn:")
    served.at_rest()
    eventually(lambda: check(served.port).status == 200)
    well(served)
