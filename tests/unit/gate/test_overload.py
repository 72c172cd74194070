"""A burst is served, an overload is refused: the gate's queue when it stands, and when it ends."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wsgi_busyguard import Gate
from wsgi_busyguard.gate import Refused, Slot, Ticket
from wsgi_busyguard.policy import Reason

FULL, AGE, DRAINING = Reason.QUEUE_FULL, Reason.QUEUE_AGE, Reason.DRAINING


class Crowd:
    """Requests at a gate of ``slots``, on a clock; each inside is served when told."""

    def __init__(self, clock, slots=2, **limits):
        self.clock = clock
        self.gate = Gate(slots, **limits, clock=lambda: clock.now)
        self.begin()

    def begin(self):
        self.inside, self.woken, self.came = [], [], 0
        self.refused = []

    def forget(self, slot):
        """Refer to a slot nowhere, as a thread that was killed."""
        for ticket in self.woken:
            if ticket.outcome is slot:
                ticket.outcome = None

    def come(self, count=1, ago=0.0):
        for _ in range(count):
            self.came += 1
            ticket = Ticket(self._wake, ago)
            outcome = self.gate.offer(ticket)
            if outcome is not None:
                self._settle(ticket, outcome)

    def _wake(self, ticket):
        assert ticket not in self.woken  # tickets are equal to themselves only
        self.woken.append(ticket)
        self._settle(ticket, ticket.outcome)

    def _settle(self, ticket, outcome):
        if isinstance(outcome, Slot):
            self.inside.append(outcome)
        else:
            self.refused.append(outcome)

    def serve(self, count=1):
        for _ in range(count):
            self.gate.leave(self.inside.pop(0))

    def overload(self, seconds=6, arrivals=4):
        """Twice as many come as there are served, for so long."""
        for _ in range(10 * seconds):
            self.come(arrivals)
            self.clock.now += 0.1
            self.serve(2)

    @property
    def tight(self):
        return self.gate.discipline.tight

    @property
    def queued(self):
        return self.gate.read().queued


def test_a_burst_is_served_though_it_waits_for_longer_than_in_an_overload(clock):
    """Thirty-two at once on two slots of 0.1 s: the last of them waits for 1.5 s."""
    crowd = Crowd(clock)
    crowd.come(32)
    for _ in range(16):
        clock.now += 0.1
        crowd.serve(2)
    assert crowd.refused == []
    assert crowd.gate.empty
    assert not crowd.tight


def test_nobody_waits_for_longer_than_a_balancer(clock):
    crowd = Crowd(clock)
    crowd.come(3)
    clock.now += 1.5
    crowd.gate.expire()
    assert crowd.queued == 1
    clock.now += 0.2
    crowd.gate.expire()
    assert crowd.refused == [AGE]


def test_a_burst_has_an_end_for_memory(clock):
    crowd = Crowd(clock)
    crowd.come(403)
    assert crowd.refused == [FULL]


def test_an_overload_has_a_queue_as_long_as_the_slots_need(clock):
    crowd = Crowd(clock)
    crowd.overload(4)
    assert not crowd.tight
    assert crowd.queued <= 32  # so many are served in 1.6 s
    crowd.overload(2)
    assert crowd.tight
    assert crowd.queued <= 8
    before = len(crowd.refused)
    crowd.overload(1)
    assert len(crowd.refused) - before == 20  # of 40, two every 0.1 s are served
    assert set(crowd.refused) <= {FULL, AGE}


def test_when_it_begins_the_oldest_make_room_and_each_is_woken_once(clock):
    crowd = Crowd(clock)
    crowd.overload(5)
    queued = crowd.queued
    assert queued > 8
    crowd.come()
    assert crowd.tight
    assert crowd.queued == 8
    refused = [ticket for ticket in crowd.woken if ticket.outcome is FULL]
    assert len(refused) == queued + 1 - 8
    assert [ticket.arrived for ticket in refused] == sorted(ticket.arrived for ticket in refused)
    left = crowd.gate._queue.tickets
    assert min(ticket.arrived for ticket in left) >= max(ticket.arrived for ticket in refused)


def test_it_ends_by_a_place_to_spare_and_not_by_a_timer(clock):
    crowd = Crowd(clock)
    crowd.overload()
    for _ in range(20):  # no more than are served, but there is none to spare
        crowd.come(2)
        clock.now += 1.0
        crowd.gate.expire()
        crowd.serve(2)
    assert crowd.tight
    crowd.serve(2)
    while crowd.inside:
        crowd.serve()
    assert not crowd.tight
    assert crowd.gate.discipline.in_force.max_queue == 400


def test_a_place_that_one_just_refused_would_have_had_does_not_end_it(clock):
    """Ten of equal length end together, say, and a short queue is empty for a moment."""
    crowd = Crowd(clock)
    crowd.overload()
    crowd.come(20)
    while crowd.inside:
        crowd.serve()
    assert crowd.gate.empty
    assert crowd.tight
    crowd.come(3)
    crowd.serve()
    assert crowd.tight
    clock.now += 1.1
    crowd.serve()
    assert not crowd.tight


def test_one_that_had_waited_elsewhere_and_is_refused_begins_no_overload(clock):
    """By a queue header: it says nothing of this queue."""
    crowd = Crowd(clock)
    crowd.come(2)
    crowd.come(ago=9.0)
    assert crowd.refused == [AGE]
    for _ in range(60):
        crowd.come(2)
        clock.now += 0.1
        crowd.serve(2)
        crowd.come(1, ago=9.0)
    assert not crowd.tight


def test_a_drain_begins_no_overload(clock):
    crowd = Crowd(clock)
    crowd.come(3)
    crowd.gate.drain()
    clock.now += 3.0
    crowd.come(50)
    clock.now += 0.9
    assert set(crowd.refused) == {DRAINING}
    while crowd.inside:
        crowd.serve()
    assert not crowd.tight


def test_without_a_limit_of_age_nothing_is_an_overload(clock):
    crowd = Crowd(clock, max_wait=math.inf)
    crowd.overload(9)
    assert crowd.refused == []
    assert not crowd.tight


def test_limits_that_are_given_are_those_of_a_burst_too(clock):
    crowd = Crowd(clock, max_queue=3, max_wait=0.5)
    crowd.come(6)
    assert crowd.refused == [FULL]
    clock.now += 0.6
    crowd.gate.expire()
    assert crowd.refused == [FULL, AGE, AGE, AGE]


def test_it_goes_by_the_slots_in_force(clock):
    crowd = Crowd(clock, slots=4)
    crowd.gate.resize(1)
    crowd.come(4)
    for _ in range(60):
        crowd.come()
        clock.now += 0.1
    assert crowd.tight
    assert crowd.gate.discipline.in_force.slots == 1
    assert crowd.queued <= 4


def test_after_a_fork_there_is_none(clock):
    crowd = Crowd(clock)
    crowd.overload()
    crowd.gate._after_fork()
    assert not crowd.tight
    crowd.gate.take()
    assert crowd.gate.read().queued == 0


def test_a_thread_that_waits_is_refused_when_it_begins(start, until):
    """Not when the time is over for which it was ready to wait when it came."""
    gate = Gate(1, client_timeout=0.5)
    outcomes = []
    slot = gate.enter()

    def come():
        try:
            gate.leave(gate.enter())
        except Refused as refusal:
            outcomes.append(refusal.reason)

    for _ in range(12):
        start(come)
    until(lambda: gate.read().queued == 12)
    gate.discipline._since -= 0.6
    start(come)
    until(lambda: outcomes.count(FULL) >= 9)
    gate.leave(slot)
    until(lambda: gate.empty)


# Whatever happens


class OverloadMachine(RuleBasedStateMachine):
    """Bursts, overloads, stalls, losses, forks and quiet, in any order; each promise holds."""

    def __init__(self):
        super().__init__()
        self.now = 100.0
        self.crowd = Crowd(self, slots=3, client_timeout=2.0)
        self.gate = self.crowd.gate
        self.before_fork = []
        self.spare_at = self.now  # when there was last a place to spare
        self.begin()

    def begin(self):
        """Count from nothing."""
        self.withdrawn = 0
        self.forfeited = {None: 0, AGE: 0}
        self.counted = [0] * len(self.gate.counts().flat())

    @rule(count=st.integers(1, 40), ago=st.sampled_from([0.0, 0.0, 0.5, 3.0]))
    def come(self, count, ago):
        for _ in range(count):
            was_tight, crowd = self.crowd.tight, self.crowd
            refused, woken = len(crowd.refused), len(crowd.woken)
            crowd.come(1, ago)
            if crowd.tight and not was_tight:
                assert self.gate.queued <= self.gate.discipline.in_force.max_queue
                gone = len(crowd.refused) - refused
                assert gone <= len(crowd.woken) - woken, "the oldest make room, not this one"

    @precondition(lambda self: self.gate.has_room)
    @rule()
    def come_as_a_thread(self):
        """One that finds a place at once."""
        self.crowd.inside.append(self.gate.take())
        self.crowd.came += 1

    @rule()
    def overload(self):
        """Twice as many come as are served, for longer than their clients wait.

        Those who came together before it may be too old together, and then there is a place to
        spare for once, from which on it counts.
        """
        for _ in range(50):
            self.come(6, 0.0)
            self.now += 0.1
            self.crowd.serve(min(3, len(self.crowd.inside)))
        assert self.crowd.tight

    @rule()
    def stall(self):
        """Those who wait give up; later all is well, and full without anybody who waits."""
        self.come(8, 0.0)
        self.now += 2.5
        self.gate.expire()
        while self.crowd.inside:
            self.crowd.serve()
        self.now = self.spare_at = self.now + 30.0
        while self.gate.has_room:
            self.come_as_a_thread()

    @precondition(lambda self: self.crowd.inside)
    @rule(data=st.data())
    def serve(self, data):
        self.crowd.serve(data.draw(st.integers(1, len(self.crowd.inside))))

    @precondition(lambda self: self.crowd.inside)
    @rule(data=st.data(), lost=st.booleans())
    def serve_otherwise(self, data, lost):
        """A body that nobody closed, or a slot that nobody has any more."""
        slot = self.crowd.inside.pop(data.draw(st.integers(0, len(self.crowd.inside) - 1)))
        if lost:
            self.crowd.forget(slot)
            del slot
        else:
            self.gate.abandon(slot)

    @precondition(lambda self: self.crowd.inside)
    @rule(reason=st.sampled_from([None, AGE]))
    def forfeit(self, reason):
        """One that has a slot does not run: its client left, or it is refused after all."""
        self.gate.forfeit(self.crowd.inside.pop(0), reason)
        self.forfeited[reason] += 1

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3, 1.0, 2.5, 86400.0]))
    def wait(self, seconds):
        """Some time passes, or a laptop is shut for a day."""
        self.now += seconds

    @rule(twice=st.booleans())
    def fork(self, twice):
        """Go on in a child: those who wait and those inside are in the parent.

        Another thread of the parent has the lock just then.
        """
        for _ in range(1 + twice):
            thread = threading.Thread(target=self.gate._lock.acquire)
            thread.start()
            thread.join()
            self.gate._after_fork()
            assert self.gate._lock.acquire(blocking=False), "nobody is there to give it back"
            self.gate._lock.release()
        self.before_fork += self.crowd.inside
        self.crowd.begin()
        self.begin()

    @precondition(lambda self: self.before_fork)
    @rule(way=st.sampled_from(["leave", "abandon"]))
    def leave_what_was_taken_before_a_fork(self, way):
        getattr(self.gate, way)(self.before_fork.pop())

    @precondition(lambda self: self.crowd.came > 60)
    @rule()
    def drain(self):
        """Nobody comes in any more; those who wait and those inside are served."""
        self.gate.drain()
        before = len(self.crowd.refused)
        self.crowd.come(2)
        assert self.crowd.refused[before:] == [DRAINING] * 2
        while self.crowd.inside:
            self.crowd.serve()
        assert self.gate.empty
        self.gate.draining = False

    @rule()
    def expire(self):
        self.gate.expire()

    @precondition(lambda self: self.gate._queue.tickets)
    @rule(data=st.data())
    def leave_the_queue(self, data):
        ticket = data.draw(st.sampled_from(list(self.gate._queue.tickets)))
        assert self.gate.withdraw(ticket)
        self.withdrawn += 1

    @rule(slots=st.integers(1, 3))
    def resize(self, slots):
        self.gate.resize(slots)

    @rule()
    def be_quiet(self):
        """All are served, and then nobody comes for longer than anybody may wait."""
        while self.crowd.inside:
            self.crowd.serve()
        self.now += 2.5
        self.crowd.come()
        self.crowd.serve()
        self.crowd.come(self.gate.slots + 1)
        assert not self.crowd.tight
        while self.crowd.inside:
            self.crowd.serve()

    @invariant()
    def there_are_no_more_inside_than_slots(self):
        assert len(self.crowd.inside) <= self.gate.slots <= 3

    @invariant()
    def nobody_waits_while_a_slot_is_free(self):
        assert not (self.gate._queue.tickets and len(self.crowd.inside) < self.gate.wanted)

    @invariant()
    def each_is_counted_once(self):
        counts = self.gate.counts()
        forfeited = sum(self.forfeited.values())
        assert counts.admitted == counts.served + len(self.crowd.inside) + forfeited
        assert sum(counts.refused) == len(self.crowd.refused) + self.forfeited[AGE]
        assert counts.dropped == self.withdrawn + self.forfeited[None]
        queued = len(self.gate._queue.tickets)
        assert (
            self.crowd.came == counts.admitted + len(self.crowd.refused) + self.withdrawn + queued
        )

    @invariant()
    def no_number_ever_goes_down(self):
        before, self.counted = self.counted, self.gate.counts().flat()
        assert all(is_ >= was for is_, was in zip(self.counted, before, strict=True))

    @invariant()
    def the_load_is_what_is_there(self):
        load = self.gate.read()
        assert load[:3] == (
            len(self.gate._queue.tickets),
            len(self.crowd.inside),
            max(self.gate.wanted, len(self.crowd.inside)),
        )
        if not load.queued and load.idle:
            self.spare_at = self.now
        assert 0 <= load.waited <= self.now - self.spare_at + 3.0  # the longest elsewhere

    @invariant()
    def the_queue_is_as_long_and_as_old_as_it_may_be(self):
        tickets, bounds = self.gate._queue.tickets, self.gate.discipline.in_force
        assert len(tickets) <= 400
        assert bounds.max_queue == 400 or bounds.max_queue <= 4 * bounds.slots
        assert bounds.max_wait == (0.4 if self.crowd.tight else 1.6)


OverloadMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_what_the_gate_promises_holds_in_every_load = pytest.mark.slow(OverloadMachine.TestCase)


def test_who_has_no_ticket_is_turned_away_where_one_with_a_ticket_would_be(clock):
    crowd = Crowd(clock, slots=1, max_queue=2, max_wait=5.0, client_timeout=60.0)
    gate = crowd.gate
    assert (gate.room(), gate.room(ago=6.0), gate.turn_away(), gate.turn_away(6.0)) == (
        3,
        1,
        None,
        None,
    )
    crowd.come(2)
    assert (gate.room(), gate.turn_away()) == (1, None)
    assert (gate.room(ago=6.0), gate.turn_away(ago=6.0)) == (0, AGE)
    crowd.come()
    assert (gate.room(), gate.turn_away()) == (0, FULL)
    assert gate.counts().refused == (1, 1, 0)
    assert not crowd.refused
    crowd.serve(3)
    assert gate.counts().admitted == gate.counts().served == 3


def test_who_has_waited_elsewhere_finds_less_room_in_a_burst(clock):
    crowd = Crowd(clock, slots=1, client_timeout=1.0)
    crowd.come()
    clock.now += 0.05
    crowd.serve()  # so a request takes 50 ms, and 16 are served before the last is too old
    assert round(crowd.gate.room()) == 17
    assert round(crowd.gate.room(ago=0.15)) == 14
    assert crowd.gate.room(ago=0.75) == 5  # four for each slot, always


def test_who_has_waited_elsewhere_for_nearly_as_long_as_clients_do_finds_no_room(clock):
    gate = Gate(4, client_timeout=1.0)
    assert (gate.room(ago=0.75), gate.turn_away(ago=0.75)) == (404, None)
    assert (gate.room(ago=0.85), gate.turn_away(ago=0.85)) == (0, AGE)
    patient = Gate(4, max_wait=3.0, client_timeout=1.0)
    assert (patient.room(ago=2.9) > 0, patient.turn_away(ago=2.9)) == (True, None)
    never = Gate(4, max_wait=math.inf, client_timeout=1.0)
    assert (never.room(ago=99.0) > 0, never.turn_away(ago=99.0)) == (True, None)


def test_whoever_is_turned_away_makes_an_overload_as_others_do(clock):
    crowd = Crowd(clock, slots=1, max_queue=1, max_wait=5.0, client_timeout=1.0)
    crowd.come(2)
    clock.now += 1.5
    assert crowd.gate.turn_away() is FULL
    assert not crowd.gate.discipline.tight
    assert crowd.gate.turn_away() is FULL
    assert crowd.gate.discipline.tight


def test_one_whose_client_has_left_before_it_had_a_ticket_is_counted(clock):
    crowd = Crowd(clock)
    crowd.gate.lose()
    assert crowd.gate.counts().dropped == 1
    assert crowd.gate.room() > 2
