"""What servers have in common whose processes accept from one listener when they can serve.

The queue is one for all, in the kernel; who is being served is known in each process only.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from ..._support.frames import callers
from ..._support.listening_sockets import is_listener, look_at
from ..acceptqueue import waiting
from .derived import DerivedAdapter

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from ...board.board import Board
    from ...load import Adapter, Load

# The middleware's function that answers checks.
CHECK_FUNCTION = ("wsgi_busyguard.middleware", "_answer")


class Listeners:
    """The descriptors at which a server listens, looked at anew each time.

    They are the server's: it may close one, and the kernel gives the number away again. So a
    descriptor counts only while it has the name that it had at first.
    """

    def __init__(self, descriptors: Iterable[int]) -> None:
        self._names = {number: look_at(number, name_of) for number in descriptors}

    def waiting(self) -> int | None:
        """Return how many connections wait at all of them; ``None`` if that cannot be known."""
        queues = [
            look_at(number, partial(_waiting_at, name=name))
            for number, name in self._names.items()
            if name is not None
        ]
        known = [queue for queue in queues if queue is not None]
        return sum(known) if known else None

    def __repr__(self) -> str:
        return f"<Listeners at {list(filter(None, self._names.values()))}>"


def _waiting_at(sock: socket.socket, name: Any) -> int | None:
    return waiting(sock) if name_of(sock) == name else None


def name_of(sock: socket.socket) -> Any:
    """Return the name of a socket that listens; ``None`` if it does not."""
    return sock.getsockname() if is_listener(sock) else None


def asking() -> bool:
    """Return whether this very thread answers a check, which is a request like any other here."""
    return any(
        (frame.f_globals.get("__name__"), frame.f_code.co_name) == CHECK_FUNCTION
        for frame in callers()
    )


def others(active: int) -> int:
    """Return how many of these are not the check for which this is read."""
    return max(0, active - asking())


def posts_the_queue(board: Board) -> bool:
    """Return whether this process is the one that posts the queue of all: no other one leads."""
    return board.leader() in (None, os.getpid())


def share_of(adapter: Adapter, board: Board) -> DerivedAdapter:
    """Return one process's part of what all of them post on a board: the queue is posted once.

    :param adapter: reads what is served in this process, and the queue of all.
    :param board: where they post; one board for one server.
    """

    def read() -> Load | None:
        load = adapter.read()
        return load if load is None or posts_the_queue(board) else load._replace(queued=0)

    return DerivedAdapter(read, adapter)
