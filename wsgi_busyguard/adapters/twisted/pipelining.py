"""Answers in the reactor thread: one a connection in each of the reactor's turns.

A request that is answered at once has Twisted parse and process the next that its client has sent
already, and so on to the last, while nobody else is attended to: 64 KB of checks take a quarter of
a second. So the second answer is given in the next turn, and what is behind it waits as it would
for an app's.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure

from ..._support.log import logger
from .connections import close, connection_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.web.server import Request

# Seconds between two looks at whether a connection can be closed.
LOOK_SECONDS = 0.05


class AnswerTurns:
    """Whose turn it is to be answered. Everything here is for the reactor thread."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        # Those that have had an answer in this turn, and what is to be answered in the next ones.
        self._lines: dict[Any, deque[Callable[[], object]]] = {}
        self._closing: set[Any] = set()

    def take(self, request: Request, answer: Callable[[], object]) -> None:
        """Call ``answer`` now, or in one of the next turns if the client is there by then."""
        connection = connection_of(request.channel)
        line = self._lines.get(connection)
        if line is not None:
            line.append(_LaterAnswer(request, answer))
            return
        if not self._lines:
            self._reactor.callLater(0, self._next)
        self._lines[connection] = deque()
        answer()

    def close(self, connection: Any) -> None:
        """Close a connection once everything is written."""
        if connection not in self._closing and not close(connection):
            self._closing.add(connection)
            self._reactor.callLater(LOOK_SECONDS, self._close, connection)

    def _next(self) -> None:
        try:
            for connection, line in list(self._lines.items()):
                if line:
                    line.popleft()()  # which may have the connection's next request stand in line
                else:
                    del self._lines[connection]
        finally:  # or one who cannot be told even a 500 would be the last of all
            if self._lines:
                self._reactor.callLater(0, self._next)

    def _close(self, connection: Any) -> None:
        self._closing.discard(connection)
        self.close(connection)


class _LaterAnswer:
    def __init__(self, request: Request, answer: Callable[[], object]) -> None:
        self._request = request
        self._answer = answer
        self._gone = False
        request.notifyFinish().addErrback(self._left)

    def _left(self, _failure: object) -> None:
        self._gone = True

    def __call__(self) -> None:
        if self._gone:
            return
        try:
            self._answer()
        except Exception:  # in render() Twisted would have caught it
            logger.exception("could not answer a request")
            self._request.processingFailed(Failure())
