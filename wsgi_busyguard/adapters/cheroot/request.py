"""A request whose head is known before cheroot reads it."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from cheroot.server import HTTPRequest

if TYPE_CHECKING:
    from ..._support.request_head import Head


def reads(server: Any, head: bytes) -> bool:
    """Return whether cheroot takes this for a request.

    Not all that is one by itself: lines that end in a lone LF, say. What cheroot would refuse is
    not for the guard to answer, but for a host in front of the path: every server has to take that
    (RFC 9112, section 3.2.2), and cheroot does as a proxy.
    """
    request = _of(server, head)
    request.parse_request()
    return bool(request.ready)


def refusal_of(server: Any, data: bytes) -> bytes:
    """Return what cheroot says to what it does not take for a request; nothing if it says nothing.

    :param data: what has come, of which no request can be made.
    """
    request = _of(server, data)
    request.parse_request()
    return _written(request)


def too_late(server: Any) -> bytes:
    """Return what cheroot says to one who has said too little for too long."""
    request = _of(server, b"")
    request.simple_response("408 Request Timeout")
    return _written(request)


def _of(server: Any, data: bytes) -> Any:
    conn = SimpleNamespace(rfile=io.BytesIO(data), wfile=io.BytesIO())
    return HTTPRequest(server, conn, proxy_mode=True)


def _written(request: Any) -> bytes:
    answer: bytes = request.conn.wfile.getvalue()
    return answer.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)


class PeekedRequest:
    """One, and where it lies.

    :param buffered: whether cheroot has read it ahead already.
    """

    def __init__(self, head: Head, buffered: bool) -> None:
        self.head = head
        self._buffered = buffered
        self.speaks = head.method, head.version
        self.has_body = (
            head.headers.get("CONTENT_LENGTH", "0") != "0"
            or "HTTP_TRANSFER_ENCODING" in head.headers
        )

    @property
    def persists(self) -> bool:
        """Whether the client wants the connection to be kept."""
        wish = self.head.headers.get("HTTP_CONNECTION", "").lower()
        return wish == "keep-alive" if self.head.version == (1, 0) else wish != "close"

    def take(self, conn: Any) -> None:
        """Read it, for what is left unread would be taken for the next, or reset the connection."""
        if self._buffered:
            conn.rfile.read(self.head.size)
        else:
            conn.socket.recv(self.head.size)
