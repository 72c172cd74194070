"""Connections that have been told all, until their peers have read it; and such as have yet to ask.

Both wait in a poller, in one thread, which is not held up. Knows sockets and a poller; no server.
"""

from __future__ import annotations

import _socket
import selectors
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..._support.unpatched import NO_TIMEOUT
from .sockets import drain, send_last

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

# Seconds for a peer who is still sending when it is answered. What gunicorn itself grants (its
# close_graceful), there in the thread that should accept.
CLOSE_LINGER_SECONDS = 2.0

# Beyond this many the oldest is closed with whatever it has not read.
MOST_LINGERING_SOCKETS = 128

# How long a connection may stay open before its first byte, and from there to the end of its head.
# Browsers open some to have them ready, and balancers only to see whether somebody accepts.
SILENCE_SECONDS = 5.0

# For so long one who has just connected is expected to ask: most do so in a round trip.
FIRST_BYTE_SECONDS = 0.1


class WaitingSocket(NamedTuple):
    """The place of one who waits: until when, what came with it, and since when."""

    until: float
    what: Any
    since: float


class WaitingSockets:
    """Sockets in a poller, each with a deadline, the oldest first.

    :param limit: how many at once; one more makes the oldest go.
    :param over: called with what came with a socket whose time is over or who had to make room.
    """

    def __init__(self, poller: Any, limit: int, over: Callable[[Any], object]) -> None:
        self._poller = poller
        self._limit = limit
        self._over = over
        self._places: dict[Any, WaitingSocket] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, sock: Any) -> bool:
        return sock in self._places

    def add(self, sock: Any, seconds: float, what: Any, readable: Callable[[Any], object]) -> None:
        """Wait for a socket; call ``readable`` with ``what`` when it can be read.

        :raises OSError, ValueError: if the socket or the poller is closed already.
        """
        self.shed(len(self._places) + 1 - self._limit)
        now = time.monotonic()
        self._places[sock] = WaitingSocket(now + seconds, what, now)
        try:
            self._poller.register(sock, selectors.EVENT_READ, partial(self._readable, readable))
        except BaseException:
            self._places.pop(sock, None)
            raise

    def renew(self, sock: Any, seconds: float) -> None:
        """Have the time of one who waits be over in so many seconds; it keeps its place."""
        self._places[sock] = self._places[sock]._replace(until=time.monotonic() + seconds)

    def young(self) -> int:
        """Return how many have come just now."""
        since = time.monotonic() - FIRST_BYTE_SECONDS
        return sum(place.since >= since for place in list(self._places.values()))

    def remove(self, sock: Any) -> Any:
        """Wait no longer for a socket; return what came with it, ``None`` if it is not here."""
        place = self._places.pop(sock, None)
        if place is None:
            return None
        with suppress(OSError, KeyError, ValueError):
            self._poller.unregister(sock)
        return place.what

    def expire(self, everyone: bool = False) -> None:
        """End those whose time is over, or everyone."""
        now = time.monotonic()
        for sock, place in list(self._places.items()):
            if everyone or place.until <= now:
                self._end(sock)

    def hurry(self, seconds: float) -> None:
        """Have everyone's time be over in so many seconds at most."""
        until = time.monotonic() + seconds
        for sock, place in self._places.items():
            self._places[sock] = place._replace(until=min(place.until, until))

    def shed(self, count: int, also_young: bool = True) -> int:
        """End at most so many, the oldest first; return how many that were.

        :param also_young: whether those are among them who are about to speak.
        """
        since = time.monotonic() - (0.0 if also_young else FIRST_BYTE_SECONDS)
        places = list(self._places.items())[: max(0, count)]  # up to 23.0, threads come here too
        oldest = [sock for sock, place in places if place.since <= since]
        for sock in oldest:
            self._end(sock)
        return len(oldest)

    def _end(self, sock: Any) -> None:
        what = self.remove(sock)
        if what is not None:
            self._over(what)

    def _readable(self, call: Callable[[Any], object], sock: Any) -> None:
        place = self._places.get(sock)
        if place is not None:
            call(place.what)


class LingeringSockets:
    """Sockets that are closed as soon as their peers have closed, or when their time is over.

    A socket closed with something unread in it resets the connection, and what was sent last may
    never be read.

    :param poller: waits for them; it calls the data of a key with the key's socket.
    """

    def __init__(self, poller: Any) -> None:
        self._waiting = WaitingSockets(poller, MOST_LINGERING_SOCKETS, _end)

    def __len__(self) -> int:
        return len(self._waiting)

    def close(self, sock: Any, last: bytes | None = None) -> None:
        """Close a socket, now or later.

        From here on it is ours alone: for the app, which may have kept it, it is closed.

        :param last: what is said before that; ``None`` if it has been shut down for sending.
        """
        own = taken_over(sock)
        if own is None:
            return
        if last is not None:
            send_last(own, last)
        self.see_off(own, own.close)

    def see_off(self, sock: Any, close: Callable[[], object]) -> None:
        """Call ``close`` when a peer that was told all has closed, or when its time is over."""
        leaving = sock, close
        if not drain(sock):
            with suppress(OSError, ValueError, KeyError):  # the poller is closed: the worker stops
                self._waiting.add(sock, CLOSE_LINGER_SECONDS, leaving, self._more)
                return
        _end(leaving)

    def expire(self, everyone: bool = False) -> None:
        """Close those who have had their time, or everyone."""
        self._waiting.expire(everyone)

    def _more(self, leaving: tuple[Any, Callable[[], object]]) -> None:
        if drain(leaving[0]):
            self._waiting.remove(leaving[0])
            _end(leaving)


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


def _end(leaving: tuple[Any, Callable[[], object]]) -> None:
    _, close = leaving
    with suppress(OSError):
        close()
