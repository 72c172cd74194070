"""The memory behind a board: a file that is mapped once in each process, and its locks.

Knows files, locks and forks. Of what is stored there it knows how many rows and columns there are.

Two locks stand around whatever reads a word and writes it anew: one of this process, for its
threads, and a record lock on the file, for the processes, which also stands between a parent and
its children. Whoever must not wait tries both; a claim waits a quarter of a second for a process
that may have been stopped in the middle of its own.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from .._support.forks import Stage, after_fork
from .._support.locks import owned_lock, tried, under

with suppress(ImportError):  # Windows, where no board can be made
    import fcntl  # here, for the loop of the ports imports nothing and comes by the lock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

R = TypeVar("R")

WORD_BYTES = 8

# Who adds to a word begins anew behind this. No count gets there, but a file may be damaged, and
# what stands in it must not make a check fail.
MOST_WORD = (1 << 64) - 1

MAGIC = int.from_bytes(b"busygrd\n", "little")
BOARD_VERSION = 3

# The header's words. The last one that is named here is the first that others may use.
_MAGIC, _VERSION, ROWS, _COLUMNS, USED, OTHERS = range(6)
HEADER_WORDS = 128

MOST_ROWS = 1 << 20

# Seconds for which a claim waits for another process that is in the middle of one. That takes a
# millisecond at most, unless that process is stopped there, and then it may take for ever.
LOCK_PATIENCE_SECONDS = 0.25
LOCK_PAUSE_SECONDS = 0.002


def text_words(text: str, count: int) -> tuple[int, ...]:
    """Return a text as so many words; what is longer is cut off."""
    size = count * WORD_BYTES
    return struct.unpack(f"{count}Q", text.encode("ascii", "replace")[:size].ljust(size, b"\0"))


def text_in(words: Sequence[int]) -> str:
    """Return the text that these words stand for."""
    return struct.pack(f"{len(words)}Q", *words).rstrip(b"\0").decode("ascii", "replace")


class LockHeld(OSError):
    """Another process has the lock, and does not let go of it: it may have been stopped."""


class Memory:
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

    def alone(self, step: Callable[[], R]) -> R:
        """Return what ``step`` does while nobody else claims.

        :raises LockHeld: if another process has the lock and does not let go.
        """
        return under(_lock, self._alone, step)

    def tried(self, step: Callable[[], object]) -> bool:
        """Do what only one may at a time, if that can be had at once; return whether it can be.

        A process that holds the lock may be stopped, and who must not block (gunicorn's master) is
        not to wait for it. Not for one who interrupts, in a signal handler or a finalizer, what
        this very thread does under the lock.
        """
        return not _lock._is_owned() and bool(tried(_lock, self._tried, step))

    def _tried(self, step: Callable[[], object], patience: float = 0.0) -> bool:
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
            time.sleep(LOCK_PAUSE_SECONDS)

    def _alone(self, step: Callable[[], R]) -> R:
        """Do it while no other process claims. Requires _lock."""
        results: list[R] = []
        if not self._tried(lambda: results.append(step()), LOCK_PATIENCE_SECONDS):
            raise LockHeld(
                errno.EAGAIN, "another process holds the board's lock and may be stopped"
            )
        return results[0]

    def __del__(self) -> None:
        os.close(self._descriptor)


class OwnMemory(Memory):
    """Memory of one process; a child gets a copy. Takes no descriptor, for none may be left."""

    def __init__(self, rows: int, columns: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, _size(rows, columns), flags=flags)
        self.words = memoryview(self._map).cast("Q")
        _begin(self.words, rows, columns)

    def is_file(self, found: os.stat_result) -> bool:
        """Return whether that is what is mapped here: never."""
        return False

    def _tried(self, step: Callable[[], object], patience: float = 0.0) -> bool:
        """Do it: nobody else can write."""
        step()
        return True

    def __del__(self) -> None:
        pass


# A process loses its record locks on a file with *any* descriptor of that file that it closes. So
# each file is opened once in a process, and only while nobody here claims.
_memories: WeakValueDictionary[tuple[int, int], Memory] = WeakValueDictionary()
_lock = owned_lock()


def opened(path: str | os.PathLike[str] | None, rows: int, columns: int) -> Memory:
    """Return the memory of the file at ``path``, made if it is missing and there are to be rows.

    :raises ValueError: for a file that is no such memory.
    :raises OSError: for one that cannot be opened.
    """
    return under(_lock, _opened, path, rows, columns)


def at_once(make: Callable[[], R]) -> R | None:
    """Return what ``make`` does if no other thread is at anything here; ``None`` else."""
    return tried(_lock, make)


def _opened(path: str | os.PathLike[str] | None, rows: int, columns: int) -> Memory:
    """Do it. Requires _lock."""
    if path is None:
        return _known(_made(Memory(_nameless()), rows, columns))
    try:
        found = os.stat(path)
    except FileNotFoundError:
        pass
    else:
        _must_be_a_file(os.fspath(path), found.st_mode)
        memory = _memories.get((found.st_dev, found.st_ino))
        if memory is not None:
            return memory
    descriptor = _descriptor(path, os.O_CREAT if rows else 0)
    memory = Memory(descriptor)
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


def _must_be_a_file(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(
            f"expected a file for a board, not the folder {path!r}: name a file in it"
        )
    if not stat.S_ISREG(mode):
        raise ValueError(f"expected a file for a board, not {path!r}")


def _descriptor(path: str | os.PathLike[str], create: int) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | create, 0o660)
    except FileNotFoundError:
        folder = os.path.dirname(os.path.abspath(os.fspath(path)))
        if os.path.isdir(folder):  # it is the file that is missing, and is not to be made
            raise
        raise FileNotFoundError(
            f"the folder {os.fsdecode(folder)!r} for the board is missing: make it first,"
            " or name another"
        ) from None


def _begins_well(descriptor: int) -> bool:
    return os.pread(descriptor, WORD_BYTES, 0) == MAGIC.to_bytes(WORD_BYTES, sys.byteorder)


def _known(memory: Memory) -> Memory:
    return _memories.setdefault(memory._file, memory)


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("busyguard", os.MFD_CLOEXEC)
    import tempfile  # costs more to import than all of ours

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _made(memory: Memory, rows: int, columns: int) -> Memory:
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
    return (HEADER_WORDS + rows * columns) * WORD_BYTES


def _begin(words: memoryview, rows: int, columns: int) -> None:
    for word, value in (
        (_VERSION, BOARD_VERSION),
        (ROWS, rows),
        (_COLUMNS, columns),
        (_MAGIC, MAGIC),
    ):
        words[word] = value


def _examine(path: str | os.PathLike[str], descriptor: int, columns: int) -> None:
    """Raise :exc:`ValueError` if a file is not a table of so many columns."""
    name = repr(os.fspath(path))
    head = os.pread(descriptor, HEADER_WORDS * WORD_BYTES, 0)
    words = memoryview(head[: len(head) // WORD_BYTES * WORD_BYTES]).cast("Q").tolist()
    if len(words) < HEADER_WORDS or words[_MAGIC] != MAGIC:
        raise ValueError(f"expected a board in {name}, not something else: give another path")
    if words[_VERSION] != BOARD_VERSION or words[_COLUMNS] != columns:
        raise ValueError(
            f"the board in {name} is one of another version of wsgi_busyguard:"
            " remove it when nobody uses it, or give another path"
        )
    size = os.fstat(descriptor).st_size
    whole = (HEADER_WORDS + words[ROWS] * columns) * WORD_BYTES
    if not (1 <= words[ROWS] <= MOST_ROWS and words[USED] <= words[ROWS] and size == whole):
        raise ValueError(
            f"the board in {name} is damaged: expected {whole} bytes for its {words[ROWS]}"
            f" slots, not {size}: remove it when nobody uses it, or give another path"
        )


def _after_fork_in_child() -> None:
    global _lock
    _lock = owned_lock()  # another thread may have held it
    for memory in list(_memories.values()):
        memory._depth = 0


after_fork(Stage.OWN, _after_fork_in_child)
