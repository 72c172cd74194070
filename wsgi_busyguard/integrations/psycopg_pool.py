"""psycopg_pool's pool with waits that end when the client's patience does."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

from psycopg_pool import ConnectionPool, PoolTimeout

from ..deadlines.deadline import TooLate, call_timeout

Pool = TypeVar("Pool", bound="ConnectionPool[Any]")


class NotBegun(PoolTimeout, TooLate):
    """Raised in place of a wait that would outlive the client it is for; a PoolTimeout."""


def limit_waits(pool: Pool) -> Pool:
    """Return a pool in which nobody waits for a connection for longer than its client waits for it.

    ``pool = limit_waits(ConnectionPool(...))``. The pool's own timeout of 30 s, longer than any
    client's patience, holds where no deadline is known.

    :raises TypeError: for what is no such pool.
    """
    if not isinstance(pool, ConnectionPool):
        raise TypeError(f"pool must be a ConnectionPool, not {pool!r}")
    vars(pool)["getconn"] = partial(_connection, pool, pool.getconn)
    return pool


def _connection(pool: Any, get: Any, timeout: float | None = None) -> Any:
    try:
        return get(timeout=call_timeout(pool.timeout if timeout is None else timeout))
    except TooLate as late:
        raise NotBegun(str(late)) from None
