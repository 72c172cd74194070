"""The row that one process has on a board, for as long as it has it."""

from __future__ import annotations

import os
from typing import NamedTuple

from .table import FLAGS, OWNER, Table


class Place(NamedTuple):
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
        return self.pid == os.getpid() and self.get(OWNER) >> FLAGS == self.pid

    def get(self, column: int) -> int:
        """Return a word of the row."""
        return self.table.words[self.table.at(column, self.row)]

    def put(self, column: int, word: int) -> None:
        """Store a word of the row."""
        self.table.words[self.table.at(column, self.row)] = word
