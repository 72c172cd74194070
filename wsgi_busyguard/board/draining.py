"""The word in each row that tells its process to drain, stored from outside.

Whoever may write the board may say so, for as long as the processes that it reaches are there.
The word is the id of the process's server, even as long as nobody drains it, odd when it is to
drain. Processes have the same server if they were forked from one that had this module: a worker
that takes the place of one that drains does so as well, be the other one gone by then. A server
that is started anew has another id, so none is born draining.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .._support.log import logger
from .layout import SERVER, THERE
from .table import FLAG_BITS, OWNER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .board import Board
    from .table import Table

# The bit of the word that is set where a process is to drain.
DRAIN_BIT = 1

# Made once in the first process that imports this, and had by all that are forked from it.
SERVER_ID = int.from_bytes(os.urandom(7), "little") << 1


def draining_rows(table: Table) -> list[int]:
    """Return the rows whose process is to drain, be it there or not."""
    return [row for row, word in enumerate(table.column(SERVER)) if word & DRAIN_BIT]


def newcomer(table: Table) -> int:
    """Return the word of a process that takes a row now. Requires the table's lock.

    The row of the one in whose place it comes may be nobody's by now, but keeps its words.
    """
    drained = SERVER_ID | DRAIN_BIT
    return drained if drained in table.column(SERVER) else SERVER_ID


def start_draining(table: Table, living: Sequence[int], owners: Sequence[int]) -> list[int]:
    """Tell the processes of these rows to drain; return their ids.

    :param owners: whose the rows were when it was looked who lives.
    :raises OSError: if another process has been in the middle of a claim for a quarter of a second.
    """

    def store() -> list[int]:
        pids = []
        for row in living:
            owner = table.words[table.at(OWNER, row)]
            if owner & THERE and owner >> FLAG_BITS == owners[row] >> FLAG_BITS:
                table.words[table.at(SERVER, row)] |= DRAIN_BIT
                pids.append(owner >> FLAG_BITS)
        return pids

    return table.alone(store)


def stop_draining(table: Table) -> list[int]:
    """Have nobody drain any more; return the ids of those that did, as far as they are there.

    :raises OSError: as :func:`start_draining`.
    """

    def store() -> list[int]:
        pids = []
        for row in draining_rows(table):
            table.words[table.at(SERVER, row)] &= ~DRAIN_BIT
            owner = table.words[table.at(OWNER, row)]
            if owner & THERE:
                pids.append(owner >> FLAG_BITS)
        return pids

    return table.alone(store)


class DrainLog:
    """Writes to the log that the host was told to drain, and that it need not any more."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._drains = False

    def look(self) -> None:
        """Look once; one process of the host writes the line."""
        drains = self._board.draining
        if drains is self._drains:
            return
        self._drains = drains
        if self._board.is_leader():
            logger.warning(
                "told to drain by way of %r: every check says draining, requests are served"
                if drains
                else "no longer told to drain by way of %r: checks say how things are",
                self._board.path,
            )
