"""SQLAlchemy's pool with waits that end when the client's patience does."""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool
from sqlalchemy.util.queue import Empty, Queue

from ..deadlines.deadline import TooLate, call_timeout


class NotBegun(PoolTimeout, TooLate):
    """Raised in place of a wait that would outlive the client it is for; SQLAlchemy's timeout."""


class _Connections(Queue[Any]):
    """The connections of a pool, for which nobody waits longer than its client does."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return super().get(False)
        except Empty:
            if not block:
                raise
        try:
            left = call_timeout(timeout)
        except TooLate as late:
            raise NotBegun(str(late)) from None
        try:
            return super().get(True, left)
        except Empty:
            if left == timeout:  # SQLAlchemy says how long that was
                raise
        raise PoolTimeout(f"no connection in {left:.2f} s, which is what the client had left")


class DeadlinePool(QueuePool):
    """A pool in which nobody waits for a connection for longer than its client waits for it.

    ``create_engine(url, poolclass=DeadlinePool)``. Its ``pool_timeout`` of 30 s, longer than any
    client's patience, holds where no deadline is known. A connection that is free is never refused.
    """

    _queue_class = _Connections
