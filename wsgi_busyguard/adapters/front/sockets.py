"""Bytes on the sockets of a server: what has come, who has left, what is said at once.

For threads that must not block. Knows sockets and WSGI; no server.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..._support.socket_calls import readable, ready
from ..._support.wsgi_call import called, least_environ
from ...policy import Reason

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from ...responses import Responses

    Headers = list[tuple[str, str]]

# As much as is looked at: a browser's head with its cookies fits.
PEEK_BYTES = 8192
PEEK_AT_ONCE = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

# What is said to whoever does not speak HTTP, as soon as that is known.
BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n"
    b"Connection: close\r\n\r\nbad request\n"
)

# From linux/tcp.h: the first byte of tcp_info is the state, TCP_ESTABLISHED is 1, and
# tcpi_last_data_recv, in milliseconds, stands behind eight bytes of flags and eleven words.
_TCP_INFO = socket.TCP_INFO if sys.platform == "linux" else -1  # -1: there is no such option
_ESTABLISHED, _LAST_DATA_RECEIVED, _LAST_DATA_RECEIVED_AT = 1, struct.Struct("=I"), 52
_TCP_INFO_SIZE = _LAST_DATA_RECEIVED_AT + _LAST_DATA_RECEIVED.size

HANGUP_EVENTS = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


def peek(sock: socket.socket) -> bytes | None:
    """Return what can be read of a socket and leave it there.

    ``None`` while nothing has come; empty if the peer has closed, or reset the connection.
    """
    # Only of a socket with a timeout recv() would wait. Of others nothing is asked: while the app
    # computes, each call of a socket's costs 5 ms, for the interpreter's lock.
    try:
        if sock.gettimeout() and not readable(sock):
            return None
        return sock.recv(PEEK_BYTES, PEEK_AT_ONCE)
    except (BlockingIOError, InterruptedError, TimeoutError):
        return None
    except (OSError, ValueError):
        return b""


def wake_beyond(sock: socket.socket, seen: int) -> bool:
    """Have a socket be readable when more has come than what was seen; return whether it can be.

    With 0 it is as ever again. It must be before anybody waits for less in a call of ``recv()``.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):  # the others do not heed it
        return not seen
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
    except OSError:
        return False
    return True


def disconnected(socks: Iterable[Any]) -> set[Any]:
    """Return those whose peers have left.

    A request may still lie unread before the end, so a look at the data would not show it. One who
    only closed his half of the connection is taken to have left, as nginx does (its 499).
    """
    poller, known, left = select.poll(), {}, set()
    for sock in socks:
        try:
            descriptor = sock.fileno()
            poller.register(descriptor, HANGUP_EVENTS)
            known[descriptor] = sock
        except (OSError, ValueError):  # closed by ourselves
            left.add(sock)
    left.update(known[number] for number, event in poller.poll(0) if event & HANGUP_EVENTS)
    return left


def has_left(sock: Any) -> bool:
    """Return whether a peer has left."""
    return bool(disconnected([sock]))


def since_heard(sock: socket.socket) -> tuple[float, bool]:
    """Return seconds since a peer sent what came last, and whether it has left since.

    0 where the kernel does not say. For a new connection, which nobody has read from.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TCP_INFO_SIZE)
    except OSError:  # a UNIX socket, or not Linux
        return 0.0, has_left(sock)
    milliseconds: int = _LAST_DATA_RECEIVED.unpack_from(info, _LAST_DATA_RECEIVED_AT)[0]
    return milliseconds / 1000, info[0] != _ESTABLISHED


def cut_short(sock: socket.socket, seen: int) -> bool:
    """Return whether a peer has left, and no more than the bytes that were seen will ever come.

    What it sent before it left may have come since they were counted.
    """
    return has_left(sock) and len(peek(sock) or b"") <= seen


def whole_response(app: WSGIApplication, environ: WSGIEnvironment) -> tuple[str, Headers, bytes]:
    """Return all that an answer or a refusal says, with its length.

    A HEAD request is told what a GET would be, but for the body.

    :raises UnicodeEncodeError: if it cannot be sent as HTTP.
    """
    is_head = environ["REQUEST_METHOD"] == "HEAD"
    status, headers, pieces = called(
        app, {**environ, "REQUEST_METHOD": "GET"} if is_head else environ
    )
    body = b"".join(pieces)
    if not any(name.lower() == "content-length" for name, _ in headers):
        headers = [*headers, ("Content-Length", str(len(body)))]
    "".join([status, *(name + value for name, value in headers)]).encode("latin-1")
    return status, headers, b"" if is_head else body


def response_bytes(
    app: WSGIApplication, method: str, version: tuple[int, int], last: bool
) -> bytes:
    """Return all that an answer or a refusal says to such a request, as the bytes to send.

    :param version: of HTTP, the request's.
    :param last: whether the connection is closed after it.
    """
    status, headers, body = whole_response(app, least_environ(method))
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
    if last:
        lines.append("Connection: close")
    elif version == (1, 0):
        lines.append("Connection: Keep-Alive")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def refusal_bytes(responses: Responses) -> Callable[[str, Reason], bytes]:
    """Return what returns the last bytes that a connection hears, which refuse such a method.

    They are put together once.
    """
    prepared = {
        (is_head, reason): [
            response_bytes(answer, "HEAD" if is_head else "GET", (1, 1), True)
            for answer in responses.refused(reason).plain
        ]
        for is_head in (False, True)
        for reason in Reason
    }

    def refusal(method: str, reason: Reason) -> bytes:
        choices = prepared[method == "HEAD", reason]
        return choices[int(random.random() * len(choices))]

    return refusal


def send(sock: socket.socket, data: bytes) -> bool:
    """Send a little; return whether it was taken whole, which is so unless a peer does not read."""
    with suppress(OSError):
        return ready(sock, select.POLLOUT) and sock.send(data) == len(data)
    return False


def send_last(sock: _socket.socket, data: bytes) -> None:
    """Send a little to a peer that reads or does not, and no more after it."""
    with suppress(OSError):
        if data:
            sock.send(data, socket.MSG_DONTWAIT)  # a new connection's buffer takes it whole
        sock.shutdown(socket.SHUT_WR)


def drain(sock: _socket.socket) -> bool:
    """Throw away what a peer has sent; return whether it has closed."""
    waits = bool(sock.gettimeout())
    try:
        for _ in range(16):
            if waits and not readable(sock):
                return False
            if not sock.recv(65536, socket.MSG_DONTWAIT):
                return True
    except (BlockingIOError, InterruptedError, TimeoutError):
        return False
    except (OSError, ValueError):
        return True
    return False
