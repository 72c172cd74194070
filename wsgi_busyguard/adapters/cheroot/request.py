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
    conn = SimpleNamespace(rfile=io.BytesIO(head), wfile=io.BytesIO())
    request = HTTPRequest(server, conn, proxy_mode=True)
    request.parse_request()
    return bool(request.ready)


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
