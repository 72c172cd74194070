"""Reads the thread pool of paste.httpserver. Knows the pool and nothing else of Paste."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...load import load_of

if TYPE_CHECKING:
    from ...load import Load


class PasteAdapter:
    """Reads the queue of a Paste server.

    :param pool: its thread pool, which every request carries as
        ``environ["paste.httpserver.thread_pool"]``.

    It counts connections. What it reads changes between two of its looks; a connection that a
    thread has just taken may be in none of them. Paste adds threads by itself while fewer than five
    make progress, and the capacity grows with them. It knows no service times, see
    :ref:`how they are estimated <estimated>`.
    """

    def __init__(self, pool: Any) -> None:
        for name in ("queue", "workers", "idle_workers"):
            if not hasattr(pool, name):
                raise TypeError(
                    "pool must be a paste.httpserver.ThreadPool, as it is in"
                    f' environ["paste.httpserver.thread_pool"], not {pool!r}'
                )
        self._pool = pool

    def read(self) -> Load:
        """Return the pool's figures. Callable from any thread; takes no lock."""
        pool = self._pool
        capacity = len(pool.workers)
        return load_of(pool.queue.qsize() + max(0, capacity - len(pool.idle_workers)), capacity)

    def __repr__(self) -> str:
        return f"<PasteAdapter of {len(self._pool.workers)} threads>"
