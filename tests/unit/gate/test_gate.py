from __future__ import annotations

import gc
import itertools
import math
import os
import random
import signal
import threading
import time
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wsgi_busyguard import Gate, Load, Monitor, State
from wsgi_busyguard.gate import Refused, Slot, Ticket
from wsgi_busyguard.gate.queue import Queue
from wsgi_busyguard.policy import Reason

FULL, AGE, DRAINING = Reason.QUEUE_FULL, Reason.QUEUE_AGE, Reason.DRAINING


VISITORS = []


@pytest.fixture(autouse=True)
def visitors_leave():
    """Let go of all visitors, and of their slots, at the end of a test and not before."""
    yield
    VISITORS.clear()


class Visitor:
    """Somebody with a ticket, and how often it was woken."""

    def __init__(self, gate):
        VISITORS.append(self)
        self.woken = 0
        self.ticket = Ticket(self._wake)
        self.offered = gate.offer(self.ticket)

    def _wake(self, ticket):
        assert ticket is self.ticket
        self.woken += 1

    @property
    def outcome(self):
        return self.ticket.outcome


def waiting(gate):
    return gate.read().queued


# Slots and the queue


def test_as_many_get_in_as_there_are_slots_and_the_rest_wait():
    gate = Gate(2, max_queue=3)
    visitors = [Visitor(gate) for _ in range(6)]
    assert [type(v.outcome) for v in visitors[:2]] == [Slot, Slot]
    assert [v.outcome for v in visitors[2:]] == [None, None, None, FULL]
    assert gate.read()[:3] == (3, 2, 2)


def test_whoever_finds_a_slot_free_has_not_waited_not_even_while_it_was_looked_at():
    gate = Gate(1, max_queue=1, max_wait=math.inf, clock=itertools.count().__next__)
    inside, queued = Visitor(gate), Visitor(gate)
    assert inside.offered.waited == 0
    gate.leave(inside.offered)
    assert queued.outcome.waited > 0


def test_offer_returns_the_outcome_and_does_not_wake_for_it():
    gate = Gate(1, max_queue=1)
    inside, queued, refused = (Visitor(gate) for _ in range(3))
    assert isinstance(inside.offered, Slot)
    assert inside.offered is inside.outcome
    assert queued.offered is None
    assert refused.offered is FULL
    assert [v.woken for v in (inside, queued, refused)] == [0, 0, 0]


def test_first_come_first_served_and_each_is_woken_once():
    gate = Gate(1, max_queue=9, max_wait=math.inf)
    slot = gate.enter()
    visitors = [Visitor(gate) for _ in range(5)]
    served = []
    while visitors:
        gate.leave(slot)
        assert [v.woken for v in visitors] == [1] + [0] * (len(visitors) - 1)
        served.append(visitors.pop(0))
        slot = served[-1].outcome
        assert isinstance(slot, Slot)
    gate.leave(slot)
    assert gate.empty


def test_a_slot_knows_since_when_it_is_held_and_how_long_its_holder_waited(clock):
    gate = Gate(1, max_wait=9.0, clock=clock)
    slot = gate.enter()
    assert (slot.since, slot.waited) == (1000.0, 0.0)
    visitor = Visitor(gate)
    clock.now += 3.0
    gate.leave(slot)
    assert (visitor.outcome.since, visitor.outcome.waited) == (1003.0, 3.0)
    gate.leave(visitor.outcome)
    assert gate.enter().waited == 0.0


@pytest.fixture
def between(clock):
    """A gate of which somebody has returned the slot but not yet handed it on."""
    gate = Gate(1, max_wait=0.05, clock=clock)
    slot = gate.enter()
    first = Visitor(gate)
    gate._hand_over = lambda tell=True: None
    gate.leave(slot)
    yield gate, first
    del gate._hand_over
    gate.expire()
    assert isinstance(first.outcome, Slot)


def test_nobody_overtakes_the_queue(between):
    """A slot that is on its way to the head of the queue is not a newcomer's."""
    gate, first = between
    with pytest.raises(Refused):
        gate.enter()
    assert isinstance(first.outcome, Slot)


def test_a_slot_on_its_way_to_one_who_waits_is_neither_free_nor_is_he_queued(between):
    gate, first = between
    assert first.outcome is None
    assert gate.read()[:3] == (0, 1, 1)


def test_leaving_twice_returns_one_slot():
    gate = Gate(2)
    slot = gate.enter()
    gate.leave(slot)
    gate.leave(slot)
    gate.abandon(slot)
    assert gate.empty
    assert len({id(gate.enter()) for _ in range(2)}) == 2


def test_without_a_queue_whoever_finds_no_slot_is_refused():
    gate = Gate(1, max_queue=0)
    slot = gate.enter()
    with pytest.raises(Refused) as caught:
        gate.enter()
    assert caught.value.reason is FULL
    assert str(caught.value) == "queue-full"
    gate.leave(slot)
    gate.leave(gate.enter())
    assert gate.empty


def test_an_endless_queue_takes_everybody():
    gate = Gate(1, max_queue=math.inf, max_wait=math.inf)
    slot = gate.enter()
    visitors = [Visitor(gate) for _ in range(1000)]
    assert gate.read().queued == 1000
    for visitor in visitors:
        gate.leave(slot)
        slot = visitor.outcome
    gate.leave(slot)
    assert gate.empty


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"slots": 0}, "slots must be at least 1, not 0"),
        ({"slots": 1, "max_queue": -1}, "max_queue must be at least 0, not -1"),
        ({"slots": 1, "max_wait": 0}, "max_wait must be more than 0 seconds, not 0"),
        ({"slots": 1, "client_timeout": 0}, "client_timeout must be more than 0 seconds, not 0"),
    ],
    ids=str,
)
def test_wrong_limits_raise_at_construction(arguments, words):
    with pytest.raises(ValueError, match=r"must be") as caught:
        Gate(**arguments)
    assert str(caught.value) == words


def test_its_repr_shows_who_is_inside_and_who_waits():
    gate = Gate(2)
    for _ in range(3):
        Visitor(gate)
    assert repr(gate) == "<Gate 2/2 with 1 waiting>"


# Ages


def test_a_slot_is_not_given_to_one_who_has_waited_too_long(clock):
    gate = Gate(1, max_wait=1.0, clock=clock)
    slot = gate.enter()
    old, young = Visitor(gate), None
    clock.now += 0.5
    young = Visitor(gate)
    clock.now += 0.6
    gate.leave(slot)
    assert old.outcome is AGE
    assert isinstance(young.outcome, Slot)
    assert (old.woken, young.woken) == (1, 1)


def test_one_who_has_waited_exactly_as_long_as_allowed_gets_the_slot(clock):
    gate = Gate(1, max_wait=1.0, clock=clock)
    slot = gate.enter()
    visitor = Visitor(gate)
    clock.now += 1.0
    gate.expire()
    assert visitor.outcome is None
    gate.leave(slot)
    assert isinstance(visitor.outcome, Slot)


def test_expire_refuses_those_who_wait_too_long_though_nobody_leaves(clock):
    gate = Gate(1, max_wait=1.0, clock=clock)
    gate.enter()
    old = [Visitor(gate), Visitor(gate)]
    clock.now += 1.0
    young = Visitor(gate)
    gate.expire()
    assert [v.woken for v in old] == [0, 0]
    clock.now += 0.1
    gate.expire()
    assert [(v.outcome, v.woken) for v in old] == [(AGE, 1), (AGE, 1)]
    assert young.outcome is None


def test_a_newcomer_finds_the_place_of_one_who_is_too_old(clock):
    gate = Gate(1, max_queue=1, max_wait=1.0, clock=clock)
    gate.enter()
    old = Visitor(gate)
    clock.now += 1.1
    young = Visitor(gate)
    assert (old.outcome, old.woken) == (AGE, 1)
    assert young.outcome is None


def test_a_thread_that_waits_too_long_is_refused_though_nobody_leaves():
    gate = Gate(1, max_wait=0.01)
    gate.enter()
    with pytest.raises(Refused) as caught:
        gate.enter()
    assert caught.value.reason is AGE
    assert gate.read().queued == 0


def test_a_longer_wait_than_a_lock_can_take_is_no_limit(start, until):
    for limit in (math.inf, 1e300):
        gate = Gate(1, max_wait=limit)
        slot = gate.enter()
        thread = start(lambda gate=gate: gate.leave(gate.enter()))
        until(lambda gate=gate: waiting(gate))
        gate.leave(slot)
        thread.join(20)
        assert gate.empty


# Withdrawing


def test_one_who_withdraws_is_not_served():
    gate = Gate(1)
    slot = gate.enter()
    first, second = Visitor(gate), Visitor(gate)
    assert gate.withdraw(first.ticket) is True
    gate.leave(slot)
    assert (first.outcome, first.woken) == (None, 0)
    assert isinstance(second.outcome, Slot)


def test_a_queue_that_all_leave_together_again_and_again_is_an_overload(clock):
    """Their clients give up after a second, and not after five."""
    gate = Gate(1, clock=clock)
    for _ in range(5):
        assert not gate.discipline.tight
        slot, waiting = gate.enter(), [Visitor(gate) for _ in range(3)]
        clock.now += 0.95
        for visitor in waiting:
            assert gate.withdraw(visitor.ticket)
        gate.leave(slot)
        clock.now += 0.05
    gate.enter()
    Visitor(gate)
    assert gate.discipline.tight


def test_one_who_has_an_outcome_cannot_withdraw():
    gate = Gate(1, max_queue=0)
    inside, refused = Visitor(gate), Visitor(gate)
    assert gate.withdraw(inside.ticket) is False
    assert gate.withdraw(refused.ticket) is False


def test_one_can_withdraw_once_and_a_stranger_never():
    gate = Gate(1)
    gate.enter()
    visitor = Visitor(gate)
    assert gate.withdraw(visitor.ticket) is True
    assert gate.withdraw(visitor.ticket) is False
    assert gate.withdraw(Ticket(print)) is False


# Draining


def test_draining_refuses_newcomers_and_serves_those_who_are_here():
    gate = Gate(1)
    slot = gate.enter()
    waits = Visitor(gate)
    gate.drain()
    assert gate.draining
    assert Visitor(gate).offered is DRAINING
    with pytest.raises(Refused) as caught:
        gate.enter()
    assert caught.value.reason is DRAINING
    gate.leave(slot)
    assert isinstance(waits.outcome, Slot)
    assert not gate.empty
    gate.leave(waits.outcome)
    assert gate.empty
    with pytest.raises(Refused):
        gate.enter()


def test_drain_takes_no_lock():
    gate = Gate(1)
    with gate._lock:
        gate.drain()
    assert gate.draining


# The figures


def test_the_load_is_what_is_queued_active_and_possible(clock):
    gate = Gate(2, max_wait=9.0, clock=clock)
    assert gate.read() == Load(0, 0, 2)
    first, second = gate.enter(), gate.enter()
    assert gate.read()[:4] == (0, 2, 2, 0.0)
    Visitor(gate)
    clock.now += 2.0
    Visitor(gate)
    assert gate.read() == Load(2, 2, 2, waited=2.0, service=2.0, longest=9.0)
    gate.leave(first)
    assert gate.read() == Load(1, 2, 2, waited=0.0, service=2.0, longest=9.0)
    gate.leave(second)
    assert gate.read()[:3] == (0, 2, 2)


def test_the_service_time_is_a_running_mean(clock):
    gate = Gate(1, clock=clock)
    for seconds in (1.0, 9.0):
        slot = gate.enter()
        clock.now += seconds
        gate.leave(slot)
    assert gate.read().service == 2.0


def test_the_service_time_counts_running_requests_at_their_age(clock):
    gate = Gate(2, max_wait=math.inf, clock=clock)
    slot = gate.enter()
    clock.now += 0.1
    gate.leave(slot)
    gate.enter(), gate.enter(), Visitor(gate)
    clock.now += 4.0
    assert gate.read().service == pytest.approx(4.0)


def test_waited_goes_on_counting_when_those_who_waited_give_up(clock):
    """A queue that only drains by despair has not moved."""
    gate = Gate(1, max_wait=1.0, clock=clock)
    slot = gate.enter()
    Visitor(gate)
    leaver = Visitor(gate)
    for _ in range(8):
        clock.now += 0.5
        gate.expire()
        gate.withdraw(leaver.ticket)
        leaver = Visitor(gate)
    assert gate.read().waited == 4.0
    gate.leave(slot)
    assert isinstance(leaver.outcome, Slot)
    assert gate.read().waited == 0.0


def test_waited_goes_on_counting_when_the_client_has_left(clock):
    gate = Gate(1, max_wait=60.0, clock=clock)
    gate.enter()
    visitor = Visitor(gate)
    clock.now += 3.0
    gate.withdraw(visitor.ticket)
    clock.now += 1.0
    assert gate.read()[:4] == (0, 1, 1, 4.0)


def test_an_idle_gate_has_no_delay_whatever_came_before(clock):
    """The slot came back by a finalizer, and nobody has left in the ordinary way since."""
    gate = Gate(1, max_wait=1.0, clock=clock)
    slot = gate.enter()
    Visitor(gate)
    clock.now += 2.0
    gate.expire()
    gate.abandon(slot)
    clock.now += 60.0
    assert gate.read().waited == 0.0
    assert gate.read().delay == 0.0


def test_a_stall_shows_within_one_patience_though_nothing_finishes(clock):
    """Not even the age limit of the gate, after which those who wait are refused, hides it."""
    gate = Gate(4, max_wait=1.0, clock=clock)
    monitor = Monitor(gate, clock=clock)
    for _ in range(50):  # a fast app
        slot = gate.enter()
        clock.now += 0.01
        gate.leave(slot)
    for _ in range(4):
        gate.enter()
    began = clock.now
    while monitor.check("damped", 2.0).ready:
        Visitor(gate)
        clock.now += 0.1
        gate.expire()
        assert clock.now - began < 2.2
    assert monitor.state is State.BUSY


def test_a_stall_shows_with_few_requests_too(clock):
    gate = Gate(1, max_wait=1.0, clock=clock)
    monitor = Monitor(gate, clock=clock)
    gate.leave(gate.enter())
    gate.enter()
    Visitor(gate)
    assert monitor.check().ready
    clock.now += 2.0
    gate.expire()
    assert waiting(gate) == 0
    assert not monitor.check().ready


def test_a_server_that_stalls_from_its_start_shows_it_within_one_patience(clock):
    """And not sooner: traffic that meets a server before it has finished anything is no stall."""
    gate = Gate(4, max_wait=1.0, clock=clock)
    monitor = Monitor(gate, clock=clock)
    for _ in range(8):
        Visitor(gate)
    assert monitor.state is State.BUSY
    assert monitor.check("damped", 2.0).ready
    clock.now += 2.0
    gate.expire()
    assert not monitor.check("damped", 2.0).ready


def test_a_short_queue_is_busy_and_ready(clock):
    gate = Gate(1, clock=clock)
    monitor = Monitor(gate, clock=clock)
    slot = gate.enter()
    clock.now += 0.1
    gate.leave(slot)
    gate.enter()
    Visitor(gate)
    assert monitor.state is State.BUSY
    assert monitor.check("damped").ready
    assert not monitor.check("exact").ready


# Telling of changes


def heard_by(gate, **more):
    heard = []
    monitor = Monitor(gate, on_busy=heard.append, on_free=heard.append, **more)
    return heard, monitor


def test_listeners_hear_of_the_first_who_waits_and_of_the_first_place_to_spare():
    gate = Gate(2)
    heard, _ = heard_by(gate)
    slots = deque([gate.enter(), gate.enter()])
    assert heard == []
    visitors = [Visitor(gate), Visitor(gate)]
    assert [change.load[:3] for change in heard] == [(1, 2, 2)]
    gate.leave(slots.popleft())
    gate.leave(slots.popleft())
    assert len(heard) == 1
    gate.leave(visitors[0].outcome)
    assert [change.state for change in heard] == [State.BUSY, State.FREE]
    assert heard[1].load[:3] == (0, 1, 2)


def test_listeners_hear_of_free_when_those_who_waited_have_given_up():
    gate = Gate(1)
    heard, _ = heard_by(gate)
    slot = gate.enter()
    gate.withdraw(Visitor(gate).ticket)
    gate.leave(slot)
    assert [change.state for change in heard] == [State.BUSY, State.FREE]


def test_free_is_told_though_a_newcomer_takes_the_spare_slot_before_anybody_looks():
    """It was spare when it was returned and taken when it was looked at, where the state stays as
    it was. So somebody has to look again when the newcomer leaves, and nobody waits then."""
    gate = Gate(1)
    taken = []

    def take():
        if not taken and not gate._waiting and gate._free:
            taken.append(gate.enter())

    gate.subscribe(take)  # runs before the monitor looks
    heard, _ = heard_by(gate)
    slot = gate.enter()
    gate.withdraw(Visitor(gate).ticket)
    gate.leave(slot)
    assert len(taken) == 1
    gate.leave(taken[0])
    assert [change.state for change in heard] == [State.BUSY, State.FREE]


def test_a_watcher_that_raises_is_logged_and_costs_no_slot(caplog):
    gate = Gate(1, max_wait=9.0)
    seen = []

    def raising():
        raise RuntimeError("on strike")

    gate.subscribe(raising)
    gate.subscribe(lambda: seen.append(gate.read()[:3]))
    slot = gate.enter()
    visitor = Visitor(gate)
    gate.leave(slot)
    gate.leave(visitor.outcome)
    assert gate.empty
    assert seen == [(1, 1, 1), (0, 0, 1)]
    assert caplog.text.count("RuntimeError: on strike") == 2


def test_a_wake_that_raises_is_logged_and_the_next_is_woken(caplog, clock):
    gate = Gate(1, max_wait=1.0, clock=clock)
    gate.enter()

    def raising(ticket):
        raise RuntimeError("the loop is closed")

    gate.offer(Ticket(raising))
    visitor = Visitor(gate)
    clock.now += 2.0
    gate.expire()
    assert visitor.woken == 1
    assert "could not wake a waiting request" in caplog.text


def test_an_exit_raised_by_a_listener_leaves_nobody_in_the_queue():
    """Somebody who is no longer there would be given a slot, and it would be gone for ever."""
    gate = Gate(1, max_wait=9.0)

    def leave(change):
        raise SystemExit

    Monitor(gate, on_busy=leave)
    slot = gate.enter()
    with pytest.raises(SystemExit):
        gate.enter()
    gate.leave(slot)
    assert gate.empty


# Exceptions thrown into a thread that waits


class Thrown(BaseException):
    pass


@pytest.fixture
def thrown():
    """Have SIGUSR1 raise in the main thread, as gevent's timeouts do in a greenlet."""

    def throw(number, frame):
        raise Thrown

    before = signal.signal(signal.SIGUSR1, throw)
    yield lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def test_an_exception_thrown_into_the_wait_gives_up_the_place(thrown, start, until):
    gate = Gate(1, max_wait=60.0)
    slot = gate.enter()

    def throw():
        until(lambda: waiting(gate))
        thrown()

    start(throw)
    with pytest.raises(Thrown):
        gate.enter()
    assert waiting(gate) == 0
    gate.leave(slot)
    assert gate.empty


def test_an_exception_thrown_together_with_the_slot_returns_it(monkeypatch):
    gate = Gate(1, max_wait=60.0)
    slot = gate.enter()

    class Woken:
        def acquire(self, timeout=None):
            if timeout is not None:
                gate.leave(slot)
                raise Thrown

        def release(self):
            pass

    monkeypatch.setattr(threading, "Lock", Woken)
    with pytest.raises(Thrown):
        gate.enter()
    assert gate.empty


# Fewer slots for a while


def test_a_surplus_slot_goes_when_its_holder_leaves_and_comes_back_with_its_counts():
    gate = Gate(3)
    slots = [gate.enter() for _ in range(3)]
    gate.resize(1, "they compute")
    assert gate.read()[:3] == (0, 3, 3)
    for slot, left in zip(slots, (2, 1, 1), strict=True):
        gate.leave(slot)
        assert gate.slots == left
    assert gate.read()[:3] == (0, 0, 1)
    assert (gate.empty, gate.has_room, gate.is_idle(), gate.why) == (
        True,
        True,
        True,
        "they compute",
    )
    first, second = Visitor(gate), Visitor(gate)
    assert (gate.read()[:3], gate.has_room) == ((1, 1, 1), False)
    gate.resize(2)
    assert isinstance(second.outcome, Slot)
    gate.resize(9)
    assert (gate.slots, gate.limits.slots, gate.why) == (3, 3, None)
    for visitor in (first, second):
        gate.leave(visitor.outcome)
    assert gate.counts().served == 5
    assert gate.empty


def test_who_offers_gets_no_surplus_slot_before_its_holder_came_by():
    gate = Gate(2)
    slots = [gate.enter() for _ in range(2)]
    gate.resize(1)
    queued = Visitor(gate)
    gate._free.append(slots[0])  # as leave() does, which is interrupted there
    slots[0].place.since = None
    assert Visitor(gate).outcome is None
    assert (queued.outcome, gate.slots) == (None, 1)
    gate.leave(slots[1])
    assert isinstance(queued.outcome, Slot)


def test_the_state_is_told_when_the_slots_change():
    gate = Gate(4)
    heard, _ = heard_by(gate)
    slots = [gate.enter() for _ in range(2)]
    visitors = [Visitor(gate) for _ in range(2)]
    gate.resize(1)
    waits = Visitor(gate)
    assert [change.state for change in heard] == [State.BUSY]
    gate.resize(4)
    assert waiting(gate) == 1
    for slot in (*slots, *(visitor.outcome for visitor in visitors)):
        gate.leave(slot)
    gate.leave(waits.outcome)
    assert [change.state for change in heard] == [State.BUSY, State.FREE]
    assert not gate.crowded


@pytest.mark.parametrize("way", ["abandon", "forfeit", "lost"])
def test_a_surplus_slot_that_comes_back_another_way_goes_too(way):
    gate = Gate(2)
    kept, other = gate.take(), gate.take()
    gate.resize(1)
    if way == "lost":
        del other
        gc.collect()
    else:
        getattr(gate, way)(other)
    waits = Visitor(gate)
    assert (gate.slots, waits.outcome) == (1, None)
    gate.leave(kept)
    gate.leave(waits.outcome)
    assert (gate.read()[:3], gate.empty) == ((0, 0, 1), True)
    gate.resize(2)
    assert (gate.read()[:3], gate.empty) == ((0, 0, 2), True)


def test_a_child_has_all_slots():
    gate = Gate(3)
    slot = gate.enter()
    gate.resize(1, "they compute")
    child = os.fork()
    if child == 0:
        try:
            assert (gate.read()[:3], gate.why) == ((0, 0, 3), None)
            gate.leave(slot)
            assert gate.read()[:3] == (0, 0, 3)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    gate.leave(slot)
    assert gate.read()[:3] == (0, 0, 1)


def test_no_slot_is_lost_and_never_too_many_are_inside_while_they_are_resized(start, until):
    gate = Gate(4, max_queue=math.inf, max_wait=math.inf)
    counter, over = Counter(), threading.Event()

    def visit():
        for number in range(300):
            slot = gate.enter()
            with counter:
                os.sched_yield()
            leave = gate.abandon if number % 7 == 0 else gate.leave
            leave(slot)

    def resize():
        dice = random.Random(2013)
        while not over.is_set():
            gate.resize(dice.randint(1, 4))
            load = gate.read()
            assert 0 <= load.active <= load.capacity <= 4
            os.sched_yield()

    resizer = start(resize)
    for thread in [start(visit) for _ in range(8)]:
        thread.join(60)
    over.set()
    resizer.join(60)
    assert counter.all == 8 * 300 == gate.counts().served
    assert counter.most <= 4
    gate.resize(4)
    assert (gate.read()[:3], gate.empty) == ((0, 0, 4), True)


# Against a model


class GateMachine(RuleBasedStateMachine):
    """Gate beside a list and a counter."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.slots, self.max_queue, self.max_wait = 3, 3, 10.0
        self.wanted = 3
        waits = {"client_timeout": 1e9}  # so that no queue stands for long enough to be an overload
        self.gate = Gate(self.slots, self.max_queue, self.max_wait, **waits, clock=lambda: self.now)
        self.heard = []
        self.monitor = Monitor(
            self.gate,
            on_busy=self.heard.append,
            on_free=self.heard.append,
            clock=lambda: self.now,
        )
        self.visitors = []
        self.queue = []  # the model: visitors that wait, each with its arrival
        self.inside = []
        self.draining = False

    def model_hand_out(self):
        while self.queue:
            visitor, arrived = self.queue[0]
            if self.now - arrived > self.max_wait:
                visitor.expected = AGE
            elif len(self.inside) < self.wanted:
                visitor.expected = Slot
                self.inside.append(visitor)
            else:
                return
            visitor.wakes = 1
            del self.queue[0]

    @rule(count=st.integers(1, 5))
    def come(self, count):
        for _ in range(count):
            self.offer()

    def offer(self):
        visitor = Visitor(self.gate)
        visitor.expected, visitor.wakes = None, 0
        self.visitors.append(visitor)
        if self.draining:
            visitor.expected = DRAINING
            return
        self.queue.append((visitor, self.now))
        self.model_hand_out()
        visitor.wakes = 0
        if len(self.queue) > self.max_queue:
            self.queue.pop()
            visitor.expected = FULL

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), way=st.sampled_from(["leave", "abandon"]))
    def leave(self, data, way):
        visitor = self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1)))
        getattr(self.gate, way)(visitor.outcome)
        visitor.expected = None
        self.visitors.remove(visitor)
        self.model_hand_out()

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def withdraw(self, data):
        visitor, _ = self.queue.pop(data.draw(st.integers(0, len(self.queue) - 1)))
        assert self.gate.withdraw(visitor.ticket) is True
        self.model_hand_out_if_free()

    def model_hand_out_if_free(self):
        assert not self.queue or len(self.inside) >= self.wanted

    @rule(wanted=st.integers(-1, 4))
    def resize(self, wanted):
        self.gate.resize(wanted, "for a test")
        self.wanted = min(3, max(1, wanted))
        if len(self.inside) < self.wanted:
            self.model_hand_out()

    @precondition(lambda self: self.visitors)
    @rule(data=st.data())
    def withdraw_too_late(self, data):
        visitor = data.draw(st.sampled_from(self.visitors))
        if visitor.outcome is not None:
            assert self.gate.withdraw(visitor.ticket) is False

    @rule()
    def expire(self):
        self.gate.expire()
        self.model_hand_out()

    @rule(seconds=st.sampled_from([0.5, 5.0, 10.0, 10.5]))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def drain(self):
        self.gate.drain()
        self.draining = True

    @invariant()
    def each_has_the_outcome_of_the_model(self):
        for visitor in self.visitors:
            kind = Slot if isinstance(visitor.outcome, Slot) else visitor.outcome
            assert kind == visitor.expected
            assert visitor.woken == visitor.wakes

    @invariant()
    def the_figures_are_those_of_the_model(self):
        load = self.gate.read()
        slots = max(self.wanted, len(self.inside))
        assert load[:3] == (len(self.queue), len(self.inside), slots)
        assert (self.gate.slots, self.gate.wanted) == (slots, self.wanted)
        assert (self.gate.why is None) == (self.wanted == self.slots)
        assert self.gate.empty == (not self.queue and not self.inside)
        if self.queue:
            assert load.waited >= self.now - self.queue[0][1]

    @invariant()
    def the_state_is_told_in_turns(self):
        states = [change.state for change in self.heard]
        assert states == [State.BUSY, State.FREE] * (len(states) // 2) + [State.BUSY] * (
            len(states) % 2
        )
        if self.queue:
            assert states[-1] is State.BUSY


GateMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
test_the_gate_does_what_the_model_does = pytest.mark.slow(GateMachine.TestCase)


# Threads


class Counter:
    """How many are inside, and the most that ever were."""

    def __init__(self):
        self._lock = threading.Lock()
        self.now = self.most = self.all = 0

    def __enter__(self):
        with self._lock:
            self.now += 1
            self.all += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *raised):
        with self._lock:
            self.now -= 1


def test_never_more_inside_than_slots_and_nobody_lost(start, hurry, until):
    gate = Gate(3, max_queue=math.inf, max_wait=math.inf)
    heard, _ = heard_by(gate)
    counter = Counter()

    def visit():
        for _ in range(400):
            slot = gate.enter()
            with counter:
                os.sched_yield()  # lets another thread have its turn, with this one inside
            gate.leave(slot)

    slots = [gate.enter() for _ in range(3)]
    threads = [start(visit) for _ in range(8)]
    until(lambda: waiting(gate) == 8)
    for slot in slots:
        gate.leave(slot)
    for thread in threads:
        thread.join(60)
    assert counter.all == 8 * 400
    assert counter.most <= 3
    assert gate.empty
    states = [change.state for change in heard]
    assert states == [State.BUSY, State.FREE] * (len(states) // 2), "left in a state that is over"
    assert states, "nobody had to wait, so nothing was tried"


def test_with_refusals_and_exceptions_the_gate_is_empty_afterwards(start, hurry, until):
    gate = Gate(2, max_queue=2, max_wait=0.0005)
    heard, _ = heard_by(gate)
    counter, outcomes, opened = Counter(), deque(), threading.Event()

    def attempt(number):
        try:
            slot = gate.enter()
        except Refused as refused:
            return refused.reason
        try:
            with counter:
                os.sched_yield()
                if number % 3 == 0:
                    raise ValueError
        except ValueError:
            return "raised"
        finally:
            gate.leave(slot) if number % 2 else gate.abandon(slot)
        return "served"

    def visit():
        while not opened.is_set():
            outcomes.append(attempt(0))
        outcomes.extend([attempt(number) for number in range(400)])

    slots = [gate.enter() for _ in range(2)]
    threads = [start(visit) for _ in range(8)]
    until(lambda: {FULL, AGE} <= set(outcomes.copy()))
    opened.set()
    for slot in slots:
        gate.leave(slot)
    for thread in threads:
        thread.join(60)
    assert counter.most <= 2
    assert gate.empty
    gate.leave(gate.enter())
    states = [change.state for change in heard]
    assert states == [State.BUSY, State.FREE] * (len(states) // 2)
    assert set(outcomes) - {"raised"} == {FULL, AGE, "served"}


def test_threads_and_tickets_share_a_gate(start, hurry, until):
    gate = Gate(2, max_queue=math.inf, max_wait=math.inf)
    served, finished = deque(), threading.Event()

    def threaded():
        for _ in range(300):
            gate.leave(gate.enter())

    def ticketed():
        choice = random.Random(1)
        for _ in range(300):
            ticket = Ticket(lambda ticket: served.append(ticket.outcome))
            outcome = gate.offer(ticket)
            if outcome is not None:
                served.append(outcome)
            elif choice.random() < 0.3 and gate.withdraw(ticket):
                served.append(None)

    def leaving():
        while not finished.is_set() or served:
            try:
                slot = served.popleft()
            except IndexError:
                gate.expire()
                continue
            counted.append(slot)
            if slot is not None:
                gate.leave(slot)

    counted = []
    leaver = start(leaving)
    workers = [start(work) for work in (threaded, ticketed, threaded, ticketed)]
    for thread in workers:
        thread.join(60)
    until(lambda: gate.empty and not served)
    finished.set()
    leaver.join(20)
    assert len(counted) == 600


def test_threads_are_served_in_the_order_in_which_they_came(start, until):
    gate = Gate(1, max_queue=99, max_wait=math.inf)
    slot, order = gate.enter(), []

    def visit(number):
        mine = gate.enter()
        order.append(number)
        gate.leave(mine)

    threads = []
    for number in range(20):
        threads.append(start(visit, number))
        until(lambda number=number: waiting(gate) == number + 1)
    gate.leave(slot)
    for thread in threads:
        thread.join(20)
    assert order == list(range(20))


def test_one_who_leaves_wakes_one(start, until, monkeypatch):
    """And not a herd of which all but one go back to sleep."""
    woken = deque()
    original = Ticket.__init__

    def counting(self, wake, *ago):
        original(self, lambda ticket: (woken.append(ticket), wake(ticket)), *ago)

    monkeypatch.setattr(Ticket, "__init__", counting)
    gate = Gate(1, max_queue=99, max_wait=math.inf)
    slot, inside, go_on = gate.enter(), threading.Semaphore(0), threading.Semaphore(0)

    def visit():
        mine = gate.enter()
        inside.release()
        go_on.acquire()
        gate.leave(mine)

    for number in range(8):
        start(visit)
        until(lambda number=number: waiting(gate) == number + 1)
    gate.leave(slot)
    for number in range(8):
        assert inside.acquire(timeout=20)
        assert len(woken) == number + 1
        go_on.release()
    until(lambda: gate.empty)


def test_a_reader_in_the_way_costs_nobody_his_slot(start, hurry, until):
    """Who returns a slot while another thread reads must not leave the waiter asleep."""
    gate = Gate(1, max_queue=math.inf, max_wait=60.0)
    stop = threading.Event()

    def read():
        while not stop.is_set():
            gate.read()
            gate.expire()

    readers = [start(read) for _ in range(2)]
    began = time.monotonic()

    def visit():
        for number in range(300):
            slot = gate.enter()
            gate.leave(slot) if number % 2 else gate.abandon(slot)

    for thread in [start(visit) for _ in range(3)]:
        thread.join(60)
    stop.set()
    for thread in readers:
        thread.join(20)
    assert time.monotonic() - began < 50, "somebody slept until he was too old"
    assert gate.empty


# Finalizers


class Holder:
    """Something with a slot, in a reference cycle, that nobody closes."""

    def __init__(self, gate, way):
        self.me = self
        self.give_back = way
        self.slot = gate.enter()

    def __del__(self):
        self.give_back(self.slot)


@pytest.mark.parametrize("way", ["leave", "abandon"])
def test_a_slot_in_a_cycle_comes_back_when_that_is_collected(way):
    gate = Gate(1)
    Holder(gate, getattr(gate, way))
    assert not gate.empty
    gc.collect()
    assert gate.empty


@pytest.mark.slow
@pytest.mark.parametrize("way", ["leave", "abandon"])
@pytest.mark.parametrize(
    "step",
    [
        (Queue, "join"),
        (Queue, "take_out"),
        (Queue, "hand_out"),
        (Gate, "_serve"),
        (Gate, "_figures"),
    ],
    ids=lambda step: step[1],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_finalizer_may_return_a_slot_in_any_step_under_the_lock(monkeypatch, way, step, when):
    """It runs in the thread that it interrupts, so waiting for the lock would be for ever."""
    gate = Gate(2, max_queue=9, max_wait=60.0)
    monitor = Monitor(gate)
    slot = gate.enter()
    Holder(gate, getattr(gate, way))
    first, second = Visitor(gate), Visitor(gate)
    original = getattr(*step)

    def interrupted(self, *args):
        if when == "before":
            gc.collect()
        result = original(self, *args)
        if when == "after":
            gc.collect()
        return result

    monkeypatch.setattr(*step, interrupted)
    assert waiting(gate) == 2 or isinstance(first.outcome, Slot)
    gate.expire()
    third = Visitor(gate)
    gate.withdraw(third.ticket)
    assert monitor.check().load.capacity == 2
    gate.leave(slot)
    assert isinstance(first.outcome, Slot)
    assert isinstance(second.outcome, Slot), "the slot that the finalizer returned lies idle"
    assert (first.woken, second.woken) == (1, 1)
    gate.leave(first.outcome)
    gate.leave(second.outcome)
    assert gate.empty


def test_a_finalizer_in_the_middle_of_an_offer_leaves_the_slot_to_it(monkeypatch):
    """Were it to serve the queue itself, the one who offers would be served twice."""
    gate = Gate(1, max_wait=60.0)  # to collect takes long in a large process
    original = Queue.hand_out

    def interrupted(self, woken):
        gc.collect()
        return original(self, woken)

    monkeypatch.setattr(Queue, "hand_out", interrupted)
    Holder(gate, gate.leave)
    visitor = Visitor(gate)
    assert isinstance(visitor.offered, Slot)
    assert visitor.woken == 0


def test_a_slot_that_comes_back_in_the_middle_of_a_look_is_seen_by_it():
    """The generator of an outer middleware may close its body in a finalizer, anywhere."""
    gate, heard, returned = Gate(1, max_wait=60.0), [], []

    class Adapter:
        def read(self):
            load = gate.read()
            while returned:
                gate.leave(returned.pop())
            return load

        def subscribe(self, changed):
            gate.subscribe(changed)

    monitor = Monitor(Adapter(), on_busy=heard.append, on_free=heard.append)
    slot = gate.enter()
    gate.withdraw(Visitor(gate).ticket)
    returned.append(slot)
    assert monitor.check().word == "free"
    assert [change.state for change in heard] == [State.BUSY, State.FREE]
    assert gate.empty


def test_a_finalizer_wakes_those_who_wait_and_tells_nobody():
    """A listener may hold, in the thread that is interrupted, what it would wait for."""
    gate = Gate(1)
    told = []
    gate.subscribe(lambda: told.append(gate.read()[:3]))
    slot = gate.enter()
    first, second = Visitor(gate), Visitor(gate)
    del told[:]
    gate.abandon(slot)
    assert isinstance(first.outcome, Slot)
    gate.abandon(first.outcome)
    gate.abandon(second.outcome)
    assert told == []
    gate.leave(gate.enter())
    assert told == [(0, 0, 1)]


# Forks


def test_in_a_child_the_gate_is_empty_and_its_locks_are_fresh(python):
    assert (
        python("""
        import os, threading, time
        from wsgi_busyguard import Gate, Monitor
        from wsgi_busyguard.gate import Ticket

        gate = Gate(2, max_queue=9, max_wait=60.0)
        monitor = Monitor(gate)
        mine, other = gate.enter(), gate.enter()
        waiter = threading.Thread(target=lambda: gate.leave(gate.enter()))
        waiter.start()
        while gate.read().queued < 1:
            time.sleep(0.001)
        assert monitor.check().word == "busy"
        held, forked = threading.Event(), threading.Event()

        def hold():
            with gate._lock:
                held.set()
                forked.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        child = os.fork()
        if not child:
            assert gate.empty
            gate.leave(mine)  # of the parent: nothing happens
            gate.abandon(other)
            assert gate.empty
            slots = [gate.enter(), gate.enter()]
            assert gate.offer(Ticket(lambda ticket: None)) is None
            assert monitor.check("exact").word == "busy"
            for slot in slots:
                gate.leave(slot)
            assert monitor.check("exact").word == "free"  # the ticket has one
            os._exit(0)
        _, status = os.waitpid(child, 0)
        forked.set()
        holder.join()
        assert gate.read()[:3] == (1, 2, 2), gate.read()
        gate.leave(mine)
        waiter.join()
        gate.leave(other)
        print(status, gate.empty)
        """)
        == "0 True\n"
    )
