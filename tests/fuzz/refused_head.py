"""What is refused at the listening socket: each server reads that same request, or refuses it."""

from __future__ import annotations

import io
import socket
from types import SimpleNamespace

from cheroot.server import HTTPRequest
from gunicorn.config import Config
from gunicorn.http import RequestParser
from gunicorn.http.errors import NoMoreData, ParseException
from twisted.internet.testing import StringTransport
from twisted.web.http import HTTPChannel, Request
from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser

from wsgi_busyguard.adapters.front.refusing_listener import RefusingListener
from wsgi_busyguard.gate import Gate

from .cheroot_peek import SERVER

LISTENER = RefusingListener(None, Gate(4), lambda head: False, lambda method, reason: b"")

# What a server makes of it: a method, and how much it leaves; nothing if it refuses it itself.
Read = tuple[str, int] | None


class Unfinished(Exception):
    """A server waits for more."""


def by_waitress(data: bytes) -> Read:
    parser = HTTPRequestParser(Adjustments())
    taken = parser.received(data)
    if parser.error:
        return None
    if not parser.completed:
        raise Unfinished
    return parser.command, len(data) - taken


def by_cheroot(data: bytes) -> Read:
    conn = SimpleNamespace(
        rfile=io.BytesIO(data), wfile=io.BytesIO(), remote_addr="", remote_port=0, ssl_env={}
    )
    request = HTTPRequest(SERVER, conn)
    request.parse_request()
    if not request.ready:
        if not conn.wfile.getvalue():
            raise Unfinished
        return None
    return request.method.decode(), len(conn.rfile.read())


def by_gunicorn(data: bytes) -> Read:
    try:
        request = next(RequestParser(Config(), iter([data]), ("127.0.0.1", 4000)))
    except (NoMoreData, StopIteration) as error:
        raise Unfinished from error
    except ParseException:
        return None
    return request.method, len(request.body.read() + request.unreader.buf.getvalue())


def by_twisted(data: bytes) -> Read:
    asked = []

    class Asked(Request):
        def process(self) -> None:
            asked.append(self)

    channel, transport = HTTPChannel(), StringTransport()
    channel.requestFactory = Asked
    channel.makeConnection(transport)
    channel.dataReceived(data)
    channel.setTimeout(None)
    if transport.disconnecting:
        return None
    if not asked:
        raise Unfinished
    return asked[0].method.decode(), len(channel._buffer) + len(b"".join(channel._dataBuffer))


SERVERS = [by_waitress, by_cheroot, by_gunicorn, by_twisted]


def target(data: bytes) -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        peer.sendall(data)
        head = LISTENER._asked(ours)
    if head is None:
        return
    for read in SERVERS:
        assert read(data) in (None, (head.method, 0)), read.__name__
