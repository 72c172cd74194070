"""The connections of a site: who asks by which, who is idle, and how each is closed.

Over HTTP/1 a request's channel is its connection. Over HTTP/2 it is one stream of many, and has no
transport of its own; the name of a stream's connection is private, the same from 16.3 to 26.10.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionAborted
from twisted.python.failure import Failure

from ..._support.log import FailOpen
from ..front.base import nothing
from ..front.descriptors import Room, eviction_order, excess, is_last, overdrawn
from .ports import Ports

if TYPE_CHECKING:
    from collections.abc import Callable


def connection_of(channel: Any) -> Any:
    """Return what carries the requests of a channel: an HTTPChannel or an H2Connection."""
    return getattr(channel, "_conn", channel)


def speaks_http2(connection: Any) -> bool:
    """Return whether a connection carries streams."""
    return hasattr(connection, "streams")


def is_open(connection: Any) -> bool:
    """Return whether neither side has closed."""
    return _is_open(connection.transport)


def close(connection: Any) -> bool:
    """Close a connection when what was answered is written; return whether it is or was closed.

    One of HTTP/2 is not closed while an answer is on its way; ask again then. Its peer is told
    which stream was the last, so that it may ask elsewhere for what came after.
    """
    transport = connection.transport
    if not is_open(connection) or getattr(transport, "disconnecting", False):
        return True
    if speaks_http2(connection):
        if connection.streams:
            return False
        connection.conn.close_connection()
        transport.write(connection.conn.data_to_send())
    transport.unregisterProducer()  # the connection itself, which has nothing to add
    transport.loseConnection()
    return True


# Of these steps a request depends on none.
safely = FailOpen("Twisted")


class ConnectionRecord:
    """What is known of one open connection.

    :ivar connection: returns what carries the requests, which holds the transport and so is not
        held here; ``None`` until the first has begun to come.
    :ivar asking: how many requests have begun to come, and are not whole.
    :ivar uploading: whether the head of one of these has come.
    :ivar used: whether one has come whole.
    """

    __slots__ = ("asking", "connection", "uploading", "used")

    def __init__(self) -> None:
        self.connection: Callable[[], Any] = nothing
        self.asking = 0
        self.uploading = self.used = False


class Connections:
    """The open connections of one site, those first that have asked for nothing for longest.

    :ivar ports: where they come in.
    """

    def __init__(self, reactor: Any) -> None:
        self.ports = Ports(reactor)
        # By transport.
        self._known: weakref.WeakKeyDictionary[Any, ConnectionRecord] = weakref.WeakKeyDictionary()
        self._room: Room[Any] = Room(self._end, _is_open)

    def attend(self, protocol: Any) -> None:
        """Know of a connection as soon as it is made."""

        def connected(transport: Any) -> None:
            del protocol.makeConnection  # what stands there refers to it: a cycle
            safely(self._met, transport)
            protocol.makeConnection(transport)

        protocol.makeConnection = connected

    def begun(self, connection: Any) -> None:
        """Note that a request has begun to come."""
        record = self._record(connection)
        record.connection = weakref.ref(connection)
        record.asking += 1

    def headed(self, connection: Any) -> None:
        """Note that the head of a request has come."""
        self._record(connection).uploading = True

    def given_up(self, connection: Any) -> None:
        """Note that the rest of a request will not come."""
        record = self._record(connection)
        record.asking -= 1
        record.uploading = False

    def _record(self, connection: Any) -> ConnectionRecord:
        # Of one that is on its way out nothing is kept.
        return self._known.get(connection.transport) or ConnectionRecord()

    def asked(self, connection: Any) -> None:
        """Note that a request has come whole."""
        record = self._known.pop(connection.transport, None)
        if record is not None:
            record.asking -= 1
            record.uploading, record.used = False, True
            self._known[connection.transport] = record  # the last, from now on

    def may_ask(self, transport: Any) -> bool:
        """Return whether a request is still to come by a transport, as far as is known."""
        record = self._known.get(transport)
        return record is None or not record.used or record.asking > 0

    def used(self) -> list[Any]:
        """Return the connections by which requests have come, and that are open."""
        connections = [record.connection() for record in self._known.values() if record.used]
        return [one for one in connections if one is not None and is_open(one)]

    def look(self) -> None:
        """Make room, a few times a second; a burst may have taken the last descriptors."""
        wanted = overdrawn()
        self._room.make(wanted, self._in_turn)
        self.ports.look(wanted > 0)

    def _met(self, transport: Any) -> None:
        self._make_room(transport)
        self._known[transport] = ConnectionRecord()

    def _make_room(self, transport: Any) -> None:
        """Have others go for one that has got one of the last descriptors.

        Twisted itself closes whoever comes when there is none, and so each check as well.
        """
        descriptor = getattr(transport, "fileno", None)
        if descriptor is not None:
            number = descriptor()
            self._room.make(excess(number), self._in_turn)
            self.ports.came_by(getattr(transport, "server", None), is_last(number))

    def _in_turn(self) -> list[Any]:
        """Return the transports by which no request is being answered, and who is to go first."""
        silent: list[Any] = []
        idle: list[Any] = []
        half: list[Any] = []
        for transport, record in self._known.items():
            connection = record.connection()
            under_way = 0 if connection is None else _under_way(connection)
            if under_way > record.asking or not _is_open(transport):
                continue
            if record.used or record.uploading:
                (half if record.asking else idle).append(transport)
            else:
                silent.append(transport)
        return eviction_order(silent, idle, half)

    def _end(self, transport: Any) -> None:
        del self._known[transport]
        descriptor = transport
        while hasattr(descriptor, "transport"):  # TLS, or the PROXY protocol: what carries it
            descriptor = descriptor.transport
        transport.abortConnection()  # a polite end over TLS would wait for the peer's
        # In the next turn Twisted would do the same, and find it done; a hundred may be accepted in
        # this one, and for the last of them no descriptor be left.
        descriptor.connectionLost(Failure(ConnectionAborted()))


def _is_open(transport: Any) -> bool:
    return not getattr(transport, "disconnected", True)


def _under_way(connection: Any) -> int:
    return len(connection.streams if speaks_http2(connection) else connection.requests)
