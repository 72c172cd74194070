"""Database statements that end when the client's patience does; PostgreSQL."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.backends.signals import connection_created
from django.db.utils import OperationalError

from ...deadlines.deadline import TooLate, call_timeout
from ...policy import seconds

if TYPE_CHECKING:
    from collections.abc import Callable

# A timeout that is longer than the time left by no more than this factor stays. So a request costs
# one statement more, and one for each third of its time that has gone by.
LONGER_FACTOR = 1.5

NO_TIMEOUT = 0  # what statement_timeout calls it


class NotBegun(OperationalError, TooLate):
    """Raised in place of a statement that would outlive the client it is for."""


class StatementTimeouts:
    """An ``execute_wrapper`` that gives each statement the time that its client has left.

    :param at_most: the longest timeout in seconds, also outside of a request; ``None`` for none.

    Sets PostgreSQL's ``statement_timeout`` before a statement where what is set does not fit any
    more. What is set in a transaction is set for each statement, for a rollback would undo it
    unseen. With any other database a statement is not begun when no time is left, and that is all.
    """

    def __init__(self, at_most: float | None = None) -> None:
        self.at_most = at_most if at_most is None else seconds("at_most", at_most)

    def __call__(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        """Execute a statement, if there is time for it."""
        try:
            left = call_timeout(self.at_most)
        except TooLate as late:
            raise NotBegun(str(late)) from None
        connection = context["connection"]
        if connection.vendor == "postgresql":
            _limit(connection, NO_TIMEOUT if left is None else math.ceil(left * 1000))
        return execute(sql, params, many, context)


def limit_statements(at_most: float | None = None) -> None:
    """Have the statements of every connection, made or to be made, end with their client.

    :param at_most: the longest timeout in seconds; ``None`` for none. For ``AppConfig.ready()``.
    """
    wrapper = StatementTimeouts(at_most)

    def install(connection: Any, **_: Any) -> None:
        connection.busyguard_timeout = None  # not known of a new connection
        wrappers = connection.execute_wrappers
        wrappers[:] = [one for one in wrappers if not isinstance(one, StatementTimeouts)]
        wrappers.append(wrapper)

    connection_created.disconnect(dispatch_uid=__name__)  # of an earlier call
    connection_created.connect(
        lambda connection, **_: install(connection), weak=False, dispatch_uid=__name__
    )
    for connection in connections.all(initialized_only=True):
        install(connection)


def limit_pools() -> None:
    """Have nobody wait for a connection of Django's own pools for longer than its client waits.

    For ``AppConfig.ready()``; opens no connection. Databases without a pool are left as they are.
    """
    for connection in connections.all():
        if connection.settings_dict["OPTIONS"].get("pool") and connection.pool:
            from ..psycopg_pool import limit_waits

            limit_waits(connection.pool)


def _limit(connection: Any, milliseconds: int) -> None:
    """Set the timeout, unless the one that is set will do."""
    known: int | None = getattr(connection, "busyguard_timeout", None)
    if known is not None and _fits(known, milliseconds):
        return
    local = connection.in_atomic_block or not connection.autocommit
    connection.busyguard_timeout = None if local else milliseconds
    with connection.wrap_database_errors, connection.connection.cursor() as cursor:
        cursor.execute(f"SET {'LOCAL ' if local else ''}statement_timeout = {milliseconds}")


def _fits(known: int, wanted: int) -> bool:
    if NO_TIMEOUT in (known, wanted):
        return known == wanted
    return wanted <= known <= wanted * LONGER_FACTOR
