"""Clients that are not tidy, at a guarded server and at the same server alone: both do the same.

What each sends is allowed, or nearly so, and not often seen.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import time

import pytest
from support.client import Line, request
from support.gunicorns import FrontGunicorn, Gunicorn
from support.processes import Site, ThreadedSite

pytestmark = pytest.mark.slow

CLOSE = {"Connection": "close"}
PAGE = request(path="/big/3")
LAST = request(path="/big/5", headers=CLOSE)
CHUNKED = request("POST", "/length", headers={"Transfer-Encoding": "chunked"})
EXPECTS = {"Expect": "100-continue", "Content-Length": "3"}
FIELDS = {f"X-{number}": "v" * 1000 for number in range(30)}

# What comes in pieces, with a pause behind each; after these the server goes on.
GOES_ON = {
    "a head in pieces": [PAGE[:10], PAGE[10:-2], PAGE[-2:]],
    "head and body apart": [request("POST", "/length", body=b"bb")[:-2], b"b", b"b"],
    "three at once": [PAGE * 3],
    "one and a part of the next": [PAGE + PAGE[:20], PAGE[20:]],
    "an upload and a page": [request("POST", "/length", body=b"b" * 70_000) + PAGE],
    "a body that nobody reads": [request("POST", "/big/3", body=b"b" * 3000) + PAGE],
    "a body with a GET": [request("GET", "/length", body=b"b") + PAGE],
    "an empty line before": [b"\r\n" + PAGE],
    "Expect": [request("POST", "/length", headers=EXPECTS), b"bbb"],
    "Expect, and no wait": [request("POST", "/length", headers=EXPECTS) + b"bbb"],
    "chunks in pieces": [CHUNKED, b"3\r\nb", b"bb\r\n0", b"\r\n\r\n"],
    "extensions and trailers": [CHUNKED + b"3;a=b\r\nbbb\r\n0;c\r\nX-T: 1\r\n\r\n"],
    "30 KB of fields": [request(path="/big/3", headers=FIELDS)],
    "an upgrade": [
        request(path="/big/3", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
    ],
    "HTTP/1.0, kept": [request(path="/big/3", version="1.0", headers={"Connection": "keep-alive"})],
}

CHUNKS = {"Transfer-Encoding": "chunked", **CLOSE}

# After these it closes.
ENDS = {
    "HTTP/1.0": [request(path="/big/3", version="1.0")],
    "a target of 9 KB": [request(path="/big/3?" + "q" * 9000, headers=CLOSE)],
    "two lengths": [
        request("POST", "/length", headers={"content-length": "1", **CLOSE}, body=b"bb")
    ],
    "no number": [request("POST", "/length", headers={"Content-Length": "+1", **CLOSE}) + b"b"],
    "a length and chunks": [
        request("POST", "/length", headers={"Content-Length": "1", **CHUNKS}) + b"0\r\n\r\n"
    ],
    "no chunk": [request("POST", "/length", headers=CHUNKS) + b"zz\r\nb\r\n0\r\n\r\n"],
    "another version": [b"GET /big/3 HTTP/2.0\r\nHost: a\r\nConnection: close\r\n\r\n"],
    "an app that raises midway": [request(path="/midway", version="1.0")],
}

PLAYS = {**{name: [*said, LAST] for name, said in GOES_ON.items()}, **ENDS}

gthread = functools.partial(Gunicorn, "--threads=2", kind="gthread", app="front_app:app")

SERVERS = {
    "Twisted": (functools.partial(Site, threads=2, stock=True), Site),
    "gunicorn": (functools.partial(gthread, ports=False), FrontGunicorn),
    **{
        name: (
            functools.partial(ThreadedSite, server=name, threads=2, stock=True),
            functools.partial(ThreadedSite, server=name),
        )
        for name in ("waitress", "cheroot")
    },
}


def heard(port, pieces):
    """Say these, and return the answers until the server closes; of errors only the status."""
    answers = []
    with Line(port) as line, contextlib.suppress(ConnectionError):
        line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            with contextlib.suppress(ConnectionError):
                line.send(piece)
            time.sleep(0.02)  # the network's part: each comes alone
        while (answer := line.answer()).status:
            answers.append((answer.status, answer.body if answer.status == 200 else b""))
    return answers


@pytest.mark.parametrize("name", SERVERS)
def test_a_guarded_server_answers_them_as_the_server_alone_does(started, name):
    stock, guarded = SERVERS[name]
    alone, behind = started(stock), started(guarded, threads=2)
    for play, pieces in PLAYS.items():
        assert heard(behind.port, pieces) == heard(alone.port, pieces), play
    behind.at_rest()
