"""Clients that hold a thread of a guarded gunicorn and do not get on."""

from __future__ import annotations

import contextlib
import ssl
import time

import pytest
from support.client import Line, ask, check, eventually, request

from servers.test_gunicorn_hostile import Secret, certificate, secure
from servers.test_gunicorn_threads import clean, connect, gunicorn

__all__ = ["certificate", "connect", "gunicorn", "secure"]  # fixtures

# Seconds that a client may keep a thread waiting here; 30 by default.
SOON = 1.0

UPLOAD = b"POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n"
BIG = request(path="/big/50000000")


def cut_off(line):
    """Whether the connection ends without an answer."""
    try:
        return line.answer().status == 0
    except OSError:
        return True


CHUNKED = b"Transfer-Encoding: chunked"
STALLS = {
    "an upload": UPLOAD + b"b" * 10,
    "an upload in chunks": UPLOAD.replace(b"Content-Length: 100000", CHUNKED) + b"5\r\nab",
    "a head too large for a peek": b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 9000,
}


@pytest.mark.parametrize("said", STALLS.values(), ids=STALLS)
def test_who_stops_in_the_middle_gives_the_thread_back(gunicorn, connect, said):
    server = gunicorn("--threads", "2", progress_timeout=SOON)
    lines = [connect(server.port) for _ in range(2)]
    for line in lines:
        line.send(said)
    server.filled(2)
    server.at_rest()
    assert all(map(cut_off, lines))
    assert ask(server.port, path="/page").text == "GET /page"
    assert "GET /length" not in server.output
    clean(server)


def test_so_it_is_with_a_later_request(gunicorn, connect):
    server = gunicorn("--threads", "2", "--keep-alive", "5", progress_timeout=SOON)
    line = connect(server.port)
    line.send(request("POST", "/length", body=b"b" * 10))
    assert line.answer().text == "10"
    line.send(UPLOAD)
    server.filled(1)
    server.at_rest()
    assert cut_off(line)
    clean(server)


def test_a_byte_now_and_then_is_no_progress(gunicorn, connect):
    server = gunicorn("--threads", "1", progress_timeout=SOON)
    line = connect(server.port)
    line.send(UPLOAD)
    server.filled(1)

    def gone():
        with contextlib.suppress(OSError):
            line.send(b"b")
        return server.load["active"] == 0

    eventually(gone, every=0.2)
    assert cut_off(line)
    clean(server)


def test_who_is_slow_and_gets_on_is_served(gunicorn, connect):
    """Three times as long as a silence may be, at twice the rate that is enough."""
    server = gunicorn("--threads", "1", progress_timeout=SOON)
    line = connect(server.port)
    line.send(b"POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: 3000\r\n\r\n")
    began, sent = time.monotonic(), 0
    while sent < 3000:
        line.send(b"b" * 100)
        sent += 100
        eventually(lambda sent=sent: time.monotonic() - began > sent / 1000)
    assert line.answer().text == "3000"
    clean(server)


def test_what_the_app_takes_for_itself_is_not_the_clients(gunicorn, connect):
    server = gunicorn("--threads", "1", progress_timeout=SOON)
    line = connect(server.port)
    line.send(request("POST", f"/sleep/{3 * SOON}", body=b"b" * 10))
    assert line.answer().text == f"slept {3 * SOON}"
    clean(server)


def test_an_app_that_reads_the_socket_itself_may_wait(gunicorn, connect):
    """A WebSocket over which nobody says anything is none that stalls."""
    server = gunicorn("--threads", "1", progress_timeout=SOON)
    line = connect(server.port)
    line.send(request(path="/own"))
    server.filled(1)
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 3 * SOON)
    assert server.load["active"] == 1
    line.send(b"at last")
    assert line.answer().text == "at last"
    clean(server)


def test_an_answer_that_nobody_reads_gives_the_thread_back(gunicorn, connect):
    server = gunicorn("--threads", "2", progress_timeout=SOON)
    lines = [connect(server.port) for _ in range(2)]
    for line in lines:
        line.send(BIG)
    server.filled(2)
    server.at_rest()
    assert ask(server.port, path="/page").text == "GET /page"
    for line in lines:
        with pytest.raises((OSError, AssertionError)):
            assert len(line.answer().body) == 50_000_000
    clean(server)


def test_an_answer_that_is_read_slowly_arrives(gunicorn, connect):
    server = gunicorn("--threads", "1", progress_timeout=SOON)
    line = connect(server.port)
    line.send(request(path="/big/20000000"))
    server.filled(1)
    began, got = time.monotonic(), b""
    while time.monotonic() - began < 3 * SOON:
        got += line._file.read(200_000)
        pause = time.monotonic() + 0.2
        eventually(lambda pause=pause: time.monotonic() > pause)
    assert server.load["active"] == 1
    got += line._file.read(20_000_000 - len(got))
    assert len(got) == 20_000_000
    line.close()
    server.at_rest()


def first_flight():
    """Return what a client of TLS says first."""
    said = ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(
        ssl.MemoryBIO(), said, server_hostname="localhost"
    )
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return said.read()


def test_over_tls_too(secure):
    server = secure("--threads", "3", progress_timeout=SOON)
    with Secret(server.port) as upload, Secret(server.port) as answer, Line(server.port) as hello:
        upload.send(UPLOAD + b"b" * 10)
        answer.send(BIG)
        hello.send(first_flight())  # and the rest of the handshake never comes
        server.filled(3)
        server.at_rest()
        assert cut_off(upload)
    assert ask(server.check, path="/livez").status == 200
    with Secret(server.port) as line:
        line.send(request(path="/page", version="1.0"))
        assert line.answer().text == "GET /page"


def test_who_wants_no_limit_has_none(gunicorn, connect):
    server = gunicorn("--threads", "1", progress_timeout="inf")
    line = connect(server.port)
    line.send(UPLOAD)
    server.filled(1)
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 2)
    assert server.load["active"] == 1
    assert check(server.port).status == 200
    line.send(b"b" * 100_000)
    assert line.answer().text == "100000"
    clean(server)
