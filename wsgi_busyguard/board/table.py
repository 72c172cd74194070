"""Rows of words in shared memory: which row is whose, and whether its process is still there.

Knows files, locks and processes. What the words of a row mean is not its business.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from .._support.forks import Stage, after_fork
from .._support.locks import tried, under

with suppress(ImportError):  # Windows, where no board can be made
    import fcntl  # here, for the loop of the ports imports nothing and comes by the lock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

R = TypeVar("R")

WORD = 8

MAGIC = int.from_bytes(b"busygrd\n", "little")
VERSION = 2

# The header's words. The last one that is named here is the first that others may use.
_MAGIC, _VERSION, _ROWS, _COLUMNS, _USED, OTHERS = range(6)
HEADER = 128

# The columns that every row has: whose it is (0: nobody's), and when that process started.
OWNER, BORN = range(2)

# An owner is a process id with room for flags below it.
FLAGS = 8

MOST_ROWS = 1 << 20


# Seconds for which a claim waits for another process that is in the middle of one. That takes a
# millisecond at most, unless that process is stopped there, and then it may take for ever.
LOCK_PATIENCE = 0.25
LOCK_PAUSE = 0.002


class Full(Exception):
    """Every row has an owner that is still there."""


class Held(OSError):
    """Another process has the lock, and does not let go of it: it may have been stopped."""


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
        own = _Own(rows, columns) if alone else None
        self._memory: _Memory = own or under(_lock, _memory, path, rows, columns)
        self.words = self._memory.words
        self.columns = columns
        self.rows = self.words[_ROWS]
        self._starts = [HEADER + column * self.rows for column in range(columns)]

    def column(self, column: int) -> list[int]:
        """Return the words of a column, of all rows that were ever used."""
        words = self.words
        start = self._starts[column]
        return words[start : start + words[_USED]].tolist()

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
            return tried(_lock, Table, path, 0, self.columns)
        except (OSError, ValueError):
            return None

    def claim(
        self,
        owner: int,
        mine: set[int],
        is_gone: Callable[[int, bool], bool],
        first: Mapping[int, int],
        copied: Mapping[int, int],
        kept: int,
    ) -> int:
        """Take a row that nobody has and return its number.

        :param owner: the word that says whose it is.
        :param mine: rows that this very process has already.
        :param is_gone: whether the owner of a row is; if the second argument is true, also one who
            gave a sign of life just now has to be looked for.
        :param first: the words it starts with, by column; the others are 0.
        :param copied: the columns that start with what stands in another one.
        :param kept: from this column on, what the row's last owner left is kept.
        :raises Full: if there is none.
        :raises Held: if another process has been in the middle of this for a quarter of a second.
        """

        def claim() -> int:
            pid = owner >> FLAGS
            for row, word in enumerate(self.column(OWNER)):
                # Another process that had this id, or this one before an exec().
                if word >> FLAGS == pid and row not in mine:
                    self.words[self.at(OWNER, row)] = 0
            row = self._vacant(is_gone)
            # The owner is the first to go and the last to come, so what stands in a row with an
            # owner is never another one's.
            self.words[self.at(OWNER, row)] = 0
            for column in range(1, kept):
                at = copied.get(column)
                self.words[self.at(column, row)] = (
                    first.get(column, 0) if at is None else self.words[self.at(at, row)]
                )
            self.words[self.at(OWNER, row)] = owner
            self.words[_USED] = max(self.words[_USED], row + 1)
            return row

        return under(_lock, self._memory.alone, claim)

    def free(self, pid: int) -> None:
        """Have the rows of a process that is gone be nobody's.

        Not if that means to wait: whoever looks sees within a second that it is gone.
        """

        def free() -> None:
            for row, word in enumerate(self.column(OWNER)):
                if word >> FLAGS == pid:
                    self.words[self.at(OWNER, row)] = 0

        self.tried(free)  # else the row might be somebody else's by now

    def turn(self, pid: int, before: int, after: int, unless: int) -> None:
        """Change a flag of a process, unless it has another one, or this would mean to wait."""

        def is_meant(word: int) -> bool:
            return bool(word >> FLAGS == pid and word & before and not word & unless)

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

    def tried(self, step: Callable[[], object]) -> bool:
        """Do what only one may at a time, if that can be had at once; return whether it can be.

        A process that holds the lock may be stopped, and who must not block (gunicorn's master) is
        not to wait for it. Not for one who interrupts, in a signal handler or a finalizer, what
        this very thread does under the lock.
        """
        if _lock._is_owned():
            return False
        return bool(tried(_lock, self._memory.tried, step))


class _Memory:
    """A file that is mapped into memory, once in each process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        opened = os.fstat(descriptor)  # now: a daemon may close all descriptors, and ours with them
        self._file = opened.st_dev, opened.st_ino
        self._depth = 0
        self._map: Any = None

    def map(self) -> None:
        """Map the file, which has its final size."""
        self._map = mmap.mmap(self._descriptor, 0)
        self.words = memoryview(self._map).cast("Q")

    def is_file(self, found: os.stat_result) -> bool:
        """Return whether that is what is mapped here."""
        return self._file == (found.st_dev, found.st_ino)

    def tried(self, step: Callable[[], object], patience: float = 0.0) -> bool:
        """Do it while no other process writes; return whether that can be had. Requires _lock.

        :param patience: seconds for which another one is waited for.

        A record lock belongs to a process, so it also stands between a parent and its children,
        who share everything else. A signal handler may come here in the middle of it.
        """
        before = self._depth
        try:
            # Inside of the "try", for a signal handler may raise as soon as the lock is taken; and
            # noted before, for one that comes here itself must not let go of it.
            self._depth = before + 1
            got = self._lock_for_others(time.monotonic() + patience)
            if got:
                step()
            return got
        finally:
            self._depth = before
            if not before:
                with suppress(OSError):  # the system has no lock to give, and none to take back
                    fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _lock_for_others(self, until: float) -> bool:
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:  # somebody has it, or the system has no lock to give
                if time.monotonic() >= until:
                    return False
            time.sleep(LOCK_PAUSE)

    def alone(self, step: Callable[[], R]) -> R:
        """Return what ``step`` does while no other process claims. Requires _lock.

        :raises Held: if another one has it and does not let go.
        """
        results: list[R] = []
        if not self.tried(lambda: results.append(step()), LOCK_PATIENCE):
            raise Held(errno.EAGAIN, "another process holds the board's lock and may be stopped")
        return results[0]

    def __del__(self) -> None:
        os.close(self._descriptor)


class _Own(_Memory):
    """Memory of one process; a child gets a copy. Takes no descriptor, for none may be left."""

    def __init__(self, rows: int, columns: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, _size(rows, columns), flags=flags)
        self.words = memoryview(self._map).cast("Q")
        _begin(self.words, rows, columns)

    def is_file(self, found: os.stat_result) -> bool:
        """Return whether that is what is mapped here: never."""
        return False

    def tried(self, step: Callable[[], object], patience: float = 0.0) -> bool:
        """Do it: nobody else can write."""
        step()
        return True

    def __del__(self) -> None:
        pass


# A process loses its record locks on a file with *any* descriptor of that file that it closes. So
# each file is opened once in a process, and only while nobody here claims.
_memories: WeakValueDictionary[tuple[int, int], _Memory] = WeakValueDictionary()
_lock: Any = threading.RLock()


def _memory(path: str | os.PathLike[str] | None, rows: int, columns: int) -> _Memory:
    """Return the memory of the file at ``path``. Requires _lock."""
    if path is None:
        return _known(_made(_Memory(_nameless()), rows, columns))
    try:
        found = os.stat(path)
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise ValueError(f"expected a file for a board, not {os.fspath(path)!r}")
        memory = _memories.get((found.st_dev, found.st_ino))
        if memory is not None:
            return memory
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if rows else 0)
    try:
        descriptor = os.open(path, flags, 0o660)
    except FileNotFoundError:
        folder = os.path.dirname(os.path.abspath(os.fspath(path)))
        if os.path.isdir(folder):  # it is the file that is missing, and is not to be made
            raise
        raise FileNotFoundError(
            f"the folder {os.fsdecode(folder)!r} for the board is missing: make it first,"
            " or name another"
        ) from None
    memory = _Memory(descriptor)
    # What is whole stays so, and needs no lock; a board is whole when its first word is there.
    if not rows or _begins_well(descriptor):
        _examine(path, descriptor, columns)
        memory.map()
        return _known(memory)

    def make() -> None:
        if os.fstat(descriptor).st_size:
            _examine(path, descriptor, columns)
            memory.map()
        else:
            _made(memory, rows, columns)

    memory.alone(make)
    return _known(memory)


def _begins_well(descriptor: int) -> bool:
    return os.pread(descriptor, WORD, 0) == MAGIC.to_bytes(WORD, sys.byteorder)


def _known(memory: _Memory) -> _Memory:
    """Return the memory after it has been noted that this process has that file."""
    return _memories.setdefault(memory._file, memory)


def _nameless() -> int:
    """Return the descriptor of a file that has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("busyguard", os.MFD_CLOEXEC)
    import tempfile  # costs more to import than all of ours

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _made(memory: _Memory, rows: int, columns: int) -> _Memory:
    """Return the memory after an empty file has become a table."""
    size = _size(rows, columns)
    os.ftruncate(memory._descriptor, size)
    if hasattr(os, "posix_fallocate"):
        # Without a place on the disk, storing the first word would be a SIGBUS one day.
        try:
            os.posix_fallocate(memory._descriptor, 0, size)
        except OSError:
            os.ftruncate(memory._descriptor, 0)
            raise
    memory.map()
    _begin(memory.words, rows, columns)
    return memory


def _size(rows: int, columns: int) -> int:
    return (HEADER + rows * columns) * WORD


def _begin(words: memoryview, rows: int, columns: int) -> None:
    for word, value in ((_VERSION, VERSION), (_ROWS, rows), (_COLUMNS, columns), (_MAGIC, MAGIC)):
        words[word] = value


def _examine(path: str | os.PathLike[str], descriptor: int, columns: int) -> None:
    """Raise :exc:`ValueError` if a file is not a table of so many columns."""
    name = repr(os.fspath(path))
    head = os.pread(descriptor, HEADER * WORD, 0)
    words = memoryview(head[: len(head) // WORD * WORD]).cast("Q").tolist()
    if len(words) < HEADER or words[_MAGIC] != MAGIC:
        raise ValueError(f"expected a board in {name}, not something else: give another path")
    if words[_VERSION] != VERSION or words[_COLUMNS] != columns:
        raise ValueError(
            f"the board in {name} is one of another version of wsgi_busyguard:"
            " remove it, or give another path"
        )
    size = os.fstat(descriptor).st_size
    whole = (HEADER + words[_ROWS] * columns) * WORD
    if not (1 <= words[_ROWS] <= MOST_ROWS and words[_USED] <= words[_ROWS] and size == whole):
        raise ValueError(
            f"the board in {name} is damaged: expected {whole} bytes for its {words[_ROWS]}"
            f" slots, not {size}: remove it when nobody uses it, or give another path"
        )


def born(pid: int, stamp: int) -> int:
    """Return the moment at which a process started, in ticks since the system did.

    Together with the id this names a process for ever. ``stamp`` where the system does not tell.
    """
    found = _seen(pid)
    return stamp if found is None else found[1]


def is_gone(pid: int, since: int) -> bool:
    """Return whether the process that had this id, and started then, is gone.

    One that is dead and that its parent has not reaped yet is gone.
    """
    try:
        found = _seen(pid)
    except OSError:  # no descriptor is left, say: then nobody is declared dead
        return False
    if found is None:  # no /proc here, or one that hides it from this user (option hidepid)
        return not _exists(pid)
    state, started = found
    return state in b"ZX" or started != since


def _seen(pid: int) -> tuple[bytes, int] | None:
    """Return the state and the start of a process as /proc shows them (proc(5))."""
    if not _PROC:
        return None
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        said = os.read(descriptor, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)
    # The second field is the program's name in parentheses, and may contain any.
    fields = said.rpartition(b")")[2].split()
    return fields[0], int(fields[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


_PROC = os.path.exists("/proc/self/stat")


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have held it
    for memory in list(_memories.values()):
        memory._depth = 0


after_fork(Stage.OWN, _after_fork_in_child)
