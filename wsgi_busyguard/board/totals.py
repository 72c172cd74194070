"""What all processes of a board have counted together, which never goes down for who reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..counters import LENGTH, SECOND, Changes
from .history import recent_changes
from .layout import BUSY_FOR, BUSY_FROM, CHECKED, COUNTS, STATE

if TYPE_CHECKING:
    from .table import Table


class Totals:
    """The sums over a table's rows, each at least what was read here before.

    A process that was stopped in the middle of a store may put an old word in the place of a newer
    one when it goes on, until the next beat of the row's owner.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        # The nanoseconds of being busy are the last.
        self._most = [0] * (LENGTH + CHECKED + 1)

    def summed(self, first: int, length: int) -> list[int]:
        """Return the sums of these columns."""
        most, table = self._most, self._table
        for column in range(first, first + length):
            n, total = column - COUNTS, sum(table.column(column))
            # No call stands between the look and the store, so no other thread that reads comes in
            # between, to have its newer sum replaced by this one.
            if total > most[n]:
                most[n] = total
        return most[first - COUNTS :][:length]

    def changes(self, now: int) -> Changes:
        """Return how often the state has changed, and for how long it has been busy."""
        most, words = self._most, self._table.words
        number = words[STATE]
        busy = words[BUSY_FOR]
        if number & 1:
            busy = max(busy, now - words[BUSY_FROM])
        # Who notes that it is over may have been stopped for a while since it read the clock.
        if busy > most[-1]:  # as in summed()
            most[-1] = busy
        busy = most[-1]
        recent = tuple(recent_changes(words, number))
        return Changes((number + 1) // 2, number // 2, busy / SECOND, recent)
