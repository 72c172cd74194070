"""When file descriptors run out: a front makes room before nobody can get in any more.

Knows descriptors and sockets; no server.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from socket import SHUT_RDWR
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..._support.listening_sockets import NO_DESCRIPTOR
from ..._support.log import Streak
from ...policy import limits, loose_limits

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

T = TypeVar("T")

# Left for the app's files and connections, and for the check port: at most so many, and at most a
# quarter of all.
SPARE_DESCRIPTORS = 64
SPARE_DIVISOR = 4

# Connections that a server is to accept beyond its threads and its queue. At its limit it accepts
# nobody, and then a check waits in the kernel.
SPARE_CONNECTIONS = 8

# Seconds until it is tried again to accept somebody when there was none.
PAUSE_SECONDS = 0.02

# With fewer left than these nobody is accepted: one is for the connection, one for a look at how
# many there are.
LAST_DESCRIPTORS = 3


def limit() -> int | None:
    """Return how many file descriptors this process may have; ``None`` where nothing bounds it."""
    with suppress(ImportError):
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return None if most == resource.RLIM_INFINITY else most
    return None


def excess(descriptor: int) -> int:
    """Return how many connections are too many, by the descriptor of one just accepted.

    The kernel gives out the lowest that is free, so all below it are taken. More may be: after a
    burst in which others have left, this one may have got the number of one of those.
    """
    most = limit()
    return 0 if most is None else max(0, descriptor + 1 - (most - spare_count(most)))


def overdrawn() -> int:
    """Return how many connections are too many, by all descriptors. To be called now and then."""
    most = limit()
    return 0 if most is None else max(0, open_count(most) - (most - spare_count(most)))


def is_last(descriptor: int) -> bool:
    """Return whether hardly another connection can be accepted, by the descriptor of one."""
    most = limit()
    return most is not None and descriptor >= most - LAST_DESCRIPTORS


def exhausted() -> bool:
    """Return whether hardly another connection can be accepted."""
    most = limit()
    return most is not None and open_count(most) > most - LAST_DESCRIPTORS


def open_count(most: int) -> int:
    """Return how many descriptors this process has; ``most`` if none is left for a look."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError as error:
        return most if error.errno in NO_DESCRIPTOR else 0  # there is no such folder


class Acceptor:
    """Accepts a connection; while no descriptor is left it says so once, and takes its time.

    The listening socket is readable all that while, so a server would try again at once, and write
    a traceback each time.

    :param accept: the server's; it may return ``None`` if there is nobody any more.
    :param make_room: has somebody go.
    """

    def __init__(self, accept: Callable[..., Any], make_room: Callable[[], object]) -> None:
        self._accept = accept
        self._make_room = make_room
        self._none_left = Streak()

    def __call__(self, *arguments: Any) -> Any:
        """Return what the server's returns; ``None`` if no descriptor is left."""
        try:
            accepted = self._accept(*arguments)
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR:
                raise
            message = "no file descriptor is left to accept a connection with"
            self._none_left.failed(message, level=logging.WARNING)
            self._make_room()
            time.sleep(PAUSE_SECONDS)
            return None
        self._none_left.over()
        return accepted


class Room(Generic[T]):
    """Has others go for a connection that was just accepted.

    :param end: ends one of them; its descriptor may be free only later.
    :param is_open: returns whether it is not yet.
    """

    def __init__(self, end: Callable[[T], object], is_open: Callable[[T], bool]) -> None:
        self._end = end
        self._is_open = is_open
        self._going: list[T] = []

    def make(self, wanted: int, candidates: Callable[[], list[T]]) -> None:
        """End so many, less those who are on their way.

        :param candidates: returns who is to go, the first first.
        """
        if wanted <= 0:
            return
        self._going = [one for one in self._going if self._is_open(one)]
        missing = wanted - len(self._going)
        if missing > 0:
            for one in candidates()[:missing]:
                self._going.append(one)
                self._end(one)


def eviction_order(silent: list[T], idle: list[T], half: list[T]) -> list[T]:
    """Return who is to go, the first first, so that another connection can be made.

    Each list begins with the oldest. Where most are silent they are a crowd, and whoever has just
    connected and is about to ask comes last; where few are, they are such.

    :param silent: who has not sent the whole head of a first request.
    :param idle: who has asked and has all answers.
    :param half: who is in the middle of a request, or of reading an answer.
    """
    crowd = len(silent) > len(idle) + len(half)
    return [*silent, *idle, *half] if crowd else [*idle, *half, *silent]


def hang_up(sock: socket.socket) -> None:
    """End a connection for whoever reads from it; that one closes it."""
    shut: Callable[[int], object] = getattr(sock, "sock_shutdown", sock.shutdown)  # pyOpenSSL's
    with suppress(OSError):
        shut(SHUT_RDWR)


def is_open(sock: socket.socket) -> bool:
    """Return whether a socket has a descriptor."""
    return sock.fileno() >= 0


def spare_count(most: int) -> int:
    """Return how many of so many descriptors are not for connections."""
    return min(SPARE_DESCRIPTORS, most // SPARE_DIVISOR)


def most_connections(most: int, least: int) -> int:
    """Return how many connections can be open beside what is open now.

    :param most: as many as the server is to have at once, if there are descriptors for them.
    :param least: as many as there must be, if it is to have so many.
    """
    bound = limit()
    if bound is None:
        return most
    return min(most, max(least, bound - open_count(bound) - spare_count(bound)))


def default_max_queue(slots: int) -> float:
    """Return how many may wait, with a connection each, if the operator does not say.

    No more than half of the descriptors are theirs, or four for each slot.
    """
    bound, most = limit(), loose_limits(slots).max_queue
    return most if bound is None else max(limits(slots).max_queue, min(most, bound // 2))
