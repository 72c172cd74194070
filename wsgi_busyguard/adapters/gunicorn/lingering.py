"""Connections that have been told all, until their peers have read it; and such as say nothing yet.

Both wait in the worker's own poller, in the thread that accepts. Knows sockets and a poller.
"""

from __future__ import annotations

import selectors
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from .wire import drained

if TYPE_CHECKING:
    from collections.abc import Callable

# What gunicorn itself grants (its close_graceful), there in the thread that should accept.
LINGER = 2.0

# Beyond this many the oldest is closed with whatever it has not read.
MOST_LINGERING = 128

# How long a connection may stay open before its first byte. Browsers open some to have them ready,
# and balancers only to see whether somebody accepts.
SILENCE = 5.0


class Waiting:
    """Sockets in a poller, each with a deadline, the oldest first.

    :param limit: how many at once; one more makes the oldest go.
    :param over: called with what came with a socket whose time is over or who had to make room.
    """

    def __init__(self, poller: Any, limit: int, over: Callable[[Any], object]) -> None:
        self._poller = poller
        self._limit = limit
        self._over = over
        self._deadlines: dict[Any, tuple[float, Any]] = {}

    def __len__(self) -> int:
        return len(self._deadlines)

    def add(self, sock: Any, seconds: float, what: Any, readable: Callable[[Any], object]) -> None:
        """Wait for a socket; call ``readable`` with ``what`` when it can be read.

        :raises OSError, ValueError: if the socket or the poller is closed already.
        """
        self.shed(len(self._deadlines) + 1 - self._limit)
        self._deadlines[sock] = time.monotonic() + seconds, what
        try:
            self._poller.register(sock, selectors.EVENT_READ, partial(self._readable, readable))
        except BaseException:
            self._deadlines.pop(sock, None)
            raise

    def remove(self, sock: Any) -> Any:
        """Wait no longer for a socket; return what came with it, ``None`` if it is not here."""
        _, what = self._deadlines.pop(sock, (0.0, None))
        if what is not None:
            with suppress(OSError, KeyError, ValueError):
                self._poller.unregister(sock)
        return what

    def expire(self, everyone: bool = False) -> None:
        """End those whose time is over, or everyone."""
        now = time.monotonic()
        for sock, (deadline, _) in list(self._deadlines.items()):
            if everyone or deadline <= now:
                self._end(sock)

    def hurry(self, seconds: float) -> None:
        """Have everyone's time be over in so many seconds at most."""
        until = time.monotonic() + seconds
        for sock, (deadline, what) in self._deadlines.items():
            self._deadlines[sock] = min(deadline, until), what

    def shed(self, count: int) -> int:
        """End at most so many, the oldest first; return how many that were."""
        oldest = list(self._deadlines)[: max(0, count)]  # up to 23.0, threads come here too
        for sock in oldest:
            self._end(sock)
        return len(oldest)

    def _end(self, sock: Any) -> None:
        what = self.remove(sock)
        if what is not None:
            self._over(what)

    def _readable(self, call: Callable[[Any], object], sock: Any) -> None:
        what = self._deadlines.get(sock)
        if what is not None:
            call(what[1])


class Lingering:
    """Sockets that are closed as soon as their peers have closed, or when their time is over.

    A socket closed with something unread in it resets the connection, and what was sent last may
    never be read.
    """

    def __init__(self, poller: Any) -> None:
        self._waiting = Waiting(poller, MOST_LINGERING, _close)

    def __len__(self) -> int:
        return len(self._waiting)

    def close(self, sock: Any) -> None:
        """Close a socket that has been shut down for sending, now or later."""
        if not drained(sock):
            with suppress(OSError, ValueError, KeyError):  # the poller is closed: the worker stops
                self._waiting.add(sock, LINGER, sock, self._more)
                return
        _close(sock)

    def expire(self, everyone: bool = False) -> None:
        """Close those who have had their time, or everyone."""
        self._waiting.expire(everyone)

    def _more(self, sock: Any) -> None:
        if drained(sock):
            self._waiting.remove(sock)
            _close(sock)


def _close(sock: Any) -> None:
    with suppress(OSError):
        sock.close()
