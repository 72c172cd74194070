"""A slot, which always comes back, and what is counted of its holders. Knows no gate.

An exception may arise between any two steps of Python's: a signal handler raises (an app that
limits its time by SIGALRM has one), or a thread is told to by another. Between taking a slot and
noting that it is taken no ``finally`` helps, and what is called in a ``finally`` may be interrupted
before its first step. But somebody refers to a slot at every moment: whoever has it, or the queue
in which the free ones lie. When nobody does any more it is lost, and that is noticed.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING
from weakref import ref

from .counters import BOUNDS, BUCKETS

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType


class Place:
    """A place in the application. It has one holder at a time, so to count them needs no lock.

    :ivar since: monotonic seconds at which it was taken; ``None`` while it is free. Each holder
        has another object there, which tells it from those after it.
    :ivar waited: seconds that its holder waited for it.
    :ivar owed: the ``since`` of one who may forget the slot and leave it all the same.
    """

    __slots__ = (
        *("forfeited", "owed", "quick", "since", "slow", "took"),
        *("waited", "waits", "waits_took"),
    )

    def __init__(self) -> None:
        self.since: float | None = None
        self.owed: float | None = None
        self.waited = 0.0
        self.quick = 0  # those who held it for no longer than the first bound: most of them
        self.slow = [0] * BUCKETS  # the others
        self.took = 0.0  # seconds, all of them together
        self.forfeited = 0  # those who left it without having run
        self.waits = [0] * BUCKETS  # of those who waited
        self.waits_took = 0.0

    def count_wait(self, waited: float) -> None:
        """Count that a holder has waited for it. Before ``since`` is set."""
        self.waits[bisect_left(BOUNDS, waited)] += 1
        self.waits_took += waited

    def count(self, took: float) -> None:
        """Count a holder who has run for so long."""
        self.took += took
        self.slow[bisect_left(BOUNDS, took)] += 1


class Slot:
    """The right to a place: whoever has it is in the application."""

    __slots__ = ("_guard", "place")

    def __init__(self, place: Place) -> None:
        self.place = place
        # Goes with the slot, and not before. A finalizer of the slot's own would not do: the
        # garbage collector calls the finalizers of all that it has found in a cycle, in any order,
        # and one of them may be that of a body which was never closed, and which leaves the slot.
        # So it has to be something that the collector does not know and that can be referred to
        # weakly, and that is code and nothing else. (Without the GIL it knows code, too.)
        self._guard = Slot.__init__.__code__.replace()

    @property
    def since(self) -> float | None:
        """Monotonic seconds at which it was taken; ``None`` while it is free."""
        return self.place.since

    @property
    def waited(self) -> float:
        """Seconds that its holder waited for it."""
        return self.place.waited

    def watched(self, lost: Callable[[object], object]) -> ref[CodeType]:
        """Return what has ``lost`` called when nobody refers to the slot, as long as it is kept.

        Called with one argument that says nothing, as from a finalizer.
        """
        return ref(self._guard, lost)
