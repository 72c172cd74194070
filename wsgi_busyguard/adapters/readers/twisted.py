"""Reads a stock thread pool of Twisted's. Knows the pool and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.python.threadpool import ThreadPool

from ...load import load_of

if TYPE_CHECKING:
    from ...load import Load


class TwistedAdapter:
    """Reads any stock :class:`twisted.python.threadpool.ThreadPool`.

    What it reads changes between two of its looks (three unlocked counters): 2 readings in 1 000
    are off by one under full load, which is good enough to be shown and to be asked by a check. It
    knows no service times, see :ref:`how they are estimated <estimated>`. For exact edges use
    :class:`BusyThreadPool`.
    """

    def __init__(self, pool: ThreadPool) -> None:
        if not isinstance(pool, ThreadPool):
            raise TypeError(f"pool must be a twisted ThreadPool, not {pool!r}")
        self._pool = pool
        # Private, and 30 times as fast as the documented way, which builds a class at each look.
        self._statistics = getattr(getattr(pool, "_team", None), "statistics", None)

    def read(self) -> Load:
        """Return the pool's figures. Callable from any thread; takes no lock."""
        pool = self._pool
        if self._statistics is not None:
            figures = self._statistics()
            outstanding = figures.busyWorkerCount + figures.backloggedWorkCount
        else:
            outstanding = len(pool.working) + pool.q.qsize()
        return load_of(outstanding, pool.max)

    def __repr__(self) -> str:
        load = self.read()
        return f"<TwistedAdapter {load.active}/{load.capacity} with {load.queued} waiting>"
