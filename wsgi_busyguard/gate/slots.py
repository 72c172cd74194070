"""A slot, which always comes back, and what is counted of its holders. Knows no gate."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING
from weakref import ref

from ..counters import BOUNDS, BUCKETS, REASONS, SECOND, Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType

    from ..policy import Reason


class SlotPlace:
    """A place in the application. It has one holder at a time, so to count them needs no lock.

    :ivar since: monotonic seconds at which it was taken; ``None`` while it is free. Each holder
        has another object there, which tells it from those after it.
    :ivar waited: seconds that its holder waited for it.
    :ivar owed: the ``since`` of one who may forget the slot and leave it all the same.
    """

    __slots__ = (
        "forfeited",
        "owed",
        "quick",
        "since",
        "slow",
        "took",
        "waited",
        "waits",
        "waits_took",
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

    def __init__(self, place: SlotPlace) -> None:
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


class Circulation:
    """Which slots may be taken; the others lie aside. All but reading requires the gate's lock.

    Each slot is free, or aside, or has one holder, and nobody keeps count of them: so whatever is
    raised between two steps, what :meth:`slots` says is true. One that gets lost on the way is made
    anew, and is free then.

    :param most: how many there are.
    :ivar free: those that nobody has.
    :ivar wanted: how many are to be in circulation: more may be for as long as somebody has them.
    """

    def __init__(self, most: int) -> None:
        self.most = self.wanted = most
        self.free: deque[Slot] = deque()
        self._aside: list[Slot] = []

    def slots(self) -> int:
        """Return how many may be in at once now. Takes no lock."""
        return self.most - len(self._aside)

    def turn_to(self, wanted: int) -> None:
        """Have so many, at least one; those beyond that somebody has go when they come back."""
        self.wanted = max(1, min(self.most, wanted))
        while self._aside and self.slots() < self.wanted:
            self.free.append(self._aside.pop())
        self.put_aside()

    def put_aside(self) -> None:
        """Take what is too many, and is free, out of circulation."""
        while self.slots() > self.wanted:
            try:
                self._aside.append(self.free.pop())
            except IndexError:
                return


class SlotCounts:
    """What is counted of the holders of all places, and of those who got none.

    All of it requires the gate's lock.
    """

    def __init__(self, places: Iterable[SlotPlace]) -> None:
        self._places = tuple(places)
        self._refused = dict.fromkeys(REASONS, 0)
        self._dropped = 0
        self._admitted = 0  # as last returned, and of these those who did not wait
        self._unwaited = 0

    def lost(self, reason: Reason | None) -> None:
        """Count one who did not run; without a reason its client had left."""
        if reason is None:
            self._dropped += 1
        else:
            self._refused[reason] += 1

    def counters(self) -> Counters:
        """Add up what has been counted."""
        places = self._places
        waits = [sum(column) for column in zip(*(place.waits for place in places), strict=True)]
        waits_took = sum(place.waits_took for place in places)
        service = [sum(column) for column in zip(*(place.slow for place in places), strict=True)]
        service[0] += sum(place.quick for place in places)
        served, took = sum(service), sum(place.took for place in places)
        # Places are read one after the other while others come and go. Who is just leaving may
        # not be seen at all, so both figures are too low then, never too high: the last look.
        inside = sum(place.forfeited + (place.since is not None) for place in places)
        self._admitted = max(self._admitted, served + inside)
        self._unwaited = max(self._unwaited, self._admitted - sum(waits[1:]))
        waits[0] = self._unwaited
        return Counters(
            self._admitted,
            served,
            tuple(self._refused.values()),
            self._dropped,
            tuple(service),
            int(took * SECOND),
            tuple(waits),
            int(waits_took * SECOND),
        )


def tell_lost(
    gone: Callable[[], Callable[[SlotPlace], object] | None], place: SlotPlace, _: object
) -> None:
    """Call what ``gone`` returns, if that is there still: nobody refers to a place's slot now."""
    tell = gone()
    if tell is not None:
        tell(place)
