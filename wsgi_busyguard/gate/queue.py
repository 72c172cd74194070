"""The queue in front of the slots: who waits, since when, and for how long at most."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from .._support.locks import under
from .._support.log import logger
from ..load import Load
from ..policy import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._support.locks import Lock
    from ..policy import Discipline
    from .slots import Circulation, Slot

P = ParamSpec("P")
R = TypeVar("R")


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


class Queue:
    """First come, first served; bounded in length and in age. All of it requires the gate's lock.

    :param discipline: how long it may be, and how old those in it.
    :param circulation: of the slots; those who wait take the last of the free.
    :param lost: counts one that got no slot.
    :ivar unserved_since: when the first of those arrived that gave up since one was served.
    """

    def __init__(
        self,
        discipline: Discipline,
        clock: Callable[[], float],
        circulation: Circulation,
        lost: Callable[[Reason | None], None],
    ) -> None:
        self.tickets: deque[Ticket] = deque()
        self.unserved_since: float | None = None
        self._discipline = discipline
        self._clock = clock
        self._circulation = circulation
        self._free = circulation.free
        self._lost = lost

    def join(
        self, woken: list[Ticket], ticket: Ticket, service: float | None
    ) -> Slot | Reason | None:
        """Put a ticket at the end and serve the queue; return what the ticket got, if anything.

        :param service: seconds that a request takes, if that is known.
        """
        ticket.arrived = self._clock() - ticket.ago
        self._discipline.arrived()
        self.tickets.append(ticket)
        self.hand_out(woken)
        if ticket.outcome is not None:
            woken.pop()  # itself, the last to be served
            if not isinstance(ticket.outcome, Reason):
                ticket.outcome.place.waited = ticket.ago  # it found a slot free: no wait here
            return ticket.outcome
        self._judge(woken)
        if len(self.tickets) > self._discipline.most(service):
            self.tickets.pop()
            ticket.outcome = Reason.QUEUE_FULL
            self._count_lost(Reason.QUEUE_FULL)
        return ticket.outcome

    def room(self, ago: float, service: float | None) -> float:
        """Return how many who come now get in or may wait. No more than a guess without the lock.

        :param ago: seconds for which they have waited elsewhere.
        """
        queued, free = len(self.tickets), len(self._free)
        if self._discipline.too_late(ago):
            return 0
        if ago > self._discipline.in_force.max_wait:
            return 0 if queued else free
        return free + self._discipline.most(service, ago) - queued

    def turn_away(self, woken: list[Ticket], ago: float, service: float | None) -> Reason | None:
        """Serve the queue; then refuse one who has no ticket, if there is no room for it."""
        self.hand_out(woken)
        if self._free and not self.tickets and not self._discipline.too_late(ago):
            return None
        if ago > self._discipline.in_force.max_wait:
            self._lost(Reason.QUEUE_AGE)
            return Reason.QUEUE_AGE
        if self.tickets:
            self._judge(woken)
        if len(self.tickets) < self._discipline.most(service, ago):
            return None
        self._discipline.arrived()
        self._count_lost(Reason.QUEUE_FULL)
        return Reason.QUEUE_FULL

    def _judge(self, woken: list[Ticket]) -> None:
        """Have the discipline look at a queue that is not empty."""
        first, now = self.tickets[0], self._clock()
        waited = now - first.arrived - first.ago  # elsewhere is no matter of this queue
        if self._discipline.crowded(now, len(self.tickets), waited):
            most = max(1, self._discipline.in_force.max_queue)  # join() sees to the newest
            while len(self.tickets) > most:
                self._refuse_first(woken, Reason.QUEUE_FULL)
                self.tickets.popleft()

    def _refuse_first(self, woken: list[Ticket], reason: Reason) -> None:
        """Refuse the first, who is in the queue still: it is taken out when all of this is done."""
        ticket = self.tickets[0]
        if ticket.outcome is None:
            ticket.outcome = reason
            woken.append(ticket)  # no call, in which something might be raised, comes before
            self._count_lost(reason)

    def _count_lost(self, reason: Reason | None) -> None:
        self._lost(reason)
        self._discipline.refused(self._clock())

    def take_out(self, ticket: Ticket, reason: Reason | None) -> bool:
        """Take a ticket out if it is there."""
        if ticket.outcome is not None:
            return False
        try:
            self.tickets.remove(ticket)
        except ValueError:
            return False
        self._gave_up(ticket)
        self._count_lost(reason)
        return True

    def hand_out(self, woken: list[Ticket]) -> None:
        """Serve the queue from its head; add to ``woken`` whoever got an outcome."""
        self._circulation.put_aside()
        now, most = self._clock(), self._discipline.in_force.max_wait
        while self.tickets:
            ticket = self.tickets[0]
            waited = now - ticket.arrived
            if ticket.outcome is not None:  # by one who was interrupted just then, and woke it
                pass
            # One that was as old when it came is here because it found a slot free.
            elif waited > most and not (ticket.ago > most and self._free):
                self._refuse_first(woken, Reason.QUEUE_AGE)
                self._gave_up(ticket)
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
                self._discipline.left()
                self.unserved_since = None
            self.tickets.popleft()

    def _gave_up(self, ticket: Ticket) -> None:
        """Remember since when nobody has got in."""
        if self.unserved_since is None or ticket.arrived < self.unserved_since:
            self.unserved_since = ticket.arrived

    def load(self, now: float, slots: int, service: float | None) -> Load:
        """Return the load of so many slots with this queue in front."""
        queued, free = len(self.tickets), len(self._free)
        # A slot that lies free while somebody waits is on its way to him.
        moving = min(queued, free)
        waited = now - self.since(now)
        longest = self._discipline.in_force.max_wait
        active = slots - free + moving
        return Load(queued - moving, active, slots, waited, service, 0.0, longest)

    def since(self, now: float) -> float:
        """Return since when nobody has got a slot who needs one."""
        since = self.tickets[0].arrived if self.tickets else now
        if self.unserved_since is not None and (self.tickets or not self._free):
            since = min(since, self.unserved_since)
        return since


def waking(
    lock: Lock, step: Callable[Concatenate[list[Ticket], P], R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """Take a step, under the lock, that adds to a list whoever got an outcome; wake those.

    A list, and not a result, so that they are woken even if an exception comes out of nowhere.
    """
    woken: list[Ticket] = []
    try:
        return under(lock, step, woken, *args, **kwargs)
    finally:
        try:
            wake(woken)
        finally:
            if woken:  # a call can be interrupted before it does anything
                wake(woken)


def wake(tickets: list[Ticket]) -> None:
    """Wake each of them, whatever is raised meanwhile; the list is empty afterwards."""
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
            wake(tickets)
