"""Rows of words in shared memory, and whose row is whose. What else the words mean is not known."""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from .memory import HEADER_WORDS, ROWS, USED, Memory, OwnMemory, at_once, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

R = TypeVar("R")

# The columns that every row has: whose it is (0: nobody's), and when that process started.
OWNER, BORN = range(2)

# An owner is a process id with room for flags below it.
FLAG_BITS = 8


class Full(Exception):
    """Every row has an owner that is still there."""


class Table:
    """Rows of 8-byte words, stored in columns so that a look reads only what it needs.

    :param path: the file behind it, made if it is missing; ``None`` for memory that only this
        process and those that it forks share.
    :param rows: how many rows a new one has; 0: none is made.
    :param columns: words in a row.
    :param alone: whether the memory is for this process only; then there is no file.
    :raises ValueError: for a file that is no such table.
    :raises OSError: for one that cannot be opened.
    :ivar words: all of them. One is stored in one go, so nobody ever sees a part of it; that is
        why it is a view and not :mod:`struct`, whose ``pack_into`` writes zeros first.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        rows: int,
        columns: int,
        *,
        alone: bool = False,
    ) -> None:
        memory = OwnMemory(rows, columns) if alone else opened(path, rows, columns)
        self._memory: Memory = memory
        self.words = self._memory.words
        self.columns = columns
        self.rows = self.words[ROWS]
        self._starts = [HEADER_WORDS + column * self.rows for column in range(columns)]

    def column(self, column: int) -> list[int]:
        """Return the words of a column, of all rows that were ever used."""
        words = self.words
        start = self._starts[column]
        return words[start : start + words[USED]].tolist()

    def at(self, column: int, row: int) -> int:
        """Return where in :attr:`words` the word of a row is."""
        return self._starts[column] + row

    def shares(self, other: Table) -> bool:
        """Return whether the other one is the same memory."""
        return self._memory is other._memory

    def successor(self, path: str | os.PathLike[str]) -> Table | None:
        """Return the table that ``path`` names now, if that is another one than this.

        ``None`` also while the file is missing, or not yet whole, or none of this kind. Waits for
        nobody, so it may be called in a process that must not block.
        """
        try:
            found = os.stat(path)
        except OSError:
            return None
        if self._memory.is_file(found) or not stat.S_ISREG(found.st_mode) or not found.st_size:
            return None
        try:
            return at_once(partial(Table, path, 0, self.columns))
        except (OSError, ValueError):
            return None

    def claim(
        self,
        owner: int,
        mine: set[int],
        is_gone: Callable[[int, bool], bool],
        first: Callable[[], Mapping[int, int]],
        copied: Mapping[int, int],
        kept: int,
    ) -> int:
        """Take a row that nobody has and return its number.

        :param owner: the word that says whose it is.
        :param mine: rows that this very process has already.
        :param is_gone: whether the owner of a row is; if the second argument is true, also one who
            gave a sign of life just now has to be looked for.
        :param first: returns the words it starts with, by column, under the lock; the others are 0.
        :param copied: the columns that start with what stands in another one.
        :param kept: from this column on, what the row's last owner left is kept.
        :raises Full: if there is none.
        :raises LockHeld: if another process has been in the middle of this for 0.25 s.
        """

        def claim() -> int:
            begins = first()
            # Another process that had this id, or this one before an exec().
            self._disown(owner >> FLAG_BITS, mine)
            row = self._vacant(is_gone)
            # The owner is the first to go and the last to come, so what stands in a row with an
            # owner is never another one's.
            self.words[self.at(OWNER, row)] = 0
            for column in range(1, kept):
                at = copied.get(column)
                self.words[self.at(column, row)] = (
                    begins.get(column, 0) if at is None else self.words[self.at(at, row)]
                )
            self.words[self.at(OWNER, row)] = owner
            self.words[USED] = max(self.words[USED], row + 1)
            return row

        return self._memory.alone(claim)

    def free(self, pid: int) -> None:
        """Have the rows of a process that is gone be nobody's.

        Not if that means to wait: whoever looks sees within a second that it is gone.
        """
        self.tried(partial(self._disown, pid))  # else the row might be somebody else's by now

    def _disown(self, pid: int, but: Container[int] = ()) -> None:
        """Have the rows of a process be nobody's, but for these. Requires the lock."""
        for row, word in enumerate(self.column(OWNER)):
            if word >> FLAG_BITS == pid and row not in but:
                self.words[self.at(OWNER, row)] = 0

    def turn(self, pid: int, before: int, after: int, unless: int) -> None:
        """Change a flag of a process, unless it has another one, or this would mean to wait."""

        def is_meant(word: int) -> bool:
            return bool(word >> FLAG_BITS == pid and word & before and not word & unless)

        def turn() -> None:
            for row in rows:
                word = self.words[self.at(OWNER, row)]
                if is_meant(word):
                    self.words[self.at(OWNER, row)] = word & ~before | after

        rows = [row for row, word in enumerate(self.column(OWNER)) if is_meant(word)]
        if rows:
            self.tried(turn)

    def _vacant(self, is_gone: Callable[[int, bool], bool]) -> int:
        """Return the number of a row that may be taken. Requires the lock."""
        owners = self.column(OWNER)
        for row, owner in enumerate(owners):
            if not owner or is_gone(row, False):
                return row
        if len(owners) < self.rows:
            return len(owners)
        for row in range(self.rows):
            if is_gone(row, True):
                return row
        raise Full

    def alone(self, step: Callable[[], R]) -> R:
        """Return what ``step`` does while nobody claims; :exc:`LockHeld` as :meth:`claim`."""
        return self._memory.alone(step)

    def tried(self, step: Callable[[], object]) -> bool:
        """Do what only one may at a time, if that can be had at once; return whether it can be."""
        return self._memory.tried(step)
