"""psycopg_pool's pool with waits that end when the client's patience does."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from ..deadlines.deadline import TooLate, call_timeout

Pool = TypeVar("Pool", bound="ConnectionPool[Any] | AsyncConnectionPool[Any]")


class NotBegun(PoolTimeout, TooLate):
    """Raised in place of a wait that would outlive the client it is for; a PoolTimeout."""


def limit_waits(pool: Pool) -> Pool:
    """Return a pool in which nobody waits for a connection for longer than its client waits for it.

    ``pool = limit_waits(ConnectionPool(...))``, or an ``AsyncConnectionPool``, for which a deadline
    is known where it is carried to the event loop: see :func:`wsgi_busyguard.deadlines.carrying`.
    The pool's own timeout of 30 s, longer than any client's patience, holds where none is known.
    """
    get = _awaited if isinstance(pool, AsyncConnectionPool) else _connection
    vars(pool)["getconn"] = partial(get, pool, pool.getconn)
    return pool


def _connection(pool: Any, get: Any, timeout: float | None = None) -> Any:
    return get(timeout=_left(pool, timeout))


async def _awaited(pool: Any, get: Any, timeout: float | None = None) -> Any:
    return await get(timeout=_left(pool, timeout))


def _left(pool: Any, timeout: float | None) -> float | None:
    try:
        return call_timeout(pool.timeout if timeout is None else timeout)
    except TooLate as late:
        raise NotBegun(str(late)) from None
