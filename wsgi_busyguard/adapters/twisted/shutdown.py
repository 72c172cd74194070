"""How a site stops listening: nobody who has connected is reset, or left without an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort

from ..front.last_connections import HANDSHAKES, LINGER, LOOK, admit_no_more, pending

if TYPE_CHECKING:
    from collections.abc import Callable

# Who waits to be accepted is taken in at so many calls at most; each takes in one or more.
MOST = 10_000


class LastCall:
    """Stops listening for a site, and waits a little for those who were let in.

    :param may_ask: whether a request is still to come by a transport, as far as is known.
    :param opened_by: the process in which the site began to listen.
    """

    def __init__(
        self, reactor: Any, site: object, may_ask: Callable[[Any], bool], opened_by: int
    ) -> None:
        self._reactor = reactor
        self._site = site
        self._may_ask = may_ask
        self._opened_by = opened_by
        self._over: Deferred[None] = Deferred()

    def make(self, until: float) -> Deferred[None]:
        """Make the last call. In the reactor thread.

        :param until: the reactor's seconds after which nobody is waited for.

        Returns a Deferred that fires when all who were let in have their answers, but for those who
        say nothing for half a second.
        """
        ports = [
            reader
            for reader in self._readers()
            if IListeningPort.providedBy(reader) and self._is_ours(reader.factory)
        ]
        for port in ports:
            # Of one that was adopted somebody else has the socket, too; it has no number.
            if getattr(port, "port", None) is not None:
                admit_no_more(port.socket, self._opened_by)
        now = self._reactor.seconds()
        pause = max(0.0, min(HANDSHAKES, until - now))
        self._reactor.callLater(pause, self._leave, ports, min(until, now + LINGER))
        return self._over

    def _leave(self, ports: list[Any], until: float) -> None:
        for port in ports:
            if port.connected and not port.disconnecting:
                # It is closed in the next turn; who has come by then is taken in just before.
                self._reactor.callLater(0, _take_in, port)
                port.stopListening()
        self._reactor.callLater(0, self._look, until)

    def _look(self, until: float) -> None:
        if self._reactor.seconds() >= until or not any(map(self._is_awaited, self._readers())):
            self._over.callback(None)
        else:
            self._reactor.callLater(LOOK, self._look, until)

    def _readers(self) -> list[Any]:
        return list(getattr(self._reactor, "getReaders", list)())

    def _is_awaited(self, transport: Any) -> bool:
        protocol = getattr(transport, "protocol", None)
        if protocol is None or not self._is_ours(getattr(protocol, "factory", None)):
            return False
        # Over TLS, what a request sees as its transport is the protocol of the connection.
        is_wrapped = protocol.factory is not self._site
        return self._may_ask(protocol if is_wrapped else transport)

    def _is_ours(self, factory: Any) -> bool:
        """Return whether what a factory makes is the site's, also if it is wrapped, as in TLS."""
        while factory is not None and factory is not self._site:
            factory = getattr(factory, "wrappedFactory", None)
        return factory is not None


def _take_in(port: Any) -> None:
    for _ in range(MOST):
        if not (port.connected and pending(port.socket)):
            break
        port.doRead()
