"""A thread that says what is said at once, and sees connections off. Knows sockets; no server."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..._support.log import logger
from ..front.sockets import drained

if TYPE_CHECKING:
    from collections.abc import Callable

# What gunicorn grants (its close_graceful) to a peer who is still sending when he is answered.
LINGER = 2.0

# Beyond this many the oldest is closed with whatever it has not read.
MOST_LINGERING = 128


class ReplyThread:
    """Does what it is given on a thread of its own, one after the other.

    Also keeps connections until their peers have read the last answer: one that is closed with
    something unread in it is reset, and what was sent last may never be read.
    """

    def __init__(self, name: str) -> None:
        self._jobs: deque[Callable[[], object]] = deque()
        self._lingering: dict[Any, tuple[float, Callable[[], object]]] = {}
        self._selector: selectors.BaseSelector
        self._bell: socket.socket
        self._rung: socket.socket
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._selector = selectors.DefaultSelector()
        self._bell, self._rung = socket.socketpair()
        for end in (self._bell, self._rung):
            end.setblocking(False)
        self._selector.register(self._rung, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Stop after what has been put so far, and close those who linger."""
        self._stopped = True
        self._ring()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to say, and nobody who has not read it."""
        return not self._jobs and not self._lingering

    def put(self, job: Callable[[], object]) -> None:
        """Have ``job`` done soon. From any thread."""
        self._jobs.append(job)
        self._ring()

    def linger(self, sock: Any, close: Callable[[], object]) -> None:
        """Call ``close`` when a peer who was told all has closed, or after two seconds.

        In a job.
        """
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        if drained(sock):
            close()
            return
        while len(self._lingering) >= MOST_LINGERING:
            self._end(next(iter(self._lingering)))
        self._lingering[sock] = time.monotonic() + LINGER, close
        self._selector.register(sock, selectors.EVENT_READ)

    def _run(self) -> None:
        while not self._stopped or self._jobs:
            first = next(iter(self._lingering.values()), None)
            timeout = None if first is None else max(0.0, first[0] - time.monotonic())
            for key, _ in self._selector.select(timeout):
                if key.fileobj is self._rung:
                    self._hear()
                elif drained(key.fileobj):  # type: ignore[arg-type]
                    self._end(key.fileobj)
            while self._jobs:
                _outlived(self._jobs[0])
                self._jobs.popleft()  # only now, or it would look empty too soon
            self._expire()
        for sock in list(self._lingering):
            self._end(sock)
        self._selector.close()
        self._rung.close()  # the bell stays: somebody may ring, and a descriptor may be reused

    def _ring(self) -> None:
        with suppress(OSError):  # full: it has been rung
            self._bell.send(b"x")

    def _hear(self) -> None:
        with suppress(OSError):
            while self._rung.recv(4096):
                pass

    def _expire(self) -> None:
        now = time.monotonic()
        for sock, (until, _) in list(self._lingering.items()):
            if until > now:
                break
            self._end(sock)

    def _end(self, sock: Any) -> None:
        _, close = self._lingering.pop(sock)
        with suppress(OSError, KeyError, ValueError):
            self._selector.unregister(sock)
        _outlived(close)


def _outlived(job: Callable[[], object]) -> None:
    try:
        job()
    except Exception:
        logger.exception("gave up on one connection")
