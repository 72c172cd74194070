"""What has come on a connection, as gunicorn reads it: by its own parser, from a peek.

Two parsers agree on most requests and not on all: a lone LF, too many fields, headers that
contradict each other, methods in small letters. What gunicorn would refuse is not for the guard to
answer. Knows gunicorn's parsers; decides nothing.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gunicorn.http
from gunicorn.http import RequestParser
from gunicorn.http.wsgi import create

from .http2_frames import PREFACE, requests

try:
    from gunicorn.http2 import negotiation
except ImportError:  # before 27.0, without HTTP/2 in the clear
    negotiation = None

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

PREFACE_START_BYTES = 4  # so many bytes tell HTTP/2's greeting from a method that begins with P

# The PROXY protocol, section 2.1: so a balancer speaks for itself, as with a check, and what stands
# behind UNKNOWN is to be ignored. gunicorn does not know it; so that it still judges who may say it
# and reads the request behind it, it is shown another line.
_PROXY_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [ -~]{0,92})?\r\n")
_PROXY_TCP4 = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n"


def environ_of(conn: Any, data: bytes) -> WSGIEnvironment | None:
    """Return the environ of the request of HTTP/1 whose head is all of ``data``.

    ``None`` where gunicorn would refuse it, or wait for more of it, or tell its client to go on.
    """
    if _PROXY_UNKNOWN.match(data):
        data = _PROXY_UNKNOWN.sub(_PROXY_TCP4, data, count=1)
    source = iter([data])
    if hasattr(gunicorn.http, "get_parser"):  # from 25.0 on; it may be uWSGI's protocol
        parser = gunicorn.http.get_parser(conn.cfg, source, conn.client)
    else:
        parser = RequestParser(conn.cfg, source, conn.client)
    if conn.parser is not None:
        parser.req_count = conn.parser.req_count  # the PROXY protocol begins a connection
    elif negotiation is not None and _is_only_http2(conn):
        return None
    try:
        request = next(parser)
        names = [name for name, _ in request.headers]
        if parser.unreader.buf.getvalue() or "EXPECT" in names:
            return None
        _, environ = create(request, conn.sock, conn.client, conn.server, conn.cfg)
    except Exception:  # gunicorn says what it thinks of it
        return None
    if "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ:
        return None
    return environ  # type: ignore[no-any-return]


def import_parsers(cfg: Any) -> None:
    """Have gunicorn look now for the parser that it would look for at a worker's first request.

    By then no file descriptor may be left to look with, and each request would just be closed.
    """
    here = "127.0.0.1", 0
    conn = SimpleNamespace(cfg=cfg, client=here, server=here, sock=None, parser=None)
    environ_of(conn, b"GET / HTTP/1.0\r\n\r\n")


def read_ahead(conn: Any) -> bytes:
    """Return what gunicorn has read ahead of a connection; its socket holds what comes after."""
    if conn.parser is None:
        return b""
    return conn.parser.unreader.buf.getvalue()  # type: ignore[no-any-return]


def speaks_http2(conn: Any, data: bytes) -> bool:
    """Return whether a new connection begins as HTTP/2 in the clear, and may."""
    if negotiation is None or conn.parser is not None or len(data) < PREFACE_START_BYTES:
        return False
    begins = data.startswith(PREFACE) or PREFACE.startswith(data)
    return begins and bool(negotiation.prior_knowledge_allowed(conn.cfg, conn.client))


def http2_target(data: bytes) -> tuple[str, str] | None:
    """Return method and target of what a client of HTTP/2 asks first.

    ``None`` unless that is one request, and nothing comes after its head. It costs a tenth of what
    gunicorn's own reading does, and is no judgement.
    """
    begun = requests(data)
    if len(begun) != 1 or not begun[0].is_whole or begun[0].fields is None:
        return None
    import hpack  # with h2, without which gunicorn does not start here

    try:
        fields: dict[Any, Any] = dict(hpack.Decoder().decode(begun[0].fields, raw=True))
        return fields[b":method"].decode("latin-1"), fields[b":path"].decode("latin-1")
    except (hpack.HPACKError, KeyError):  # gunicorn says what it thinks of it
        return None


def http2_response(
    conn: Any, data: bytes, decide: Callable[[WSGIEnvironment], WSGIApplication | None]
) -> bytes | None:
    """Return all that is to be sent on a connection of HTTP/2 with whose first request it ends.

    :param decide: returns what answers a request; nothing is said if that is nothing.

    What has come later than ``data`` may be sent again; the last frame says so.
    """
    peer = _Peer()
    connection = gunicorn.http.get_parser(conn.cfg, peer, conn.client, http2_connection=True)
    connection.initiate_connection()
    try:
        [request] = connection.receive_data(data)
        response, environ = _response(conn, peer, request, connection)
        app = decide(environ)
        if app is None:
            return None
        for chunk in app(environ, response.start_response):
            response.write(chunk)
        response.close()
    except Exception:  # gunicorn says what it thinks of it, or the client does not read
        return None
    connection.close(last_stream_id=request.stream.stream_id)
    return peer.sent


def _response(conn: Any, peer: Any, request: Any, connection: Any) -> tuple[Any, WSGIEnvironment]:
    from gunicorn.http2.response import HTTP2Response

    more = {
        "response_class": HTTP2Response,
        "response_args": (connection, request.stream.stream_id),
    }
    response, environ = create(request, peer, conn.client, conn.server, conn.cfg, **more)
    return response, environ


def _is_only_http2(conn: Any) -> bool:
    cfg = conn.cfg
    is_allowed = bool(negotiation.prior_knowledge_allowed(cfg, conn.client))
    return is_allowed and bool(negotiation.mismatch_is_error(cfg))


class _Peer:
    """What gunicorn's HTTP/2 has for a socket here: it keeps what is sent, and nothing comes.

    It has no descriptor, so that nobody waits for it, as for a window that its client keeps shut.
    """

    def __init__(self) -> None:
        self.sent = b""

    def sendall(self, data: bytes) -> None:
        self.sent += data

    send = sendall
