"""Reads how many connections wait in the kernel, for servers that accept only when they can serve.

Linux only; elsewhere, and wherever the kernel does not say, the answer is that nobody knows.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

from .._support.listening_sockets import NO_DESCRIPTOR
from .._support.socket_calls import readable
from .._support.unpatched import original
from ..load import Load
from ..policy import whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# From linux/tcp.h: the first byte of tcp_info is the state. In a listener tcpi_unacked, six bytes
# of flags and four words further on, is the length of the accept queue; tcpi_sacked is its limit.
TCP_LISTEN = 10
TCP_INFO_BYTES = 104
UNACKED_OFFSET = 24

# From linux/netlink.h, sock_diag.h and unix_diag.h.
NETLINK_SOCK_DIAG = 4
NLM_F_REQUEST = 1
SOCK_DIAG_BY_FAMILY = 20
UDIAG_SHOW_RQLEN = 0x10
UNIX_DIAG_RQLEN = 4
NO_COOKIE = 0xFFFFFFFF
HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
REQUEST = struct.Struct("=BBHIIIII")  # unix_diag_req: family, -, -, states, inode, show, cookie
ANSWER = struct.Struct("=BBBBIII")  # unix_diag_msg: family, type, state, -, inode, cookie
ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type


def waiting(sock: socket.socket) -> int | None:
    """Return how many connections wait to be accepted from a listening socket.

    Those whose handshake is done: more may be under way. ``None`` where that cannot be known: not
    Linux, not listening, closed, neither TCP nor a Unix stream. Callable from any thread; never
    blocks; about 1 us for TCP and 20 us for a Unix socket.
    """
    if sys.platform != "linux":
        return None
    try:
        if sock.family == socket.AF_UNIX:
            return _unix(sock)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            return _tcp(sock)
    except OSError as error:
        # To ask of a Unix socket takes a descriptor. Without one, whether anybody waits is known.
        return int(readable(sock)) if error.errno in NO_DESCRIPTOR else None
    except struct.error:
        pass
    return None


class AcceptQueueAdapter:
    """Reads how many connections wait in the kernel for one server, over all its listeners.

    :param listeners: the listening sockets.
    :param capacity: requests that may be in the application at once, if known.
    :param active: returns how many are in the application now; 0 is said if not given.

    A listener whose queue cannot be read counts for nothing; if none can, the load is unknown.
    """

    def __init__(
        self,
        listeners: Iterable[socket.socket],
        capacity: int | None = None,
        active: Callable[[], int] | None = None,
    ) -> None:
        self._listeners = tuple(listeners)
        for listener in self._listeners:
            if not callable(getattr(listener, "getsockopt", None)):
                raise TypeError(f"listeners must be listening sockets, not {listener!r}")
        if capacity is not None:
            whole("capacity", capacity, least=1)
        if active is not None and not callable(active):
            raise TypeError(f"active must be callable and return a number, not {active!r}")
        self._capacity = capacity
        self._active = active

    def read(self) -> Load | None:
        """Return the figures of this instant; ``None`` if no queue can be read."""
        queued = in_the_kernel(self._listeners)
        if queued is None:
            return None
        active = 0 if self._active is None else self._active()
        return Load(queued, active, self._capacity)

    def __repr__(self) -> str:
        return f"<AcceptQueueAdapter of {len(self._listeners)} listeners>"


def _tcp(sock: socket.socket) -> int | None:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    if info[0] != TCP_LISTEN:
        return None
    length: int = struct.unpack_from("=I", info, UNACKED_OFFSET)[0]
    return length


def _unix(sock: socket.socket) -> int | None:
    """Ask the kernel's socket diagnostics, as ``ss`` does; no privilege is needed."""
    inode = os.fstat(sock.fileno()).st_ino
    question = REQUEST.pack(
        *(socket.AF_UNIX, 0, 0, 1 << TCP_LISTEN, inode, UDIAG_SHOW_RQLEN, NO_COOKIE, NO_COOKIE)
    )
    size = HEADER.size + len(question)
    header = HEADER.pack(size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0)
    # The stock class: one that gevent has patched belongs to a hub, and this thread may have none.
    stock = original("socket", "socket")
    with stock(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.setblocking(False)  # the answer is there when send() returns
        kernel.send(header + question)
        return _queue_length(kernel.recv(65536), inode)


def _queue_length(answer: bytes, inode: int) -> int | None:
    """Return the length in the kernel's answer; ``None`` if there is none, as in an error."""
    size, kind, *_ = HEADER.unpack_from(answer)
    if kind != SOCK_DIAG_BY_FAMILY:
        return None
    family, _, state, _, about, *_ = ANSWER.unpack_from(answer, HEADER.size)
    if (family, state, about) != (socket.AF_UNIX, TCP_LISTEN, inode):
        return None
    at = HEADER.size + ANSWER.size
    while at + ATTRIBUTE.size <= min(size, len(answer)):
        length, attribute = ATTRIBUTE.unpack_from(answer, at)
        if attribute == UNIX_DIAG_RQLEN:
            queue: int = struct.unpack_from("=I", answer, at + ATTRIBUTE.size)[0]
            return queue
        at += max(ATTRIBUTE.size, (length + 3) & ~3)  # padded to four bytes
    return None


def in_the_kernel(listeners: Iterable[Any]) -> int | None:
    """Return how many connections wait to be accepted; ``None`` where nobody can tell."""
    total = None
    for listener in listeners:
        sock = getattr(listener, "sock", listener)
        queued = None if sock is None else waiting(sock)  # gunicorn forgets one that it closes
        if queued is not None:
            total = (total or 0) + queued
    return total
