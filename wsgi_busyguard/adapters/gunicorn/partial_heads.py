"""Connections whose request has not come whole: they wait in the poller, not in a thread.

Judges what has come, and knows gunicorn's connections. What becomes of them is the worker's part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..._support.request_head import proxied, unfinished
from ..front.sockets import wake_beyond
from ..front.waiting_sockets import SILENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..front.waiting_sockets import WaitingSockets

# RFC 8446, section 5.1: a record is its type, a version, a length in two bytes, and so much.
_HANDSHAKE_RECORD = 22
_RECORD_HEADER = 5


class PartialHeads:
    """Leaves connections to the poller until a thread has something to do.

    :param waiting: where they wait, in the order in which they have come.
    :param speaks: called with a connection of which more has come.
    :param is_ssl: whether what comes is TLS; then it waits for the first record.
    :param is_proxied: whether the PROXY protocol may come before the first request.
    """

    def __init__(
        self,
        waiting: WaitingSockets,
        speaks: Callable[[Any], object],
        *,
        is_ssl: bool,
        is_proxied: bool,
    ) -> None:
        self._waiting = waiting
        self._speaks = speaks
        self._is_ssl = is_ssl
        self._is_proxied = is_proxied

    def unfinished(self, conn: Any, begins: bytes) -> bool:
        """Return whether more has to come than this, with which a request begins.

        :raises ValueError: if it is nothing that is spoken here.
        """
        if not begins:
            return True
        if self._is_ssl:
            return unfinished_hello(begins)
        skip = proxied(begins) if self._is_proxied and conn.parser is None else 0
        return skip is None or unfinished(begins[skip:])

    def wait(self, conn: Any, seconds: float) -> None:
        """Wait for the first byte."""
        if conn.sock not in self._waiting:
            self._waiting.add(conn.sock, seconds, conn, self._speaks)

    def wait_beyond(self, conn: Any, seen: int, seconds: float = SILENCE_SECONDS) -> bool:
        """Wait for more than the bytes that have been seen; return whether that is possible.

        The seconds count from the first byte on; for those that follow it gets no more.
        """
        before = getattr(conn, "seen", None)
        if before == seen or not wake_beyond(conn.sock, seen):
            return False
        conn.seen = seen
        if conn.sock not in self._waiting:
            self._waiting.add(conn.sock, seconds, conn, self._speaks)
        elif before is None:
            self._waiting.renew(conn.sock, seconds)
        return True

    def release(self, conn: Any) -> None:
        """Have a connection that may have waited be as it was, for whoever reads it now."""
        self._waiting.remove(conn.sock)
        if vars(conn).pop("seen", None) is not None:
            wake_beyond(conn.sock, 0)

    def has_come(self, conn: Any, begins: bytes | None) -> bool:
        """Return whether what was waited for is there after all, when its time is over."""
        if begins is None or not hasattr(conn, "seen"):
            return begins is not None
        try:
            return not self.unfinished(conn, begins)
        except ValueError:
            return True


def unfinished_hello(data: bytes) -> bool:
    """Return whether ``data`` is a part of the first record of TLS.

    :raises ValueError: if it is no TLS.
    """
    if data[0] != _HANDSHAKE_RECORD:
        raise ValueError(f"expected a handshake, not {data[:20]!r}")
    return len(data) < _RECORD_HEADER + int.from_bytes(data[3:_RECORD_HEADER], "big")
