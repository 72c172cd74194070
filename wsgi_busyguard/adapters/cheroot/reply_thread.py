"""A thread that says what is said at once, and sees connections off. Knows sockets; no server."""

from __future__ import annotations

import selectors
import socket
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ..._support.log import logger
from ..front.sockets import send_last
from ..front.waiting_sockets import LingeringSockets

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds between two looks at whether those who linger have had their time.
LOOK_SECONDS = 0.25


class ReplyThread:
    """Does what it is given on a thread of its own, one after the other.

    Also keeps connections until their peers have read the last answer.
    """

    def __init__(self, name: str) -> None:
        self._jobs: deque[Callable[[], object]] = deque()
        self._lingering: LingeringSockets | None = None
        self._selector: selectors.BaseSelector
        self._bell: socket.socket
        self._rung: socket.socket
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._selector = selectors.DefaultSelector()
        self._lingering = LingeringSockets(self._selector)
        self._bell, self._rung = socket.socketpair()
        for end in (self._bell, self._rung):
            end.setblocking(False)
        self._selector.register(self._rung, selectors.EVENT_READ, self._hear)
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
        """Call ``close`` when a peer that was told all has closed, or after two seconds.

        In a job.
        """
        assert self._lingering is not None
        send_last(sock, b"")
        self._lingering.see_off(sock, close)

    def _run(self) -> None:
        lingering = self._lingering
        assert lingering is not None
        while not self._stopped or self._jobs:
            for key, _ in self._selector.select(LOOK_SECONDS if lingering else None):
                _outlived(partial(key.data, key.fileobj))
            while self._jobs:
                _outlived(self._jobs[0])
                self._jobs.popleft()  # only now, or it would look empty too soon
            _outlived(lingering.expire)
        _outlived(partial(lingering.expire, True))
        self._selector.close()
        self._rung.close()  # the bell stays: somebody may ring, and a descriptor may be reused

    def _ring(self) -> None:
        with suppress(OSError):  # full: it has been rung
            self._bell.send(b"x")

    def _hear(self, _: object) -> None:
        with suppress(OSError):
            while self._rung.recv(4096):
                pass


def _outlived(job: Callable[[], object]) -> None:
    try:
        job()
    except Exception:
        logger.exception("gave up on one connection")
