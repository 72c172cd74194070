"""The ports of a site: they let nobody in while hardly a file descriptor is left.

Twisted would accept whoever comes and close the connection at once, so nobody waited, and by its
figures the site were free. Who is left in the kernel's queue can be served a moment later, and is
seen there until then.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from twisted.internet.tcp import Port

from ..front.accept_backlog import StandingQueue
from ..front.base import as_it_is
from ..front.descriptors import PAUSE_SECONDS, exhausted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


class Ports:
    """The ports by which somebody has come so far. In the reactor thread, but for the sockets."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._sockets: tuple[socket.socket, ...] = ()
        self._paused: list[Any] = []
        #: Returns what accepts in place of a listening socket.
        self.refusing: Callable[[Any], Any] = as_it_is
        #: Who stands in front of them.
        self.standing = StandingQueue(lambda: self._sockets)

    def came_by(self, port: Any, scarce: bool) -> None:
        """Note that a connection was accepted.

        :param port: by what; ``None`` if not by a listening socket.
        :param scarce: whether it has got one of the last descriptors.
        """
        if port is None:
            return
        if port not in self._known:
            self._known.add(port)
            if isinstance(port, Port):  # else, on Windows, nothing is accepted by its socket
                port.socket = self.refusing(port.socket)
        if scarce:
            # Twisted accepts a hundred at once, and more each time if so many come. So it does not
            # become more now, and the number is small after a pause.
            port.numberAccepts = 0
            self._pause()

    def look(self, scarce: bool) -> None:
        """Look after them, a few times a second.

        :param scarce: whether few descriptors are left.
        """
        if scarce:
            self._pause()
        self._sockets = tuple(port.socket for port in self._known if listens(port))
        self.standing.look()

    def go_on(self) -> None:
        """Let everybody in again."""
        paused, self._paused = self._paused, []
        for port in filter(listens, paused):
            port.numberAccepts = 1
            port.startReading()

    def _pause(self) -> None:
        """Let nobody in for a moment, if hardly anybody could be."""
        if self._paused or not exhausted():
            return
        self._paused = list(filter(listens, self._known))
        for port in self._paused:
            port.stopReading()
        self._reactor.callLater(PAUSE_SECONDS, self._look_again)

    def _look_again(self) -> None:
        if self._paused and exhausted():
            self._reactor.callLater(PAUSE_SECONDS, self._look_again)
        else:
            self.go_on()


def listens(port: Any) -> bool:
    """Return whether a port has a listening socket, and keeps it."""
    return bool(port.connected and not port.disconnecting)
