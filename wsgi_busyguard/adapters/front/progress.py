"""Clients that hold a thread and do not get on: an upload that stalls, an answer nobody reads.

A thread that waits for a client cannot look at the time; somebody else does, a few times a second,
and cuts the connection off. Nothing here costs a request a call of the system. Knows sockets; no
server.
"""

from __future__ import annotations

import _socket
import math
import socket
import struct
import sys
import time
from contextlib import suppress
from errno import ECONNRESET
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..._support.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

# Seconds without one byte that a client may have. A radio link that was gone for 25 s is passed:
# TCP doubles its pause before each attempt, and the seventh comes after 25.4 s. nginx grants 60 s,
# Apache (mod_reqtimeout) 20.
STALL_SECONDS = 30.0

# Bytes a second that are enough to go on for ever, as in Apache's default (MinRate=500). Without
# this a byte every 29 s would be progress.
RATE_BYTES = 500.0

# Linux's tcp_info: packets on their way, bytes that were acknowledged, bytes that were not sent.
_UNACKED, _ACKED, _UNSENT, _TCP_INFO = 24, 120, 144, 148


class Credit:
    """The seconds that a client may still keep a thread waiting.

    Waiting spends them, and each byte earns some back; never more than there were at first, so that
    nobody who has been quick for an hour may then be silent for another.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self.left = most

    def spend(self, seconds: float, count: int) -> None:
        """Note that it took so long until so many bytes had come, or gone."""
        self.left = min(self._most, self.left - seconds + count / RATE_BYTES)


class Upload:
    """What a server reads a connection from, in place of its socket; also says who is waited for.

    Only what goes through here is watched. What an app reads from the socket itself, as for a
    WebSocket, may be silent for as long as the app likes.

    :ivar sock: the socket.
    """

    def __init__(self, sock: Any, most: float) -> None:
        self.sock = sock
        self._credit = Credit(most)
        self._since: float | None = None
        self._is_cut = False

    def recv(self, size: int) -> bytes:
        """Return what has come, as the socket would.

        :raises ConnectionResetError: if the connection has been cut off meanwhile.
        """
        data: bytes = self._received(self.sock.recv, len, size)
        return data

    def recv_into(self, buffer: Any, *arguments: int) -> int:
        """Store what has come, as the socket would; likewise."""
        receive: Callable[..., int] = self.sock.recv_into
        return self._received(receive, int, buffer, *arguments)

    def _received(self, receive: Callable[..., T], count: Callable[[T], int], *given: Any) -> T:
        self._since = since = time.monotonic()
        size = 0
        try:
            got = receive(*given)
            size = count(got)
        finally:
            self._since = None
            self._credit.spend(time.monotonic() - since, size)
        if self._is_cut:  # else the app would take what has come for all that there is
            raise ConnectionResetError(ECONNRESET, "the client made no progress with its request")
        return got

    def await_head(self) -> None:
        """Note that a thread reads a head, which has one time in all, from the socket itself."""
        self._since = time.monotonic()

    def cut_if_stalled(self) -> bool:
        """Cut the connection off if it keeps a thread waiting for too long; return whether."""
        since = self._since
        if since is None or time.monotonic() - since <= self._credit.left:
            return False
        self._is_cut = True
        cut(self.sock)
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


class Answers:
    """The answers that are on their way to clients, and whether those get on with reading.

    By what Linux says of a TCP connection; elsewhere, and of others, nothing is known.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._seen: dict[Any, tuple[float, int, Credit]] = {}

    def stalled(self, socks: Iterable[Any]) -> list[Any]:
        """Return those whose clients do not read. Of those that are not given nothing is kept."""
        before, self._seen, now, stalled = self._seen, {}, time.monotonic(), []
        for sock in socks:
            acked = acknowledged(sock)
            if acked is None:  # all has arrived
                continue
            at, count, credit = before.get(sock, (now, acked, Credit(self._most)))
            credit.spend(now - at, max(0, acked - count))
            if credit.left <= 0:
                stalled.append(sock)
            else:
                self._seen[sock] = now, acked, credit
        return stalled


class Clients:
    """Those for whom threads work now: whoever does not get on is cut off.

    May be told of them in any thread.

    :param most: seconds for which a client may keep a thread waiting; no limit if inf.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._answers = Answers(most)
        self._served: set[Upload] = set()

    def watched(self, sock: Any) -> Upload:
        """Return what to read a connection from."""
        return Upload(sock, self._most)

    def begin(self, upload: Upload) -> None:
        """Note that a thread serves a connection, until :meth:`end`."""
        self._served.add(upload)

    def end(self, upload: Upload) -> None:
        """Note that none does any more: now it may be silent."""
        self._served.discard(upload)

    def cut_the_stalled(self) -> None:
        """Cut those off who do not get on. To be called a few times a second."""
        if self._most == math.inf:
            return
        served = self._served.copy()  # in one go, for others add to it meanwhile
        unread = set(self._answers.stalled([upload.sock for upload in served]))
        for upload in served:
            if upload.cut_if_stalled() or upload.sock in unread:
                cut_off(upload.sock)
                self.end(upload)  # it is logged once


def cut_off(sock: Any) -> None:
    """End the connection of a client that made no progress, and log whose it was."""
    try:
        peer = sock.getpeername()
    except (OSError, ValueError):
        peer = "it has left"
    cut(sock)
    logger.info("closed the connection of a client that made no progress: %s", peer)


def acknowledged(sock: Any) -> int | None:
    """Return how many bytes a peer has acknowledged; ``None`` if that is all, or unknown."""
    if sys.platform != "linux":
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO)
    except (OSError, ValueError):  # closed, or no TCP
        return None
    if len(info) < _TCP_INFO:  # before Linux 4.6
        return None
    [unacked], [unsent] = (struct.unpack_from("=I", info, at) for at in (_UNACKED, _UNSENT))
    return struct.unpack_from("=Q", info, _ACKED)[0] if unacked or unsent else None


def cut(sock: Any) -> None:
    """End a connection at once, in whichever thread waits for it; its owner closes it."""
    sock = getattr(sock, "_sock", sock)  # of gevent's, which is none of the system's
    # Of TLS, too, without a close_notify: also pyOpenSSL's, which is no socket.
    shut = getattr(sock, "sock_shutdown", None) or partial(_socket.socket.shutdown, sock)
    with suppress(OSError, ValueError):
        # What it has not read is not kept for it when the socket is closed.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        shut(socket.SHUT_RDWR)
