"""Hosts as a check port may find them, for the page and ``busyguard top``: values only."""

from __future__ import annotations

from typing import NamedTuple

from wsgi_busyguard import Load, State
from wsgi_busyguard.board import Row
from wsgi_busyguard.counters import BOUNDS, CHECKS, Change, Changes, Counters, RefusalRate
from wsgi_busyguard.dashboard.history import KEPT_LOOKS, Look
from wsgi_busyguard.policy import Verdict

SECOND = 10**9
BUCKETS = len(BOUNDS) + 1


def times(*counts):
    return (*counts, *(0,) * (BUCKETS - len(counts)))


class Scene(NamedTuple):
    """What a watcher of several processes tells."""

    word: str = "free"
    ready: bool = True
    load: Load = Load(0, 3, 10, service=0.12)
    processes: tuple[Row, ...] = ()
    counted: Counters | None = Counters(
        1290, 1287, (0, 0, 0), 0, times(0, 0, 12, 80, 400, 795), 154 * SECOND, times(1290)
    )
    changed: Changes = Changes()
    lives: bool = True
    draining: bool = False

    def check(self, ready="damped", patience=2.0, count=True):
        return Verdict(self.word, self.ready, self.load)

    def alive(self):
        return self.lives

    def rows(self):
        return list(self.processes)

    def counts(self):
        return self.counted

    @property
    def refusals(self):
        return RefusalRate()

    def asked(self):
        return [7 * n for n in range(len(CHECKS))]

    def changes(self):
        return self.changed


def row(pid, load, *, state="ready", beat=0.12, served=80, refused=0, dropped=0):
    return Row(pid, state, load, beat, served, refused, dropped, served + load.active, pid % 100)


def change(state, at, load, lasted):
    return Change(State(state), at, lasted, load)


def past(now, how):
    """Return five minutes of looks; ``how(seconds ago)`` gives all but the time."""
    return [Look(now - ago, *how(ago)) for ago in range(KEPT_LOOKS - 1, -1, -1)]
