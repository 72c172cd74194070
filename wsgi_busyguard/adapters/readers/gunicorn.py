"""Reads a gunicorn worker that is not guarded in front, for ``BusyGuard(app, monitor=...)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...load import Load
from ..acceptqueue import in_the_kernel
from .in_flight import calls_in_flight, count_calls
from .prefork import posts_the_queue

if TYPE_CHECKING:
    from ...board.board import Board


class GunicornAdapter:
    """Reads the load of one stock worker, gthread or sync; its own share of the host's.

    :param worker: gunicorn's, as its hook ``post_worker_init`` is given it.
    :raises TypeError: for a worker of another kind.

    Of the private names ``tpool._work_queue`` (the standard library's), ``keepalived_conns`` or
    ``_keep``, and ``pending_conns`` are read; one that is missing is an unknown load.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._board: Board | None = None
        if hasattr(worker, "get_thread_pool"):
            self._look = self._threads
        elif hasattr(worker, "run_for_one"):
            self._look = self._sync
            count_calls()
        else:
            raise TypeError(
                f"expected a gthread or a sync worker, not {worker!r}: start gunicorn with"
                " -k wsgi_busyguard.adapters.gunicorn.GuardedGevent for gevent"
            )

    def read(self) -> Load:
        """Return the worker's figures; they may lag behind by what its main loop has not seen."""
        return self._look(self._in_the_kernel())

    def share(self, board: Board) -> GunicornAdapter:
        """Return what reads this worker's part, for a board on which every worker posts.

        What waits in the kernel is there for all of them, and posted once.
        """
        part = GunicornAdapter(self._worker)
        part._board = board
        return part

    def portion(self) -> Load:
        """Return this worker's figures, with its share of what waits in the kernel."""
        worker = self._worker
        queued = in_the_kernel(worker.sockets) or 0
        if not worker.cfg.reuse_port:
            queued //= max(1, worker.cfg.workers)
        return self._look(queued)

    def _threads(self, in_the_kernel: int) -> Load:
        worker = self._worker
        threads = int(worker.cfg.threads)
        kept = getattr(worker, "keepalived_conns", None)
        idle = len(worker._keep if kept is None else kept)
        silent = len(getattr(worker, "pending_conns", ()))
        queued = worker.tpool._work_queue.qsize()
        serving = worker.nr_conns - idle - silent - queued
        return Load(queued + in_the_kernel, min(max(0, serving), threads), threads)

    def _sync(self, in_the_kernel: int) -> Load:
        return Load(in_the_kernel, min(calls_in_flight(), 1), 1)

    def _in_the_kernel(self) -> int:
        worker, board = self._worker, self._board
        if board is not None and not worker.cfg.reuse_port and not posts_the_queue(board):
            return 0
        return in_the_kernel(worker.sockets) or 0

    def __repr__(self) -> str:
        return f"<GunicornAdapter of {self._worker}>"
