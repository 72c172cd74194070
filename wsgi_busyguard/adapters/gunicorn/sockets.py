"""Bytes on a worker's sockets: what has come, and how a connection ends.

For the thread that accepts, so nothing here blocks. And nothing is called that need not be: while
the app computes, each call of a socket's costs 5 ms, for the interpreter's lock. gunicorn's sockets
have no timeouts of Python's, so they need not be asked first, as those in ``adapters.wire`` are.
"""

from __future__ import annotations

import _socket
import socket
from contextlib import suppress

from ..._support.unpatched import NO_TIMEOUT

# As much as is looked at: a browser's head with its cookies fits.
MOST = 8192

# RFC 8446, section 5.1: a record is its type, a version, a length in two bytes, and so much.
_HANDSHAKE = 22
_RECORD_HEADER = 5


def peeked(sock: socket.socket) -> bytes | None:
    """Return what can be read of a socket and leave it there.

    ``None`` while nothing has come; empty if the peer has closed, or reset the connection.
    """
    try:
        return sock.recv(MOST, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError:
        return b""


def unfinished_hello(data: bytes) -> bool:
    """Return whether ``data`` is a part of the first record of TLS.

    :raises ValueError: if it is no TLS.
    """
    if data[0] != _HANDSHAKE:
        raise ValueError(f"expected a handshake, not {data[:20]!r}")
    return len(data) < _RECORD_HEADER + int.from_bytes(data[3:_RECORD_HEADER], "big")


def taken_over(sock: socket.socket) -> _socket.socket | None:
    """Return a socket of our own for a connection that the app may still close.

    An app that speaks WebSocket closes its socket in a thread of its own, whenever it likes; then
    the next connection gets the number, and whoever still watches it would be in its way. From here
    on the app's socket is closed, as it is after gunicorn has closed it. In one step, so no number
    is taken that is somebody else's already. ``None`` if the app has closed it.
    """
    family, kind, protocol = sock.family, sock.type | NO_TIMEOUT, sock.proto
    number = sock.detach()
    return None if number < 0 else _socket.socket(family, kind, protocol, number)


def send(sock: _socket.socket, data: bytes) -> None:
    """Send a little to a peer who reads or does not, and no more after it."""
    with suppress(OSError):
        if data:
            sock.send(data, socket.MSG_DONTWAIT)  # a new connection's buffer takes it whole
        sock.shutdown(socket.SHUT_WR)


def drained(sock: _socket.socket) -> bool:
    """Throw away what a peer has sent; return whether he has closed."""
    try:
        for _ in range(16):
            if not sock.recv(65536, socket.MSG_DONTWAIT):
                return True
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True
    return False
