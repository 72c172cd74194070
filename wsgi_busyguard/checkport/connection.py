"""One connection to a port."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from .ports import Port


class Peer:
    """One who has connected to a port, and what has been said.

    :ivar host: the address it came from.
    :ivar received: what it has sent so far.
    :ivar ended: whether it will say no more.
    :ivar lingers: whether it may talk on when it has its answer.
    :ivar feed: says what to send it next, once a second, if its answer goes on.
    """

    __slots__ = (
        "answered",
        "connection",
        "deadline",
        "drained",
        "ended",
        "feed",
        "host",
        "lingers",
        "port",
        "received",
        "rest",
        "watched",
    )

    def __init__(self, port: Port, connection: _socket.socket, host: str, deadline: float) -> None:
        self.port = port
        self.connection = connection
        self.host = host
        self.deadline = deadline
        self.received = b""
        self.ended = False
        self.lingers = True
        self.feed: Callable[[], bytes] | None = None
        self.answered = False
        self.rest = b""  # of the answer
        self.drained = 0
        self.watched = 0  # the events that the poll object looks out for
