"""The gate itself; what it promises and why it keeps that is in :mod:`wsgi_busyguard.gate`."""

from __future__ import annotations

import math
import threading
import time
import weakref
from bisect import bisect_left
from collections import deque
from functools import partial
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar

from .._support.forks import Stage, after_fork
from .._support.locks import under
from .._support.log import logger
from ..counters import BOUNDS
from ..load import SMOOTHING, Load, service_time
from ..policy import Reason, limits
from .queue import Queue, Ticket, wake
from .slots import Place, Slot, Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..counters import Counters

P = ParamSpec("P")
R = TypeVar("R")


QUICK = BOUNDS[0]

_new = tuple.__new__  # what a NamedTuple's own constructor does, in half the time


class Refused(Exception):
    """The gate did not let this one in; nothing has run."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Gate:
    """Lets at most ``slots`` in at once and queues the rest, first come first served.

    :param slots: how many may be in at once, at least 1.
    :param max_queue: how many may wait; ``None`` is ``4 * slots``, ``math.inf`` no bound.
    :param max_wait: seconds that one may wait; ``None`` is a fifth of ``client_timeout``,
        ``math.inf`` no limit.
    :param client_timeout: seconds after which a client gives up; ``None`` is 5.
    :param clock: monotonic seconds.
    :raises ValueError, TypeError: for limits that cannot be meant.

    Threads call :meth:`enter` and :meth:`leave`. Event loops, which cannot wait, use a
    :class:`Ticket` with :meth:`offer`, :meth:`withdraw` and :meth:`expire`. Both may be mixed, and
    every method may be called from any thread. It is an adapter.
    """

    def __init__(
        self,
        slots: int,
        max_queue: float | None = None,
        max_wait: float | None = None,
        *,
        client_timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits(slots, max_queue, max_wait, client_timeout)
        self.draining = False
        self._clock = clock
        self._watchers: list[Callable[[], object]] = []
        self._service: float | None = None
        self._here = weakref.ref(self)
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
        self._lock: Any = threading.RLock()
        # First, so that the slots from before, which are dropped here, are not missed.
        self._places: dict[Place, object] = {}  # each with what watches its slot
        self._free: deque[Slot] = deque()
        for _ in range(self.limits.slots):
            self._add(Place())
        self._pop, self._push = self._free.pop, self._free.append  # to look them up takes long
        self._tally = Tally(self._places)
        self._queue = Queue(self.limits, self._clock, self._free, self._tally.lost)
        self._waiting = self._queue.tickets
        self._crowded = False  # somebody waited, or saw it full, since a slot was last left over

    def _add(self, place: Place) -> None:
        """Have one more free slot, for this place."""
        slot = Slot(place)
        self._places[place] = slot.watched(partial(_lost, self._here, place))
        self._free.append(slot)

    def enter(self, ago: float = 0.0) -> Slot:
        """Take a slot, waiting for it if need be, and return it; it has to be left.

        :param ago: seconds for which the request has waited elsewhere; they count as waiting here,
            but nobody who finds a slot free is refused for them.
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
        return self._wait(ago)

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
            # Place.count(), written out for the same reason, the most frequent bucket by itself.
            place.took += took
            if took <= QUICK:
                place.quick += 1
            else:
                place.slow[bisect_left(BOUNDS, took)] += 1
        finally:  # a signal handler may raise in each call; after the clock's, say
            self._push(slot)
        if self._waiting or self._crowded:
            self._hand_over()

    def abandon(self, slot: Slot) -> None:
        """Return a slot from a finalizer.

        Nobody is told, for a finalizer may interrupt a listener or what a listener needs. The next
        who leaves, or the next look, tells that the state has changed.
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

    def lost(self, place: Place) -> None:
        """Have another slot for a place that was not left, and to whose slot nobody refers.

        As from a finalizer; nobody is told, as in :meth:`abandon`.
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

    def refuse(self, reason: Reason) -> NoReturn:
        """Refuse one for a reason of the caller's own, which counts as if it were the gate's.

        :raises Refused: always.
        """
        under(self._lock, self._tally.lost, reason)
        self._hand_over()
        raise Refused(reason)

    def offer(self, ticket: Ticket) -> Slot | Reason | None:
        """Ask for a slot without waiting.

        Returns the slot, or the reason for which there is none, or ``None``: the ticket is in the
        queue, and its ``wake`` will be called.
        """
        refused = None
        if self.draining:
            refused = Reason.DRAINING
        elif ticket.ago > self.limits.max_wait and not self.has_room:
            refused = Reason.QUEUE_AGE
        if refused is not None:
            ticket.outcome = refused
            under(self._lock, self._tally.lost, refused)
            self._hand_over()
            return refused
        outcome = self._waking(self._queue_up, ticket)
        if outcome is None:
            self._changed()
        self._hand_over()
        return outcome

    def withdraw(self, ticket: Ticket, reason: Reason | None = None) -> bool:
        """Take a ticket out of the queue; return whether it was still there.

        :param reason: why it is refused; ``None`` if its client has left.
        """
        was_there = under(self._lock, self._queue.take_out, ticket, reason)
        self._hand_over()
        return was_there

    def expire(self) -> None:
        """Refuse those who have waited too long. For a loop to call a few times a second."""
        self._waking(self._queue.hand_out)
        self._hand_over()

    def drain(self) -> None:
        """Refuse whoever comes from now on; those who wait and those inside are served.

        Takes no lock and may be called in a signal handler.
        """
        self.draining = True

    @property
    def empty(self) -> bool:
        """Whether nobody is inside and nobody waits."""
        return not self._waiting and len(self._free) == self.limits.slots

    @property
    def has_room(self) -> bool:
        """Whether somebody who comes now gets a slot at once."""
        return bool(self._free) and not self._waiting

    def is_idle(self) -> bool:
        """Return whether half of the slots are free, so that nobody needs to wait anywhere."""
        return 2 * len(self._free) >= self.limits.slots

    def read(self) -> Load:
        """Return the figures of this instant."""
        slots = self.limits.slots
        if not self._crowded:
            free = len(self._free)
            if free:
                return _new(Load, (0, slots - free, slots, 0.0, self._service, 0.0))
            # Whoever sees no place left may take that for busy still. So the next who leaves has
            # to tell, and one who left before he could know of it is seen below.
            self._crowded = True
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
        inside = self.limits.slots - len(self._free)
        return f"<Gate {inside}/{self.limits.slots} with {len(self._waiting)} waiting>"

    def _wait(self, ago: float) -> Slot:
        woken = threading.Lock()  # each waits at a lock of his own and is woken alone
        woken.acquire()
        ticket = Ticket(lambda _: woken.release(), ago)
        try:
            outcome = self.offer(ticket) or self._outcome(ticket, woken)
        except BaseException:  # raised into the wait, as gevent's timeouts are
            self.withdraw(ticket)
            if isinstance(ticket.outcome, Slot):
                self.forfeit(ticket.outcome)
            raise
        if isinstance(outcome, Slot):
            return outcome
        raise Refused(outcome)

    def _outcome(self, ticket: Ticket, woken: threading.Lock) -> Slot | Reason:
        """Wait until the ticket has its outcome or is too old for one."""
        left = self.limits.max_wait - (self._clock() - ticket.arrived)
        woken.acquire(timeout=-1 if left == math.inf else min(max(left, 0), TIMEOUT_MAX))
        self.withdraw(ticket, Reason.QUEUE_AGE)
        return ticket.outcome or Reason.QUEUE_AGE

    def _hand_over(self, tell: bool = True) -> None:
        """Give free slots to those who wait, and tell when one is left over."""
        while self._free and (self._waiting or (tell and self._crowded)):
            if self._lock._is_owned():  # a finalizer: what it interrupts comes here by itself
                return
            if self._waking(self._serve, tell):
                self._changed()

    def _waking(
        self, step: Callable[Concatenate[list[Ticket], P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Take a step that adds to a list whoever got an outcome by it, and wake those.

        A list, and not a result, so that they are woken even if an exception comes out of nowhere.
        """
        woken: list[Ticket] = []
        try:
            return under(self._lock, step, woken, *args, **kwargs)
        finally:
            try:
                wake(woken)
            finally:
                if woken:  # a call can be interrupted before it does anything
                    wake(woken)

    def _queue_up(self, woken: list[Ticket], ticket: Ticket) -> Slot | Reason | None:
        """Put a ticket into the queue and serve that. For :meth:`_waking`."""
        outcome = self._queue.join(woken, ticket)
        if outcome is None:
            self._crowded = True
        return outcome

    def _serve(self, woken: list[Ticket], tell: bool) -> bool:
        """Serve the queue; return whether to tell of a slot left over. For :meth:`_waking`."""
        self._queue.hand_out(woken)
        relaxed = tell and self._crowded and not self._waiting and bool(self._free)
        if relaxed:
            self._crowded = False
            self._queue.unserved_since = None
        return relaxed

    def _figures(self) -> Load:
        """Return the load of a crowded gate. Requires self._lock."""
        now, slots = self._clock(), self.limits.slots
        queued, free = len(self._waiting), len(self._free)
        waited = now - self._queue.since(now)
        # A slot that lies free while somebody waits is on its way to him.
        moving = min(queued, free)
        service = service_time(self._service, self._ages(now))
        return Load(queued - moving, slots - free + moving, slots, waited, service)

    def _ages(self, now: float) -> list[float]:
        sinces = [place.since for place in self._places]
        return [now - since for since in sinces if since is not None]

    def _changed(self) -> None:
        for changed in self._watchers:
            try:
                changed()
            except Exception:
                logger.exception("%r raised when told of a change by %r", changed, self)


def _lost(keeper: weakref.ref[Gate], place: Place, _: object) -> None:
    gate = keeper()
    if gate is not None:
        gate.lost(place)
