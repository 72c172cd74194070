"""The gate itself; what it promises and why it keeps that is in :mod:`wsgi_busyguard.gate`."""

from __future__ import annotations

import math
import time
import weakref
from bisect import bisect_left
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from .._support.forks import Stage, after_fork
from .._support.locks import owned_lock, under
from .._support.log import logger
from ..counters import BOUNDS
from ..load import SMOOTHING, Load, service_time
from ..policy import Discipline, Reason, limits
from .queue import Queue, Ticket, waking
from .slots import Circulation, Slot, SlotCounts, SlotPlace, tell_lost
from .thread_wait import wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..counters import Counters

QUICK = BOUNDS[0]

_new = tuple.__new__  # what a NamedTuple's own constructor does, in half the time


class Gate:
    """Lets at most ``slots`` in at once and queues the rest, first come first served.

    :param slots: how many may be in at once, at least 1.
    :param max_queue: how many may wait at most, ``math.inf`` no bound; ``None`` is as many as the
        :class:`~wsgi_busyguard.policy.Discipline` says.
    :param max_wait: seconds that one may wait at most, likewise.
    :param client_timeout: seconds after which a client gives up; ``None`` is 5.
    :param most_queued: how many the server can have wait, whatever the limits; each takes a
        connection.
    :param clock: monotonic seconds.
    :raises ValueError, TypeError: for limits that are not valid.

    Threads call :meth:`enter` and :meth:`leave`. Event loops, which cannot wait, use a
    :class:`Ticket` with :meth:`offer`, :meth:`withdraw` and :meth:`expire`. Both may be mixed, and
    every method may be called from any thread. It is an adapter.

    :ivar discipline: how long the queue may be, and how old; its ``in_force`` is for who comes now.
    :ivar why: why there are fewer :attr:`slots` than were given, for people; ``None`` if there are
        not.
    :ivar late: the longest that somebody had waited for the server's loop when that took it in, in
        seconds. Whoever tells that says so; whoever goes by it sets it back.
    :ivar crowded: whether somebody waited, or saw it full, since a slot was last left over.
    :ivar crowding: called outside the lock, by whoever comes to wait or sees several inside; it
        must return at once.
    """

    def __init__(
        self,
        slots: int,
        max_queue: float | None = None,
        max_wait: float | None = None,
        *,
        client_timeout: float | None = None,
        most_queued: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._given = (max_queue, max_wait, client_timeout, most_queued)
        self.limits = limits(slots, *self._given)
        self.draining = False
        self.crowding: Callable[[], object] = bool
        self._clock = clock
        self._watchers: list[Callable[[], object]] = []
        self._service: float | None = None
        self._gone = weakref.WeakMethod(self.lost)
        self._reset()
        after_fork(Stage.OWN, self._after_fork)

    def _after_fork(self) -> None:
        """Be empty in a child: those who waited or were inside are in the parent.

        Slots that the forking thread still holds are of the old set. They are marked as returned,
        so that nothing happens when it leaves them.
        """
        for place in self._places:
            place.since = None
        self._reset()

    def _reset(self) -> None:
        """Start with every slot free and nobody waiting."""
        self.why: str | None = None
        self.late = 0.0
        self._lock = owned_lock()
        # First, so that the slots from before, which are dropped here, are not missed.
        self._places: dict[SlotPlace, object] = {}  # each with what watches its slot
        self._circulation = Circulation(self.limits.slots)
        self._free = self._circulation.free
        for _ in range(self.limits.slots):
            self._add(SlotPlace())
        self._pop, self._push = self._free.pop, self._free.append  # to look them up takes long
        self._tally = SlotCounts(self._places)
        self.discipline = Discipline(self.limits.slots, *self._given)
        self._queue = Queue(self.discipline, self._clock, self._circulation, self._tally.lost)
        self._waiting = self._queue.tickets
        self.crowded = False

    def _add(self, place: SlotPlace) -> None:
        """Have one more free slot, for this place."""
        slot = Slot(place)
        self._places[place] = slot.watched(partial(tell_lost, self._gone, place))
        self._free.append(slot)

    def enter(self, ago: float = 0.0) -> Slot:
        """Take a slot, waiting for it if need be, and return it; it has to be left.

        :param ago: seconds for which the request has waited elsewhere; they count as waiting here,
            but a request that finds a slot free is not refused for them.
        :raises Refused: if the queue is full, the wait too long, or the gate draining.
        """
        slot = self.take(ago)
        slot.place.owed = slot.since
        return slot

    def take(self, ago: float = 0.0) -> Slot:
        """Do the same for one who may forget the slot instead of leaving it. A tenth quicker."""
        if not self._waiting and not self.draining:
            now = self._clock()  # before, for nothing may be called with a slot at hand
            try:
                slot = self._pop()
            except IndexError:
                pass
            else:
                place = slot.place
                if ago:
                    place.count_wait(ago)
                place.waited = ago
                place.since = now
                return slot
        return wait(self, self._clock, ago)

    def leave(self, slot: Slot) -> None:
        """Return a slot. Once: whoever calls this must forget the slot, for others will hold it."""
        place = slot.place
        since = place.since
        if since is None:
            return
        place.since = None
        try:
            # Two threads may do this at once and one sample be lost; a mean can bear that. Written
            # out (it is smoothed()) because the call would be a tenth of what a request costs here.
            took, mean = self._clock() - since, self._service
            self._service = took if mean is None else mean + (took - mean) * SMOOTHING
            # SlotPlace.count(), written out likewise, the most frequent bucket by itself.
            place.took += took
            if took <= QUICK:
                place.quick += 1
            else:
                place.slow[bisect_left(BOUNDS, took)] += 1
        finally:  # a signal handler may raise in each call; after the clock's, say
            self._push(slot)
        if self._waiting or self.crowded:
            self._hand_over()

    def abandon(self, slot: Slot) -> None:
        """Return a slot from a finalizer.

        No listener is called, for a finalizer may interrupt a listener or what a listener needs.
        The next who leaves, or the next look, tells that the state has changed.
        """
        place, since = slot.place, slot.place.since
        if since is None:
            return
        place.since = None
        try:
            place.count(self._clock() - since)
        finally:
            self._free.append(slot)
        self._hand_over(tell=False)

    def lost(self, place: SlotPlace) -> None:
        """Have another slot for a place that was not left, and to whose slot nobody refers.

        As from a finalizer; no listener is called, as in :meth:`abandon`.
        """
        since = place.since
        if since is not None and since is place.owed:
            return
        place.since = None
        if since is not None:
            place.count(self._clock() - since)
        self._add(place)
        self._hand_over(tell=False)

    def forfeit(self, slot: Slot, reason: Reason | None = None) -> None:
        """Return a slot whose holder has not run.

        :param reason: why it is refused after all; ``None`` if its client has left.
        """
        place = slot.place
        if place.since is None:
            return
        place.since = None
        place.forfeited += 1
        try:
            under(self._lock, self._tally.lost, reason)
        finally:
            self._free.append(slot)
        self._hand_over()

    def lose(self, reason: Reason | None = None) -> None:
        """Count one that gets no slot, for a reason of the caller's own.

        :param reason: why it is refused; ``None`` if its client has left.
        """
        under(self._lock, self._tally.lost, reason)
        self._hand_over()

    def offer(self, ticket: Ticket) -> Slot | Reason | None:
        """Ask for a slot without waiting.

        Returns the slot, or the reason for which there is none, or ``None``: the ticket is in the
        queue, and its ``wake`` will be called.
        """
        refused = None
        if self.draining:
            refused = Reason.DRAINING
        elif ticket.ago > self.discipline.in_force.max_wait and not self.has_room:
            refused = Reason.QUEUE_AGE
        if refused is not None:
            ticket.outcome = refused
            self.lose(refused)
            return refused
        outcome = waking(self._lock, self._queue_up, ticket)
        if outcome is None:
            self._changed()
            self.crowding()
        self._hand_over()
        return outcome

    def turn_away(self, ago: float = 0.0) -> Reason | None:
        """Refuse one who has no ticket if there is no :meth:`room` for it; return why.

        ``None`` if there is; then nothing is counted.
        """
        refused = waking(self._lock, self._queue.turn_away, ago, self._service)
        self._hand_over()
        return refused

    def withdraw(self, ticket: Ticket, reason: Reason | None = None) -> bool:
        """Take a ticket out of the queue; return whether it was still there.

        :param reason: why it is refused; ``None`` if its client has left.
        """
        was_there = under(self._lock, self._queue.take_out, ticket, reason)
        self._hand_over()
        return was_there

    def expire(self) -> None:
        """Refuse those who have waited too long. For a loop to call a few times a second."""
        waking(self._lock, self._queue.hand_out)
        self._hand_over()

    def resize(self, slots: int, why: str | None = None) -> None:
        """Let at most so many in at once from now on, at least one and no more than were given.

        Nobody inside is sent out: what is too many goes out of use when its holder leaves.

        :param why: why it is fewer, for people.
        """
        under(self._lock, self._resize, slots, why)
        self._hand_over()
        self._changed()

    def _resize(self, slots: int, why: str | None) -> None:
        """Do it. Requires self._lock."""
        # First: from now on whoever reads takes the lock, and whoever leaves comes to _serve().
        self.crowded = True
        self._circulation.turn_to(slots)
        self.discipline.resize(self._circulation.wanted)
        self.why = None if self._circulation.wanted == self.limits.slots else why

    def drain(self) -> None:
        """Refuse whoever comes from now on; those who wait and those inside are served.

        Takes no lock and may be called in a signal handler.
        """
        self.draining = True

    @property
    def slots(self) -> int:
        """How many may be in at once now: as many as were given, or fewer (:meth:`resize`)."""
        return self._circulation.slots()

    @property
    def wanted(self) -> int:
        """As how many :attr:`slots` there will be, when surplus holders have left."""
        return self._circulation.wanted

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def empty(self) -> bool:
        """Whether no request is inside and none waits."""
        return under(self._lock, lambda: not self._waiting and len(self._free) == self.slots)

    @property
    def has_room(self) -> bool:
        """Whether somebody who comes now gets a slot at once."""
        return bool(self._free) and not self._waiting

    def room(self, ago: float = 0.0) -> float:
        """Return about how many who come now get in or may wait; takes no lock.

        :param ago: seconds for which they have waited elsewhere.
        """
        return self._queue.room(ago, self._service)

    def is_idle(self) -> bool:
        """Return whether half of the slots are free, so that nobody needs to wait anywhere."""
        return 2 * len(self._free) >= self.slots

    def read(self) -> Load:
        """Return the figures of this instant."""
        slots = self.slots
        if not self.crowded:
            free = len(self._free)
            if free and not self.crowded and slots == self.slots:  # not resized in between
                if slots - free > 1:
                    self.crowding()
                return _new(Load, (0, slots - free, slots, 0.0, self._service, 0.0, inf))
            # Whoever sees no place left may take that for busy still. So the next who leaves has
            # to tell, and one who left before he could know of it is seen below.
            self.crowded = True
        load = under(self._lock, self._figures)
        self._hand_over(tell=False)  # the reader may hold a lock that a listener needs
        return load

    def counts(self) -> Counters:
        """Return what has been counted in this process; none of it ever goes down."""
        counts = under(self._lock, self._tally.counters)
        self._hand_over(tell=False)
        return counts

    def subscribe(self, changed: Callable[[], object]) -> None:
        """Have ``changed`` called, outside the lock, when the state may have changed."""
        self._watchers.append(changed)

    def __repr__(self) -> str:
        slots, free = self.slots, len(self._free)
        return f"<Gate {slots - free}/{slots} with {len(self._waiting)} waiting>"

    def _hand_over(self, tell: bool = True) -> None:
        """Give free slots to those who wait, and tell when one is left over."""
        while self._free and (self._waiting or (tell and self.crowded)):
            if self._lock._is_owned():  # a finalizer: what it interrupts comes here by itself
                return
            if waking(self._lock, self._serve, tell):
                self._changed()

    def _queue_up(self, woken: list[Ticket], ticket: Ticket) -> Slot | Reason | None:
        """Put a ticket into the queue and serve that. For :func:`waking`."""
        outcome = self._queue.join(woken, ticket, self._service)
        if outcome is None:
            self.crowded = True
        return outcome

    def _serve(self, woken: list[Ticket], tell: bool) -> bool:
        """Serve the queue; return whether to tell of a slot left over. For :func:`waking`."""
        self._queue.hand_out(woken)
        relaxed = tell and self.crowded and not self._waiting and bool(self._free)
        relaxed = relaxed and self.slots == self.wanted  # else who leaves has to come by here
        if relaxed:
            self.discipline.spare(self._clock())
            self.crowded = False
            self._queue.unserved_since = None
        return relaxed

    def _figures(self) -> Load:
        """Return the load of a crowded gate. Requires self._lock."""
        self._circulation.put_aside()  # what a finalizer has left
        now = self._clock()
        ages = [now - since for since in self.inside()]
        return self._queue.load(now, self.slots, service_time(self._service, ages))

    def inside(self) -> list[float]:
        """Return since when each of those inside is there."""
        sinces = [place.since for place in self._places]
        return [since for since in sinces if since is not None]

    def _changed(self) -> None:
        for changed in self._watchers:
            try:
                changed()
            except Exception:
                logger.exception("%r raised when told of a change by %r", changed, self)
