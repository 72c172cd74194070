"""What there is to run on, and how much of it this process has had."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NamedTuple

# What Linux counts of the first thread of a process: its processor time in ns, and more.
MAIN_THREAD = "/proc/self/schedstat"


class Machine(NamedTuple):
    """What there is to run on.

    :param one_at_a_time: whether the interpreter runs one thread at a time.
    :param cores: how many processors this process may use.
    """

    one_at_a_time: bool
    cores: float

    @property
    def usable(self) -> float:
        """Processor seconds a second that Python code can have."""
        return min(1.0, self.cores) if self.one_at_a_time else self.cores


def sees_main_thread() -> bool:
    """Return whether the system tells of the first thread: Linux does."""
    return os.access(MAIN_THREAD, os.R_OK)


def one_at_a_time() -> bool:
    """Return whether the interpreter runs one thread at a time."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())  # from Python 3.13 on


def this_machine() -> Machine:
    """Return what this process runs on."""
    return Machine(one_at_a_time(), _cores())


def main_thread() -> float:
    """Return the processor seconds of the main thread, which is the loop of most servers.

    Not by pthread_getcpuclockid(): what Python takes for the main thread where it is embedded may
    be one that has ended, and to ask for its clock is to crash.
    """
    with open(MAIN_THREAD, "rb") as file:
        return int(file.read().split()[0]) / 1e9


def _cores() -> float:
    affinity = getattr(os, "sched_getaffinity", None)
    cores: float = len(affinity(0)) if affinity else os.cpu_count() or 1
    # A container's quota counts, too.
    with suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:
        quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
    return cores
