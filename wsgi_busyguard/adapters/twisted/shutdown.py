"""How a site stops listening: nobody who has connected is reset, or left without an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort

from ..front.last_connections import last_call, pending
from .connections import Connections, close, safely
from .ports import listens

if TYPE_CHECKING:
    import socket

# Who waits to be accepted is taken in at so many calls at most; each takes in one or more.
MOST_ACCEPTS = 10_000


class StoppingSite:
    """A site that is asked what it has left, and told to listen no more. In the reactor thread."""

    def __init__(self, reactor: Any, site: object, connections: Connections) -> None:
        self._reactor = reactor
        self._site = site
        self._connections = connections
        self._ports = [
            reader
            for reader in self._readers()
            if IListeningPort.providedBy(reader) and self._is_ours(reader.factory)
        ]

    def stop(self, opened_by: int, until: float) -> Deferred[None]:
        """Make the last call; return what fires when each that was let in has its answer.

        :param opened_by: the process in which the site began to listen.
        :param until: the reactor's seconds after which nobody is waited for.
        """
        done: Deferred[None] = Deferred()
        # Of one that was adopted somebody else has the socket, too; it has no number.
        closed = [port.socket for port in self._ports if getattr(port, "port", None) is not None]
        call = last_call(self, closed, opened_by, until, self._reactor.seconds)

        def step() -> float | None:
            return next(call, None)

        def go_on() -> None:
            pause = safely(step)  # where it cannot be made, the reactor ends as without it
            if pause is None:
                done.callback(None)
            else:
                self._reactor.callLater(pause, go_on)

        go_on()
        return done

    def listeners(self) -> list[socket.socket]:
        """Return the sockets of the ports that are open."""
        return [port.socket for port in self._ports if listens(port)]

    def stop_listening(self) -> None:
        """Close them in the next turn, and take in just before whoever waits there by then."""
        for port in filter(listens, self._ports):
            self._reactor.callLater(0, _take_in, port)
            port.stopListening()

    def awaited(self) -> bool:
        """Return whether a request is still to come by a connection, as far as is known."""
        return any(map(self._is_awaited, self._readers()))

    def flushed(self) -> bool:
        """Close each connection whose answers are written; return whether all of them are.

        Twisted takes a whole body into memory, so a thread is done with it long before a slow
        client is; the reactor would end with the rest unsent.
        """
        used = self._connections.used()
        for connection in used:
            close(connection)  # over HTTP/2 it may have to be asked again
        return not used

    def _readers(self) -> list[Any]:
        return list(getattr(self._reactor, "getReaders", list)())

    def _is_awaited(self, transport: Any) -> bool:
        protocol = getattr(transport, "protocol", None)
        if protocol is None or not self._is_ours(getattr(protocol, "factory", None)):
            return False
        # Over TLS, what a request sees as its transport is the protocol of the connection.
        is_wrapped = protocol.factory is not self._site
        return self._connections.may_ask(protocol if is_wrapped else transport)

    def _is_ours(self, factory: Any) -> bool:
        """Return whether what a factory makes is the site's, also if it is wrapped, as in TLS."""
        while factory is not None and factory is not self._site:
            factory = getattr(factory, "wrappedFactory", None)
        return factory is not None


def _take_in(port: Any) -> None:
    for _ in range(MOST_ACCEPTS):
        if not (port.connected and pending(port.socket)):
            break
        port.doRead()
