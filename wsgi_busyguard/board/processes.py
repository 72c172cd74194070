"""Whether a process is still there. Knows process ids and ``/proc``."""

from __future__ import annotations

import os
import time


def born(pid: int, stamp: int) -> int:
    """Return the moment at which a process started, in ticks since the system did.

    Together with the id this names a process for ever. ``stamp`` where the system does not tell.
    """
    found = _seen(pid)
    return stamp if found is None else found[1]


def began(stamp: int) -> float | None:
    """Return the time of day at which a process started, by what :func:`born` says of it."""
    if not _PROC:
        return None
    up = time.clock_gettime(time.CLOCK_BOOTTIME) - stamp / os.sysconf("SC_CLK_TCK")
    return time.time() - up if up >= 0 else None


def parent(pid: int) -> int | None:
    """Return the process that made this one; ``None`` if it is gone, or nobody can say."""
    try:
        found = _seen(pid)
    except OSError:  # no descriptor is left
        return None
    return None if found is None else found[2]


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
    state, started, _ = found
    return state in b"ZX" or started != since


def _seen(pid: int) -> tuple[bytes, int, int] | None:
    """Return the state, the start and the parent of a process as /proc shows them (proc(5))."""
    if not _PROC:
        return None
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        stat = os.read(descriptor, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)
    # The second field is the program's name in parentheses, and may contain any.
    fields = stat.rpartition(b")")[2].split()
    return fields[0], int(fields[19]), int(fields[1])


def _exists(pid: int) -> bool:
    if pid <= 0:  # to kill(2) these are whole groups of processes
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # a broken board has ids that no process can have
        return False
    except OSError:  # somebody else's
        return True
    return True


_PROC = os.path.exists("/proc/self/stat")
