from __future__ import annotations

import gc
import itertools
import math
import os
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard.counters import (
    BOUNDS,
    BUCKETS,
    CHECKS,
    LENGTH,
    NAMED,
    Counters,
    asked,
    counts_of,
    no_checks,
    of,
    together,
)
from wsgi_busyguard.gate import Gate, Refused, Slot, Ticket
from wsgi_busyguard.gate.slots import SlotPlace
from wsgi_busyguard.policy import Reason

TIMES = st.tuples(*[st.integers(0, 9)] * BUCKETS)
COUNTS = st.builds(
    Counters,
    admitted=st.integers(0, 99),
    served=st.integers(0, 99),
    refused=st.tuples(*[st.integers(0, 99)] * 3),
    dropped=st.integers(0, 99),
    service=TIMES,
    service_ns=st.integers(0, 10**12),
    waits=TIMES,
    waits_ns=st.integers(0, 10**12),
)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@given(COUNTS)
def test_counts_come_back_from_a_list_as_they_were(counts):
    assert len(counts.flat()) == LENGTH
    assert of(counts.flat()) == counts


def test_the_first_of_the_list_are_numbers_of_requests():
    counts = Counters(1, 2, (3, 4, 5), 6)
    assert counts.flat()[:NAMED] == [1, 2, 3, 4, 5, 6]


def test_counts_add_up():
    one = Counters(3, 2, (1, 0, 0), 1, service=(1,) * BUCKETS, service_ns=5)
    assert together([one, one]) == Counters(6, 4, (2, 0, 0), 2, (2,) * BUCKETS, 10)


def test_our_own_limits_are_bounds_of_buckets():
    assert {1.0, 2.0, 5.0, 30.0} <= set(BOUNDS)
    assert list(BOUNDS) == sorted(set(BOUNDS))


def test_checks_have_a_place_for_each_answer_of_each_policy():
    counted = no_checks()
    counted["damped"][2] += 1
    assert [key for key, n in zip(CHECKS, asked(counted), strict=True) if n] == [
        ("damped", "busy", False)
    ]


def test_an_adapter_that_does_not_count_has_no_counts():
    assert counts_of(object()) is None


# what the gate counts


def test_who_comes_in_is_admitted_and_who_leaves_is_served(clock):
    gate = Gate(2, clock=clock)
    slot = gate.enter()
    assert gate.counts()[:2] == (1, 0)
    clock.now += 0.2
    gate.leave(slot)
    counts = gate.counts()
    assert counts[:2] == (1, 1)
    assert counts.service[BOUNDS.index(0.25)] == sum(counts.service) == 1
    assert counts.service_ns == pytest.approx(0.2e9, rel=1e-6)
    assert counts.waits == (1, *[0] * (BUCKETS - 1))


@pytest.mark.parametrize("took", [0.0, 0.005, 0.0051, 0.25, 0.2501, 30.0, 30.1, 1e6])
def test_a_time_is_in_the_first_bucket_whose_bound_it_does_not_exceed(clock, took):
    clock.now = 0.0
    gate = Gate(1, clock=clock)
    slot = gate.enter()
    clock.now = took
    gate.leave(slot)
    [bucket] = [n for n, count in enumerate(gate.counts().service) if count]
    assert took <= [*BOUNDS, math.inf][bucket]
    assert bucket == 0 or took > BOUNDS[bucket - 1]


def test_who_waited_is_counted_by_how_long(clock):
    gate = Gate(1, 1, 10, clock=clock)
    slot, ticket = gate.enter(), Ticket(lambda _: None)
    gate.offer(ticket)
    clock.now += 0.75
    gate.leave(slot)
    gate.leave(ticket.outcome)
    counts = gate.counts()
    assert counts.waits[0] == 1
    assert counts.waits[BOUNDS.index(1.0)] == 1
    assert counts.waits_ns == pytest.approx(0.75e9)


def test_time_in_front_of_the_gate_is_waiting(clock):
    gate = Gate(1, clock=clock)
    gate.leave(gate.enter(0.4))
    assert gate.counts().waits[BOUNDS.index(0.5)] == 1
    assert gate.counts().waits[0] == 0


def test_a_look_while_one_that_has_waited_elsewhere_comes_in_counts_it_once(monkeypatch):
    gate = Gate(1)
    count_wait = SlotPlace.count_wait

    def beside_a_look(place, waited):
        gate.counts()
        count_wait(place, waited)
        gate.counts()

    monkeypatch.setattr(SlotPlace, "count_wait", beside_a_look)
    for _ in range(3):
        gate.leave(gate.enter(0.3))
    counts = gate.counts()
    assert counts.admitted == counts.served == 3
    assert (sum(counts.waits), counts.waits[BOUNDS.index(0.5)]) == (3, 3)


def test_every_reason_is_counted_by_itself(clock):
    gate = Gate(1, 1, 1.0, clock=clock)
    gate.enter()
    waits = Ticket(lambda _: None)
    assert gate.offer(waits) is None
    assert gate.offer(Ticket(lambda _: None)) is Reason.QUEUE_FULL
    assert gate.offer(Ticket(lambda _: None, ago=1.5)) is Reason.QUEUE_AGE
    clock.now += 1.5
    gate.expire()
    assert waits.outcome is Reason.QUEUE_AGE
    gate.drain()
    for _ in range(3):
        with pytest.raises(Refused):
            gate.enter()
    assert dict(zip(Reason, gate.counts().refused, strict=True)) == {
        Reason.QUEUE_FULL: 1,
        Reason.QUEUE_AGE: 2,
        Reason.DRAINING: 3,
    }
    assert gate.counts().dropped == 0


def test_a_thread_that_has_waited_too_long_is_refused_once():
    gate = Gate(1, 1, 0.05)
    gate.enter()
    with pytest.raises(Refused):
        gate.enter()
    counts = gate.counts()
    assert (counts.admitted, sum(counts.refused), counts.dropped) == (1, 1, 0)


def test_who_leaves_the_queue_is_dropped_and_not_refused(clock):
    gate = Gate(1, 2, clock=clock)
    gate.enter()
    ticket = Ticket(lambda _: None)
    gate.offer(ticket)
    assert gate.withdraw(ticket)
    assert not gate.withdraw(ticket)
    counts = gate.counts()
    assert (counts.dropped, sum(counts.refused), counts.admitted) == (1, 0, 1)


@pytest.mark.parametrize("reason", [None, Reason.QUEUE_FULL])
def test_who_got_a_slot_and_has_not_run_is_not_served(clock, reason):
    gate = Gate(1, clock=clock)
    slot = gate.enter()
    gate.forfeit(slot, reason)
    counts = gate.counts()
    assert (counts.admitted, counts.served) == (1, 0)
    assert (counts.dropped, sum(counts.refused)) == ((1, 0) if reason is None else (0, 1))
    assert gate.empty
    gate.forfeit(slot)
    assert gate.counts() == counts


def test_a_slot_that_was_never_left_counts_when_it_is_collected():
    gate = Gate(1)
    gate.abandon(gate.enter())
    assert gate.counts()[:2] == (1, 1)


def test_a_child_begins_to_count_anew():
    gate = Gate(2)
    gate.leave(gate.enter())
    held = gate.enter()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        gate.leave(held)
        os.write(write, bytes(gate.counts()[:2]))
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 9) == bytes([0, 0])
    assert gate.counts()[:2] == (2, 1)


def test_counts_are_exact_whatever_threads_do_and_never_go_down():
    gate, each, crowd = Gate(3, 2, 0.005), 400, 8
    refused = [0] * crowd
    served = [0] * crowd
    over = threading.Event()
    looks = []

    def come(number):
        luck = random.Random(number)
        for _ in range(each):
            try:
                slot = gate.enter(luck.choice([0.0, 0.0, 0.001]))
            except Refused:
                refused[number] += 1
            else:
                served[number] += 1
                gate.abandon(slot) if luck.random() < 0.1 else gate.leave(slot)

    def look():
        while not over.is_set():
            looks.append(gate.counts().flat())

    watcher = threading.Thread(target=look)
    watcher.start()
    threads = [threading.Thread(target=come, args=(n,)) for n in range(crowd)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    over.set()
    watcher.join(60)
    counts = gate.counts()
    assert counts.admitted == counts.served == sum(served)
    assert sum(counts.refused) == sum(refused)
    assert counts.admitted + sum(counts.refused) == each * crowd
    assert sum(counts.service) == sum(counts.waits) == counts.served
    assert counts.dropped == 0
    for before, after in itertools.pairwise(looks):
        assert all(map(int.__le__, before, after))


def test_a_finalizer_that_leaves_in_the_middle_of_anything_is_counted_once():
    gate = Gate(2, 1, 0.001)

    class Forgotten:
        def __init__(self, slot):
            self.slot, self.me = slot, self

        def __del__(self):
            gate.abandon(self.slot)

    before = gc.get_threshold()
    gc.set_threshold(3)
    came = 0
    try:
        for _ in range(300):
            try:
                slot = gate.enter()
            except Refused:
                continue
            Forgotten(slot)
            came += 1
    finally:
        gc.set_threshold(*before)
    gc.collect()
    counts = gate.counts()
    assert counts.admitted == counts.served == came
    assert came + sum(counts.refused) == 300


def test_a_slot_is_small():
    """A gevent worker has a thousand."""
    assert Slot.__slots__
    slot = Gate(1).enter()
    assert not hasattr(slot, "__dict__")
    assert not hasattr(slot.place, "__dict__")


def test_who_is_refused_for_a_reason_of_the_callers_counts_as_well():
    gate = Gate(1)
    gate.lose(Reason.QUEUE_AGE)
    gate.lose()
    assert (gate.counts().refused, gate.counts().dropped) == ((0, 1, 0), 1)


def test_who_is_just_leaving_stays_admitted():
    """Between two lines of leave() he is neither inside nor served."""
    gate = Gate(2)
    slot = gate.enter()
    before = gate.counts()
    slot.place.since = None
    assert gate.counts() == before
