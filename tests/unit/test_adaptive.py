"""How many slots are worth having: what is decided by which signals, and what never happens."""

from __future__ import annotations

import gc
import itertools
import math
import os
import re
import sys
import threading
import time
from contextlib import suppress

import pytest
from support.client import eventually

from wsgi_busyguard import Gate
from wsgi_busyguard._support.machine import Machine, main_thread
from wsgi_busyguard._support.switch_interval import SHORT_SECONDS
from wsgi_busyguard.adapters.executor import CountingExecutor, QueueFull
from wsgi_busyguard.adaptive import (
    ASKED,
    ASKED_MOST,
    BEAT_SECONDS,
    LATE_ANYWAY,
    QUIET_SECONDS,
    Adaptive,
    Direction,
    Signals,
    Steps,
    adapted,
    direction,
)
from wsgi_busyguard.gate import Slot, Ticket

MANY_FEWER, FEWER, KEEP, MORE, MANY_MORE = Direction
TWO_CORES, ONE_CORE, HALF = Machine(True, 2), Machine(True, 1), Machine(True, 0.5)
FREE = Machine(False, 2)


# What is decided, by what was measured of real apps (used, loop, lag, taken, waits)


@pytest.mark.parametrize(
    ("machine", "slots", "signals", "way"),
    [
        pytest.param(TWO_CORES, 10, (1.0, 0.02, 56, 1, True), MANY_FEWER, id="ten compute"),
        pytest.param(TWO_CORES, 2, (1.0, 0.02, 6, 1, True), FEWER, id="two compute"),
        pytest.param(
            TWO_CORES, 10, (0.3, 0.0, 30, 1, True), FEWER, id="ten on a very busy machine"
        ),
        pytest.param(TWO_CORES, 10, (0.75, 0.2, 3.0, 0.7, True), FEWER, id="ten on a busy machine"),
        pytest.param(TWO_CORES, 1, (1.0, 0.02, 1.04, 1, True), KEEP, id="one computes"),
        pytest.param(TWO_CORES, 1, (0.43, 0.0, 2.2, 1, True), KEEP, id="one on a busy machine"),
        pytest.param(TWO_CORES, 1, (0.7, 0.1, 1.0, 0.6, True), KEEP, id="one, and many calls"),
        pytest.param(TWO_CORES, 10, (0.49, 0.0, 15, 0.5, True), KEEP, id="ten at a time, or none"),
        pytest.param(TWO_CORES, 2, (0.2, 0.0, 9, 0.2, True), MORE, id="two at a time, or none"),
        pytest.param(TWO_CORES, 10, (0.01, 0.0, 0.03, 0, True), MANY_MORE, id="ten sleep"),
        pytest.param(TWO_CORES, 10, (0.3, 0.28, 0.6, 0.3, True), MANY_MORE, id="many refusals"),
        pytest.param(TWO_CORES, 10, (1.0, 0.8, 3.0, 1, True), KEEP, id="the loop uses it up"),
        pytest.param(TWO_CORES, 10, (0.01, 0.0, 0.03, 0, False), KEEP, id="nobody waits"),
        pytest.param(TWO_CORES, 4, (0.36, 0.0, 0.42, 0.3, True), MANY_MORE, id="5 + 50 ms, of 4"),
        pytest.param(TWO_CORES, 8, (0.73, 0.0, 0.69, 0.6, True), MORE, id="5 + 50 ms, of 8"),
        pytest.param(TWO_CORES, 11, (0.97, 0.0, 1.2, 0.8, True), KEEP, id="5 + 50 ms, of 11"),
        pytest.param(TWO_CORES, 16, (1.0, 0.0, 2.5, 0.8, True), FEWER, id="5 + 50 ms, of 16"),
        pytest.param(TWO_CORES, 16, (0.9, 0.3, 1.1, 0.5, True), KEEP, id="5 + 50 ms, in time"),
        pytest.param(TWO_CORES, 16, (0.9, 0.3, 1.1, 0.5, True, True), FEWER, id="it, too late"),
        pytest.param(TWO_CORES, 16, (0.9, 0.6, 1.1, 0.5, True, True), KEEP, id="late by itself"),
        pytest.param(TWO_CORES, 10, (0.01, 0.0, 0.0, 0, True, True), MANY_MORE, id="it has slept"),
        pytest.param(TWO_CORES, 1, (0.98, 0.0, 0.03, 0, True), MORE, id="C without the lock"),
        pytest.param(TWO_CORES, 2, (1.98, 0.0, 0.01, 0, True), KEEP, id="two of it on two cores"),
        pytest.param(TWO_CORES, 4, (1.98, 0.0, 0.03, 0, True), FEWER, id="four of it on two cores"),
        pytest.param(FREE, 1, (0.98, 0.0, 0.04, 0, True), MANY_MORE, id="a build without the lock"),
        pytest.param(FREE, 10, (1.98, 0.0, 9.0, 1, True), FEWER, id="it, and no core left"),
        pytest.param(FREE, 10, (1.0, 0.0, 9.0, 1, False), KEEP, id="it, on a busy machine"),
        pytest.param(ONE_CORE, 4, (1.0, 0.0, 0.2, 0, True), FEWER, id="C code on one core"),
        pytest.param(HALF, 4, (0.5, 0.0, 30, 1, True), MANY_FEWER, id="half a core"),
        pytest.param(HALF, 1, (0.1, 0.0, 0.1, 0, True), MANY_MORE, id="half a core, asleep"),
    ],
)
def test_the_direction_is_that_of_the_app(machine, slots, signals, way):
    assert direction(Signals(*signals), machine, slots) is way


def went(steps, slots, ways, least=1, most=32):
    """Return the slots after each of these looks."""
    seen = []
    for way in ways:
        slots = steps.next(slots, least, most, way)
        seen.append(slots)
    return seen


def test_from_the_top_to_one_slot_in_five_looks():
    assert went(Steps(), 32, [FEWER] * 6) == [16, 8, 4, 2, 1, 1]


def test_very_many_that_compute_have_one_slot_in_two_looks():
    assert went(Steps(), 10, [MANY_FEWER] * 3) == [2, 1, 1]
    assert went(Steps(), 32, [MANY_FEWER, FEWER, FEWER]) == [8, 4, 2]


def test_a_turn_makes_the_steps_shorter():
    assert went(Steps(), 32, [FEWER, FEWER, MORE, MORE, FEWER]) == [16, 8, 8, 12, 10]


def test_idle_slots_that_somebody_waits_for_are_there_in_five_looks():
    assert went(Steps(), 1, [MANY_MORE] * 6) == [2, 4, 8, 16, 32, 32]


def test_one_more_needs_two_looks_in_a_row():
    assert went(Steps(), 4, [MORE, KEEP, MORE, KEEP, MORE, MORE]) == [4, 4, 4, 4, 4, 6]


def test_a_slot_that_is_taken_back_is_tried_less_and_less_often():
    steps, slots, tries = Steps(), 1, []
    for look in range(400):
        before, slots = slots, steps.next(slots, 1, 32, FEWER if slots > 1 else MORE)
        if slots > before:
            tries.append(look)
    apart = [after - before for before, after in itertools.pairwise(tries)]
    assert apart == sorted(apart)
    assert apart[0] == 2 * ASKED + 1
    assert apart[-1] == ASKED_MOST + 1


def test_there_are_never_fewer_than_the_least_nor_more_than_the_most():
    assert went(Steps(), 8, [FEWER] * 3, least=3) == [4, 3, 3]
    assert went(Steps(), 1, [KEEP], least=3) == [3]
    assert went(Steps(), 8, [MANY_MORE], most=10) == [10]


# What samples, with a clock of its own


class World:
    """A gate with more requests than slots, and a machine that does what it is told."""

    def __init__(self):
        self.now = self.used = self.loop = 0.0
        self.gate = Gate(8, math.inf, math.inf, clock=lambda: self.now)
        self.adaptive = Adaptive(
            self.gate, TWO_CORES, lambda: self.now, lambda: self.used, lambda: self.loop
        )
        self.visits = []

    def go_on(self, requests=20):
        """Have those inside leave, and others come, so that as many are here."""
        inside = [visit for visit in self.visits if isinstance(visit.outcome, Slot)]
        self.visits = [visit for visit in self.visits if visit not in inside]
        for visit in inside:
            self.gate.leave(visit.outcome)
        while len(self.visits) < requests:
            self.visits.append(Ticket(lambda ticket: None))
            self.gate.offer(self.visits[-1])

    def beat(self, used, lag, loop=0.0):
        took = BEAT_SECONDS + LATE_ANYWAY + lag * sys.getswitchinterval()
        self.now += took
        self.used += used * took
        self.loop += loop * took
        self.adaptive.beat()

    def run(self, seconds, used, lag, requests=20):
        """Let some time go by, in which so much of the interpreter is used, and it is so late."""
        until = self.now + seconds
        while self.now < until:
            self.go_on(requests)
            self.beat(used, lag)


COMPUTES, WAITS = {"used": 1.0, "lag": 11.0}, {"used": 0.01, "lag": 0.03}


@pytest.fixture
def world():
    return World()


def test_ten_that_compute_have_one_slot_within_two_seconds_and_it_is_said_why(world):
    world.run(2, **COMPUTES)
    assert (world.gate.slots, world.gate.read().capacity, world.gate.limits.slots) == (1, 1, 8)
    assert re.fullmatch(
        r"a request computes \d+ ms: this interpreter cannot use more than 1 of the 8 slots;"
        r" more processes would help",
        world.gate.why,
    )
    world.run(10, used=1.0, lag=1.04)
    assert world.gate.slots == 1


def test_a_slow_outside_service_takes_no_slot_away(world):
    world.run(20, **WAITS)
    assert (world.gate.slots, world.gate.why) == (8, None)


def test_all_slots_are_there_again_within_two_seconds_when_the_app_waits(world):
    world.run(2, **COMPUTES)
    world.run(2, **WAITS)
    assert (world.gate.slots, world.gate.why) == (8, None)


def test_the_way_up_is_open_while_surplus_holders_hang(world):
    """Else each of them would have to leave before anybody got in."""
    world.go_on()
    for _ in range(10):
        world.beat(**COMPUTES)
    assert (world.gate.wanted, world.gate.slots) == (2, 8)
    for _ in range(30):
        world.beat(**WAITS)
    assert (world.gate.wanted, world.gate.slots) == (8, 8)


def test_the_interpreter_that_the_loop_uses_takes_no_slot_away(world):
    world.go_on()
    for _ in range(100):
        world.beat(1.0, 10.0, loop=0.8)
    assert world.gate.wanted == 8


def test_one_that_computes_for_long_takes_no_slot_from_the_others(world):
    world.run(2, **COMPUTES)
    for _ in range(200):  # whoever is inside stays
        world.beat(1.0, 10.0)
    assert 2 <= world.gate.slots < 8
    world.run(2, **COMPUTES)
    assert world.gate.slots == 1


def test_where_the_loop_starves_there_is_no_crowd_and_there_are_fewer_all_the_same(world):
    world.run(3, **COMPUTES, requests=6)
    assert world.gate.slots <= 2


def test_where_all_is_taken_in_too_late_there_are_fewer_until_it_is_in_time(world):
    """Each computes for a moment only, so nobody queues long for the interpreter but the loop."""
    moments = {"used": 0.9, "lag": 1.1}
    world.run(2, **moments)
    assert world.gate.slots == 8
    for _ in range(40):
        world.gate.late = 1.0
        world.run(0.05, **moments)
    assert world.gate.slots == 8  # max_wait is math.inf: nobody is too late
    world.gate.limits = world.gate.limits._replace(max_wait=0.2)
    for _ in range(10):
        world.gate.late = 0.3
        world.run(0.05, **moments)
    fewer = world.gate.slots
    assert fewer < 8
    world.adaptive._end()
    world.gate.late = 9.0  # hours ago, when nobody looked
    world.run(2, **moments)
    assert world.gate.slots == 8
    for _ in range(10):
        world.gate.late = 0.3
        world.run(0.05, **moments)
    assert world.gate.slots == fewer
    world.run(2, **moments)  # nobody has said that it is late since the last look
    assert fewer / 2 <= world.gate.slots <= fewer


def test_after_a_while_of_quiet_all_slots_are_there_and_nobody_looks(world):
    world.run(2, **COMPUTES)
    world.run(QUIET_SECONDS - 1, used=0.1, lag=0.1, requests=0)
    assert world.gate.slots <= 2
    world.run(2, used=0.1, lag=0.1, requests=0)
    assert world.gate.slots == 8
    assert not world.adaptive._beats.wanted


@pytest.mark.parametrize("broken", ["_clock", "_processor", "_loop"])
def test_a_broken_clock_leaves_all_slots_and_one_line_in_the_log(world, broken, caplog):
    world.run(1, **COMPUTES)
    assert world.gate.wanted < 8

    def fails():
        raise OSError("no such clock")

    setattr(world.adaptive, broken, fails)
    world.run(1, **COMPUTES)
    assert (world.gate.wanted, world.gate.why) == (8, None)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "how many slots" in caplog.text
    world.adaptive.begin()
    assert not world.adaptive._beats.wanted


# The turns at the interpreter


@pytest.fixture(autouse=True)
def turn():
    """Have Python's own turn at the beginning, and return it; have what there was at the end."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    turn = sys.getswitchinterval()
    yield turn
    if sys.getswitchinterval() != turn:
        gc.collect()  # else the world of this test might give it back in the middle of another
    sys.setswitchinterval(before)


def is_short():
    return sys.getswitchinterval() == pytest.approx(SHORT_SECONDS)


def test_turns_are_short_where_one_at_a_time_computes_until_the_crowd_has_gone(world, turn):
    world.run(0.3, **COMPUTES)
    assert world.gate.slots > 1
    assert sys.getswitchinterval() == turn  # by short ones it cannot be seen how many compute
    world.run(2, **COMPUTES)
    assert (world.gate.slots, is_short()) == (1, True)
    world.run(10, used=1.0, lag=1.04)
    assert (world.gate.slots, is_short()) == (1, True)
    world.run(QUIET_SECONDS + 1, used=0.1, lag=0.1, requests=0)
    assert sys.getswitchinterval() == turn


def test_turns_are_as_before_when_the_app_waits(world, turn):
    world.run(2, **COMPUTES)
    assert is_short()
    world.run(2, **WAITS)
    assert (world.gate.slots, sys.getswitchinterval()) == (8, turn)


def test_turns_are_as_before_when_it_cannot_be_seen_any_more_what_is_worth_having(world, turn):
    world.run(2, **COMPUTES)
    assert is_short()
    world.adaptive._clock = None
    world.run(1, **COMPUTES)
    assert sys.getswitchinterval() == turn


def test_turns_are_as_before_in_a_child(world, turn):
    world.run(2, **COMPUTES)
    pid = os.fork()
    if not pid:
        os._exit(sys.getswitchinterval() == turn)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert is_short()


def test_a_turn_that_somebody_else_has_set_meanwhile_stays(world, turn):
    world.run(2, **COMPUTES)
    sys.setswitchinterval(2 * turn)
    world.adaptive._reset()
    assert sys.getswitchinterval() == pytest.approx(2 * turn)


def test_a_turn_that_is_short_already_stays(world):
    sys.setswitchinterval(SHORT_SECONDS / 2)
    world.run(2, **COMPUTES)
    world.adaptive._reset()
    assert sys.getswitchinterval() == pytest.approx(SHORT_SECONDS / 2)


def test_of_two_gates_the_last_gives_the_turn_back(turn):
    one, another = World(), World()
    for _ in range(2):
        one.run(2, **COMPUTES)
        another.run(2, **COMPUTES)
    one.adaptive._reset()
    another.run(1, **COMPUTES)
    assert is_short()
    another.adaptive._reset()
    assert sys.getswitchinterval() == turn


def test_turns_are_as_before_when_the_gate_is_gone_in_the_middle_of_a_crowd(turn):
    world = World()
    world.run(2, **COMPUTES)
    assert is_short()
    del world
    gc.collect()
    assert sys.getswitchinterval() == turn


def test_a_build_without_the_lock_has_no_turns(world, turn):
    world.adaptive._machine = FREE
    world.run(5, used=2.0, lag=10.0)
    assert sys.getswitchinterval() == turn


# The thread


def started():
    return [one for one in threading.enumerate() if one.name == "busyguard-adaptive"]


def test_there_is_no_thread_while_nobody_waits():
    gate = adapted(Gate(4))
    before = started()
    for _ in range(3):
        for slot in [gate.enter() for _ in range(3)]:
            gate.read()
            gate.leave(slot)
    assert started() == before


def test_several_inside_begin_it_only_if_the_interpreter_is_used_up(monkeypatch):
    world, begun = World(), []
    monkeypatch.setattr(world.adaptive._beats, "start", lambda: begun.append(world.now))
    world.gate.crowding = world.adaptive.begin
    world.gate.enter()
    world.gate.enter()
    for used in (0.0, 0.05, 0.1, 0.9):
        world.now += 1
        world.used += used
        world.gate.read()
    assert begun == [4.0]


def test_under_gevent_nobody_looks(monkeypatch, world):
    monkeypatch.setattr("wsgi_busyguard.adaptive.is_patched", lambda module: True)
    world.go_on()
    world.adaptive.begin()
    assert not world.adaptive._beats.wanted


def test_where_the_clock_of_the_main_thread_is_not_a_gate_keeps_its_slots(monkeypatch):
    monkeypatch.setattr("wsgi_busyguard._support.machine.MAIN_THREAD", "/nowhere/schedstat")
    gate = Gate(4)
    assert adapted(gate).crowding is bool


def test_the_time_of_the_main_thread_is_without_that_of_others(start):
    def compute():
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass

    before = main_thread()
    start(compute).join()
    between = main_thread()
    compute()
    assert between - before < 0.08 < main_thread() - between


@pytest.mark.slow
def test_a_pool_that_computes_has_few_slots_and_all_when_it_waits(monkeypatch):
    # Beside a suite on each processor there may not be as much left as a site would have.
    monkeypatch.setattr("wsgi_busyguard.adaptive.LITTLE", 0.0)
    over, computes = threading.Event(), threading.Event()
    computes.set()

    def job():
        until = time.thread_time() + 0.01
        while computes.is_set() and time.thread_time() < until:
            pass
        if not computes.is_set():
            time.sleep(0.1)

    with CountingExecutor(16, max_queue=20, max_wait=math.inf) as pool:

        def feed():
            while not over.is_set():
                with suppress(QueueFull):
                    for _ in range(30):  # or else the jobs keep this thread from submitting more
                        pool.submit(job)
                time.sleep(0.001)

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            assert eventually(lambda: pool.gate.slots <= 4, 30)
            assert "more processes would help" in pool.gate.why
            computes.clear()
            assert eventually(lambda: pool.gate.slots == 16, 30)
            assert pool.gate.why is None
        finally:
            over.set()
            feeder.join()
