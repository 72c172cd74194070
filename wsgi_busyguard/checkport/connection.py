"""The two ends of a conversation on a port, for the loop to bring together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._support.listener import listening
from .._support.listening_sockets import note_ours

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable


class Peer:
    """One connection to a port.

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

    def __init__(
        self, port: Endpoint, connection: _socket.socket, host: str, deadline: float
    ) -> None:
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


class Endpoint:
    """A place to listen at, and what is answered there; whoever attends to it is no matter here.

    :param listen: where, as ``HOST:PORT``; port 0 has the kernel choose.
    :param patience: seconds in which a peer has to say what it wants.
    :param share: whether other processes of this user may listen there too.
    :raises OSError: if it cannot listen there.
    :ivar address: host and port that it listens at.
    :ivar every: called once a second with the monotonic time, whether anybody asks or not.
    """

    every: Callable[[float], None] | None = None

    def __init__(self, listen: str, patience: float, share: bool = False) -> None:
        self.listener = listening(listen, share, self._note)
        self.address: tuple[str, int] = self.listener.getsockname()[:2]
        self.patience = patience

    def _note(self, listener: _socket.socket) -> None:
        self.listener = listener
        note_ours(self)

    def heard(self, peer: Peer, late: bool) -> bytes | None:
        """Return the answer to what ``peer`` has sent so far.

        ``None``: wait for more, which is no use if it is ``late`` or has ended. Nothing: close.
        An answer may go on: see ``feed`` of the peer.
        """
        raise NotImplementedError

    def answered(self, peer: Peer) -> None:
        """Note that ``peer`` has been sent its answer."""
