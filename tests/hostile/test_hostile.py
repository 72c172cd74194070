"""Clients that mean harm, at every port of every front, with visitors and checks beside them.

What a front does with one such client is in ``contracts/front.py``; here are crowds of them.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

import pytest
from support.client import Line, ask, check, eventually, request
from support.gunicorns import FrontGunicorn
from support.processes import Site, ThreadedSite

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

FRONTS = {
    "Twisted": (Site, {}),
    "waitress": (ThreadedSite, {"server": "waitress"}),
    "cheroot": (ThreadedSite, {"server": "cheroot"}),
    "gunicorn": (FrontGunicorn, {}),
}


@pytest.fixture(scope="module", params=FRONTS)
def served(request):
    kind, options = FRONTS[request.param]
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
def all_the_while(step, *arguments):
    """Do this again and again on a thread."""
    end = threading.Event()

    def work():
        while not end.wait(0.01):
            with contextlib.suppress(OSError):
                step(*arguments)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def reset(port):
    """Connect, begin to ask, and leave without a goodbye."""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"GET /page HTTP/1.1\r\n")


def drip(port):
    """Ask for a page a byte at a time."""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        for byte in request(path="/page")[:20]:
            client.sendall(bytes([byte]))
            time.sleep(0.02)


def agent_says(port):
    with socket.create_connection(("127.0.0.1", port), 10) as line:
        line.sendall(b"lb1\n")
        return line.makefile("rb").read()


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
