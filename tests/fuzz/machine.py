"""The same machine wherever targets are fed: its clock, its processes, its randomness.

What a target is given depends on what it did with all that came before. So that one machine finds
with a seed what another one found, nothing may depend on when and where it runs.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
import time
from types import SimpleNamespace

PID, BORN = 4242, 100  # of the one process that there is

# Seconds that pass from one look at the clock to the next, so that whoever waits comes to an end.
TICK = 0.001

LARGEST_PID = (1 << 31) - 1  # that kill(2) can be asked for


class Clock:
    """Seconds that pass as it is looked at."""

    def __init__(self, begin: float) -> None:
        self._now = begin

    def __call__(self, *_: object) -> float:
        self._now += TICK
        return self._now

    def nanoseconds(self) -> int:
        return int(self() * 1e9)


def kill(pid: int, _: int) -> None:
    """Send no signal, and say what the system says."""
    if not -LARGEST_PID <= pid <= LARGEST_PID:
        raise OverflowError("signed integer is greater than maximum")
    if pid != PID:
        raise ProcessLookupError


def settled(name: str) -> object:
    """Return a module that is imported on that machine, on which this process stays."""
    wall = Clock(1_700_000_000.0)
    time.time, time.time_ns = wall, wall.nanoseconds
    time.monotonic, time.clock_gettime = Clock(1000.0), Clock(1000.0)
    os.getpid, os.urandom = lambda: PID, lambda size: size * b"r"
    random.seed(1)
    processes = importlib.import_module("wsgi_busyguard.board.processes")
    processes._seen = {PID: (b"S", BORN, 1)}.get
    processes.os = SimpleNamespace(kill=kill, sysconf=lambda _: 100)
    module = importlib.import_module(name)
    gc.collect()  # from now on it also comes at the same moments
    return module
