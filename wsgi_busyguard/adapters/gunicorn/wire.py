"""Bytes on a worker's sockets: what has come, and how a connection ends.

For the thread that accepts, so nothing here blocks. And nothing is called that need not be: while
the app computes, each call of a socket's costs 5 ms, for the interpreter's lock. gunicorn's sockets
have no timeouts of Python's, so they need not be asked first, as those in ``adapters.wire`` are.
"""

from __future__ import annotations

import socket
from contextlib import suppress

# As much as is looked at for a check: HAProxy's and the kubelet's fit many times.
MOST = 2048


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


def send(sock: socket.socket, data: bytes) -> None:
    """Send a little to a peer who reads or does not, and no more after it."""
    with suppress(OSError):
        if data:
            sock.send(data, socket.MSG_DONTWAIT)  # a new connection's buffer takes it whole
        sock.shutdown(socket.SHUT_WR)


def drained(sock: socket.socket) -> bool:
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
