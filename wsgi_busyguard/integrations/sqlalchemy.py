"""SQLAlchemy's pool with waits that end when the client's patience does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool
from sqlalchemy.util.queue import AsyncAdaptedQueue, Empty, Queue

from ..deadlines.deadline import TooLate, call_timeout

if TYPE_CHECKING:
    from collections.abc import Callable


class NotBegun(PoolTimeout, TooLate):
    """Raised in place of a wait that would outlive the client it is for; SQLAlchemy's timeout."""


def _waited(get: Callable[..., Any], block: bool, timeout: float | None) -> Any:
    """Return a connection from a queue, waiting for it no longer than the client does."""
    try:
        return get(False)
    except Empty:
        if not block:
            raise
    try:
        left = call_timeout(timeout)
    except TooLate as late:
        raise NotBegun(str(late)) from None
    try:
        return get(True, left)
    except Empty:
        if left == timeout:  # SQLAlchemy says it in its own words
            raise
    raise PoolTimeout(f"no connection in {left:.2f} s, which is what the client had left")


class _Connections(Queue[Any]):
    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return _waited(super().get, block, timeout)


class _AsyncConnections(AsyncAdaptedQueue[Any]):
    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return _waited(super().get, block, timeout)


class DeadlinePool(QueuePool):
    """A pool in which nobody waits for a connection for longer than its client waits for it.

    ``create_engine(url, poolclass=DeadlinePool)``. Its ``pool_timeout`` of 30 s, longer than any
    client's patience, holds where no deadline is known. A connection that is free is never refused.
    """

    _queue_class = _Connections


class AsyncDeadlinePool(AsyncAdaptedQueuePool):
    """The same for an async engine: ``create_async_engine(url, poolclass=AsyncDeadlinePool)``.

    Its deadline is known where it is carried to the event loop: see
    :func:`wsgi_busyguard.deadlines.carrying`.
    """

    _queue_class = _AsyncConnections
