"""The row that one process has on a board: as others see it, and as itself does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from ..counters import NAMED, SECOND
from .bulkheads import COLUMNS as CALL_COLUMNS
from .bulkheads import unpacked
from .layout import (
    BEAT,
    BEFORE,
    CALLS,
    COUNTS,
    LIMIT_COLUMNS,
    LIMITS,
    STATES,
    THERE,
    limits_in,
    summed,
)
from .table import FLAG_BITS, OWNER, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..load import GuardLimits, Load
    from ..load_report import BulkheadFigures


class Row(NamedTuple):
    """What one process has posted.

    :param state: ``"starting"``, ``"ready"`` or ``"stopping"``; only the ready ones are summed up.
    :param beat: seconds since it last showed that it makes progress.
    :param served: requests answered, as far as it counts them; likewise refused and dropped ones.
        They are posted at each beat.
    :param admitted: requests that got a slot.
    :param slot: the number of its place on the board, which others have had before it.
    :param limits: what is in force in its guard, if that has posted it.
    :param bulkheads: its bulkheads, those that are used most.
    """

    pid: int
    state: str
    load: Load
    beat: float
    served: int
    refused: int
    dropped: int
    admitted: int = 0
    slot: int = 0
    limits: GuardLimits | None = None
    bulkheads: Sequence[BulkheadFigures] = ()


def row_in(columns: Sequence[Sequence[int]], row: int, now: int) -> Row:
    """Return what stands in a row of these columns."""
    admitted, served, *refused, dropped = (
        max(0, columns[COUNTS + n][row] - columns[BEFORE + n][row]) for n in range(NAMED)
    )
    return Row(
        columns[OWNER][row] >> FLAG_BITS,
        STATES[columns[OWNER][row] & THERE],
        summed(columns, [row], now),
        max(0, now - columns[BEAT][row]) / SECOND,
        served,
        sum(refused),
        dropped,
        admitted,
        row,
        limits_in([columns[LIMITS + n][row] for n in range(LIMIT_COLUMNS - LIMITS)]),
        unpacked([columns[CALLS + n][row] for n in range(CALL_COLUMNS)], now),
    )


@runtime_checkable
class HasRows(Protocol):
    """A board, or a watcher of one: knows the processes one by one."""

    def rows(self) -> list[Row]:
        """Return what each process that is there has posted."""


class RowPlace(NamedTuple):
    """A row of a table, and the process whose it is.

    The three go together: what is written by a thread that has looked a moment ago never gets into
    the same row of another board.
    """

    table: Table
    row: int
    pid: int

    def is_ours(self) -> bool:
        """Return whether it belongs to this process still.

        Not in a child, also where nobody tells Python of the fork (uWSGI does not); and not when
        somebody has declared this process dead and given its row away.
        """
        return self.pid == os.getpid() and self.get(OWNER) >> FLAG_BITS == self.pid

    def get(self, column: int) -> int:
        """Return a word of the row."""
        return self.table.words[self.table.at(column, self.row)]

    def put(self, column: int, word: int) -> None:
        """Store a word of the row."""
        self.table.words[self.table.at(column, self.row)] = word
