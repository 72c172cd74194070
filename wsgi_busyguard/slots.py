"""A slot, which always comes back, and what is counted of those who had it. Knows no gate.

An exception may arise between any two steps of Python's: a signal handler raises (an app that
limits its time by SIGALRM has one), or a thread is told to by another. Between taking a slot and
noting that it is taken no ``finally`` helps, and what is called in a ``finally`` may be interrupted
before its first step. But somebody refers to a slot at every moment: those who hold it, or the
place where the free ones lie. When nobody does any more, it is lost, and its finalizer says so.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Protocol

from .counts import BOUNDS, BUCKETS

if TYPE_CHECKING:
    from collections.abc import Callable


class Keeper(Protocol):
    """Whose slots they are; it must not refer to those that are taken."""

    def lost(self, slot: Slot) -> None:
        """Put another one in the place of a slot to which nobody refers. In a finalizer."""


class Tally:
    """Counts the holders of a slot. It has one at a time, so that needs no lock."""

    __slots__ = ("forfeited", "quick", "slow", "took", "waits", "waits_took")

    def __init__(self) -> None:
        self.quick = 0  # those who held it for no longer than the first bound: most of them
        self.slow = [0] * BUCKETS  # the others
        self.took = 0.0  # seconds, all of them together
        self.forfeited = 0  # those who left it without having run
        self.waits = [0] * BUCKETS  # of those who waited
        self.waits_took = 0.0

    def count_wait(self, waited: float) -> None:
        """Count that a holder has waited for it. Before the slot's ``since`` is set."""
        self.waits[bisect_left(BOUNDS, waited)] += 1
        self.waits_took += waited

    def count(self, took: float) -> None:
        """Count a holder who has run for so long."""
        self.took += took
        self.slow[bisect_left(BOUNDS, took)] += 1


class Slot:
    """A place in the application.

    :ivar since: monotonic seconds at which it was taken; ``None`` while it is free. Each holder
        has another object there, which tells it from those after it.
    :ivar waited: seconds that its holder waited for it.
    :ivar tally: counts its holders.
    :param keeper: a weak reference, or the slots would keep their keeper.
    """

    __slots__ = ("__weakref__", "_keeper", "since", "tally", "waited")

    def __init__(self, tally: Tally, keeper: Callable[[], Keeper | None]) -> None:
        self.since: float | None = None
        self.waited = 0.0
        self.tally = tally
        self._keeper = keeper

    def __del__(self) -> None:
        keeper = self._keeper()
        if keeper is not None:  # else all of them go
            keeper.lost(self)
