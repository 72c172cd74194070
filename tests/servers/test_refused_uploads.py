"""Uploads that a gate refuses: whoever sends one to its end gets to read the 503.

A proxy does that, and says 502 in its place if it is reset on the way.
"""

from __future__ import annotations

import threading
import time

import pytest
from support.client import Line, check, eventually, many, request
from support.uwsgis import Uwsgi

from servers.test_gate_anywhere import Anywhere

GATE = {"slots": 1, "max_queue": 0}

SERVERS = {
    "waitress": 6,
    "cheroot": 6,
    "gunicorn gthread": 6,
    "granian": 6,
    "paste": 6,
    "twisted": 6,
    "a2wsgi": 6,
    "uwsgi": 6,
    "tornado": 6,
    "werkzeug": 9,
    "wsgiref": 9,
    "django": 9,
    "pywsgi_greenlets": 0,
    "gunicorn gevent": 1,
}

# These know nothing of bodies in chunks.
WITHOUT_CHUNKS = {"paste", "werkzeug", "wsgiref", "django"}

PIECE = 16384


@pytest.fixture
def full(started, tmp_path):
    """Start a server by name, at whose gate all are refused."""

    def full(name):
        threads = SERVERS[name]
        if name == "uwsgi":
            server = started(Uwsgi, tmp_path, 1, threads, side=True, **GATE)
        else:
            server = started(Anywhere, name, threads, GATE)
        many(1, server.port, path="/sleep/60", timeout=60)
        eventually(lambda: server.load["active"] == 1)
        return server

    return full


def upload(port, size, *, close=True, chunked=False):
    """Send one in pieces, as proxies do, to its end; return the status that is read then."""
    length = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": size}
    more = {"Connection": "close"} if close else {}
    with Line(port) as line:
        line.send(request("POST", "/x", headers={**length, **more}))
        for begun in range(0, size, PIECE):
            piece = b"x" * min(PIECE, size - begun)
            line.send(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            time.sleep(0.001)  # not all at once, or it has arrived before it is refused
        if chunked:
            line.send(b"0\r\n\r\n")
        return line.answer().status


@pytest.mark.parametrize("name", SERVERS)
def test_the_refusal_of_an_upload_is_read(full, name):
    server = full(name)
    for close in (True, False):
        for size in (1_000, 60_000, 400_000):
            statuses = [upload(server.port, size, close=close) for _ in range(4)]
            assert statuses == [503] * 4, (size, close)


@pytest.mark.parametrize("name", [name for name in SERVERS if name not in WITHOUT_CHUNKS])
def test_so_is_that_of_one_in_chunks(full, name):
    server = full(name)
    for size in (1_000, 400_000):
        assert [upload(server.port, size, chunked=True) for _ in range(4)] == [503] * 4, size


@pytest.mark.parametrize("name", [name for name in SERVERS if name != "werkzeug"])
def test_who_asks_before_it_sends_hears_before_or_after(full, name):
    """Werkzeug's takes what is sent then for the next request."""
    server = full(name)
    headers = {"Content-Length": 400_000, "Expect": "100-continue", "Connection": "close"}
    with Line(server.port) as line:
        line.send(request("POST", "/x", headers=headers))
        answer = line.answer()
        if answer.status == 100:
            line.send(b"x" * 400_000)
            answer = line.answer()
    assert answer.status == 503


# Those on which a guard reads off. Elsewhere the server waits by itself before it calls the app;
# cheroot after it, where a connection is kept alive and enough others are being read off.
READ_OFF = ["gunicorn gthread", "granian", "paste", "a2wsgi", "uwsgi", "wsgiref"]


@pytest.mark.parametrize("name", READ_OFF)
def test_those_who_never_send_are_refused_and_hold_up_no_check(full, name):
    server = full(name)
    refused = []

    def announce():
        with Line(server.port) as line:
            line.send(request("POST", "/x", headers={"Content-Length": 50_000}))
            refused.append(line.answer().status)

    threads = [threading.Thread(target=announce, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert check(server.port).took < 1
    assert refused == [503] * 8
