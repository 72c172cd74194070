"""The gate: slots, and a queue in front of them that is bounded in length and in age.

Nothing here knows a server, a request or HTTP.
"""

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

from ._support.forks import Stage, after_fork
from ._support.locks import under
from ._support.log import logger
from .counters import BOUNDS, REASONS, SECOND, Counters
from .load import SMOOTHING, Load, service_time
from .policy import Limits, Reason, limits
from .slots import Place
from .slots import Slot as Slot

if TYPE_CHECKING:
    from collections.abc import Callable


P = ParamSpec("P")
R = TypeVar("R")


QUICK = BOUNDS[0]

_new = tuple.__new__  # what a NamedTuple's own constructor does, in half the time


class Refused(Exception):
    """The gate did not let this one in; nothing has run."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Ticket:
    """A place in the queue, for a request that has no thread to wait in.

    :param wake: called once, with the ticket, outside any lock and in whichever thread made it so,
        when ``outcome`` has come while it waited. Not called for an outcome that
        :meth:`Gate.offer` returned, nor after :meth:`Gate.withdraw` returned true.
    :param ago: seconds for which the request has waited elsewhere; they count as waiting here, but
        nobody who finds a slot free is refused for them.
    :ivar outcome: the :class:`Slot`, or the :class:`Reason` for which there is none; ``None``
        while it waits.
    """

    __slots__ = ("ago", "arrived", "outcome", "wake")

    def __init__(self, wake: Callable[[Ticket], object], ago: float = 0.0) -> None:
        self.wake = wake
        self.ago = ago
        self.arrived = 0.0
        self.outcome: Slot | Reason | None = None


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

    *Why nothing is lost.* Free slots lie in one deque, those who wait stand in another. Taking or
    returning a slot is one atomic operation and needs no lock while nobody waits. Somebody about to
    wait first stands in the queue and then looks for a free slot once more; somebody leaving first
    returns the slot and then looks at the queue. Whichever order these four steps fall into, one of
    the two sees the other, and slots are handed over under the lock.

    *Why a finalizer may leave.* A body that was never closed leaves when it is collected, which may
    interrupt any line here, one that holds the lock among them. So the lock can be taken again by
    the thread that has it, which a finalizer sees and leaves the rest to, and everybody looks once
    more for what an interruption left undone after letting go.

    *Why no slot is lost.* Because an exception came out of nowhere, whoever holds a slot may forget
    it. The gate itself refers only to those that are free, so that one is noticed when nobody
    refers to it any more, see :mod:`wsgi_busyguard.slots`; then there is another for its place.
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
        self._counting = tuple(self._places)  # also those that are given up later
        self._refused = dict.fromkeys(REASONS, 0)
        self._dropped = 0
        self._admitted = 0  # as last told, and of these those who did not wait
        self._unwaited = 0
        self._waiting: deque[Ticket] = deque()
        self._crowded = False  # somebody waited, or saw it full, since a slot was last left over
        self._hungry_since: float | None = None  # the first of those who gave up since one moved

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
                place.since = now
                place.waited = ago
                if ago:
                    place.count_wait(ago)
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
            under(self._lock, self._count_lost, reason)
        finally:
            self._free.append(slot)
        self._hand_over()

    def refuse(self, reason: Reason) -> NoReturn:
        """Refuse one for a reason of the caller's own, which counts as if it were the gate's.

        :raises Refused: always.
        """
        under(self._lock, self._count_lost, reason)
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
            under(self._lock, self._count_lost, refused)
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
        was_there = under(self._lock, self._take_out, ticket, reason)
        self._hand_over()
        return was_there

    def expire(self) -> None:
        """Refuse those who have waited too long. For a loop to call a few times a second."""
        self._waking(self._hand_out)
        self._hand_over()

    def drain(self) -> None:
        """Refuse whoever comes from now on; those who wait and those inside are served.

        Takes no lock and may be called in a signal handler.
        """
        self.draining = True

    def lower(self, limits: Limits) -> None:
        """Have fewer slots or a shorter queue from now on; for when nobody is inside yet.

        Slots that are taken stay, and so does what has no limit of its own: ``max_wait``.
        """
        under(self._lock, self._lower, limits)
        self._hand_over(tell=False)

    def _lower(self, limits: Limits) -> None:
        """Have fewer slots. Requires self._lock."""
        while len(self._places) > limits.slots and self._free:
            slot = self._free.pop()
            del self._places[slot.place]  # before the slot goes, or it would be missed
        queue = min(limits.max_queue, self.limits.max_queue)
        self.limits = self.limits._replace(slots=len(self._places), max_queue=queue)

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
        counts = under(self._lock, self._counted)
        self._hand_over(tell=False)
        return counts

    def _counted(self) -> Counters:
        """Add up what has been counted. Requires self._lock."""
        all_ = self._counting
        waits = [sum(column) for column in zip(*(place.waits for place in all_), strict=True)]
        waits_took = sum(place.waits_took for place in all_)
        service = [sum(column) for column in zip(*(place.slow for place in all_), strict=True)]
        service[0] += sum(place.quick for place in all_)
        served, took = sum(service), sum(place.took for place in all_)
        # Slots are read one after the other while others come and go. Who is just leaving may
        # not be seen at all, so both are told too low then, never too high: the last look.
        inside = sum(place.forfeited for place in all_) + len(self._taken())
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
                _wake(woken)
            finally:
                if woken:  # a call can be interrupted before it does anything
                    _wake(woken)

    def _queue_up(self, woken: list[Ticket], ticket: Ticket) -> Slot | Reason | None:
        """Put a ticket into the queue and serve that. For :meth:`_waking`."""
        ticket.arrived = self._clock() - ticket.ago
        self._waiting.append(ticket)
        self._hand_out(woken)
        if ticket.outcome is not None:
            woken.pop()  # itself, the last to be served
        elif len(self._waiting) > self.limits.max_queue:
            self._waiting.pop()
            ticket.outcome = Reason.QUEUE_FULL
            self._count_lost(Reason.QUEUE_FULL)
        else:
            self._crowded = True
        return ticket.outcome

    def _count_lost(self, reason: Reason | None) -> None:
        """Count one who did not run. Requires self._lock."""
        if reason is None:
            self._dropped += 1
        else:
            self._refused[reason] += 1

    def _take_out(self, ticket: Ticket, reason: Reason | None) -> bool:
        """Take a ticket out of the queue if it is there. Requires self._lock."""
        if ticket.outcome is not None:
            return False
        try:
            self._waiting.remove(ticket)
        except ValueError:
            return False
        self._gave_up(ticket)
        self._count_lost(reason)
        return True

    def _serve(self, woken: list[Ticket], tell: bool) -> bool:
        """Serve the queue; return whether to tell of a slot left over. For :meth:`_waking`."""
        self._hand_out(woken)
        relaxed = tell and self._crowded and not self._waiting and bool(self._free)
        if relaxed:
            self._crowded = False
            self._hungry_since = None
        return relaxed

    def _figures(self) -> Load:
        """Return the load of a crowded gate. Requires self._lock."""
        now, slots = self._clock(), self.limits.slots
        queued, free = len(self._waiting), len(self._free)
        since = self._waiting[0].arrived if queued else now
        if self._hungry_since is not None and (queued or not free):
            since = min(since, self._hungry_since)
        # A slot that lies free while somebody waits is on its way to him.
        moving = min(queued, free)
        service = service_time(self._service, self._ages(now))
        return Load(queued - moving, slots - free + moving, slots, now - since, service)

    def _hand_out(self, woken: list[Ticket]) -> None:
        """Serve the queue from its head. For :meth:`_waking`."""
        now = self._clock()
        while self._waiting:
            ticket = self._waiting[0]
            waited, most = now - ticket.arrived, self.limits.max_wait
            if ticket.outcome is not None:  # by one who was interrupted just then, and woke it
                pass
            # One that was as old when it came is here because it found a slot free.
            elif waited > most and not (ticket.ago > most and self._free):
                ticket.outcome = Reason.QUEUE_AGE
                woken.append(ticket)
                self._gave_up(ticket)
                self._count_lost(Reason.QUEUE_AGE)
            else:
                try:
                    slot = self._free.pop()
                except IndexError:
                    break
                slot.place.count_wait(waited)
                slot.place.since = now
                slot.place.waited = waited
                ticket.outcome = slot
                woken.append(ticket)
                self._hungry_since = None
            self._waiting.popleft()

    def _gave_up(self, ticket: Ticket) -> None:
        """Remember since when nobody has got in. Requires self._lock."""
        if self._hungry_since is None or ticket.arrived < self._hungry_since:
            self._hungry_since = ticket.arrived

    def _ages(self, now: float) -> list[float]:
        return [now - since for since in self._taken()]

    def _taken(self) -> list[float]:
        """Return since when each slot is taken that is."""
        sinces = [place.since for place in self._places]
        return [since for since in sinces if since is not None]

    def _changed(self) -> None:
        for changed in self._watchers:
            try:
                changed()
            except Exception:
                logger.exception("%r raised when told of a change by %r", changed, self)


def _wake(tickets: list[Ticket]) -> None:
    try:
        while tickets:
            ticket = tickets[0]
            del tickets[0]  # no call, in which something might be raised, comes before its own
            try:
                ticket.wake(ticket)
            except Exception:
                logger.exception("could not wake a waiting request by %r", ticket.wake)
    finally:
        if tickets:  # what was raised is not theirs
            _wake(tickets)


def _lost(keeper: weakref.ref[Gate], place: Place, _: object) -> None:
    gate = keeper()
    if gate is not None:
        gate.lost(place)
