"""A guard in one of several processes that accept from one listener."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ...board.membership import Member, opened
from ...middleware import BusyGuard
from ...monitor import Monitor
from ...options import PREFORK, from_keywords
from ..readers.sampling import SamplingAdapter

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication

    from ...board.board import Board


class GuardedProcess:
    """A guard in one of several processes, and what makes it one of them.

    :param app: the WSGI app.
    :param adapter: makes what reads the whole server, as far as one process can, and has a
        ``share()`` for the board.
    :param options: those of :class:`~wsgi_busyguard.BusyGuard`.
    :ivar guard: the guard.
    """

    def __init__(
        self,
        app: WSGIApplication,
        adapter: Callable[[], Any],
        *,
        board: Board | str | os.PathLike[str] | None = None,
        slots: int | None = None,
        **options: Any,
    ) -> None:
        from_keywords(PREFORK, options)  # says of one that is not taken here what to do
        if slots is None:
            options["max_wait"] = _no_limit(options.get("max_wait"))
        self._member: Any = None
        self._is_gate = slots is not None
        if slots is not None:
            self.guard = BusyGuard(app, slots=slots, board=board, **options)
            if board is not None:
                self._member = self.guard.monitor.adapter
                # It beats when it serves. uWSGI tells Python of no fork: a thread that held a lock
                # in the master would hold it for ever in a worker, whose beats then end.
                self._member.stop()
                self._member.leave()
            return
        if board is None:
            reads = SamplingAdapter(adapter())
        else:
            board = opened(board)
            reads = SamplingAdapter(adapter().share(board))
            self._member = Member(board, reads)
        self.guard = BusyGuard(app, monitor=Monitor(self._member or reads), **options)
        reads.calls = self.guard.next_call

    def begin(self) -> None:
        """Have this process be counted from now on: it serves."""
        if self._member is None:
            return
        if self._is_gate:
            self._member.call()
            return
        self._member.enter()
        self._member.start(self._look_out)

    def _look_out(self) -> None:
        if self.guard.monitor.stopping:
            self._member.go()

    def end(self) -> None:
        """Have checks say that this process is shutting down, and the others not count on it."""
        self.guard.monitor.drain()
        if self._member is not None:
            self._member.go()


def _no_limit(max_wait: float | None) -> float:
    """Return the limit of a guard that is no gate here; raise if it was to be another one."""
    if max_wait not in (None, math.inf):
        raise ValueError(
            "max_wait needs slots here: what waits in the kernel is for all processes, and none"
            " knows its share"
        )
    return math.inf
