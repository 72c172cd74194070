"""What the counting executor adds to the stock one; what they share is in test_executor_stock."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import math
import random
import re
import textwrap
import threading
import weakref
from concurrent.futures.thread import BrokenThreadPool
from pathlib import Path

import pytest
from contracts.reader import DEADLINE
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wsgi_busyguard import Load, Monitor, State
from wsgi_busyguard.adapters.executor import CountingExecutor, QueueFull, QueueTimeout
from wsgi_busyguard.adapters.executor.carriers import Job
from wsgi_busyguard.gate import Refused, Slot
from wsgi_busyguard.policy import Reason

INF = math.inf

ROOT = Path(__file__).parents[4]


class Blocked:
    """An executor, and jobs on it that hang until they are let go."""

    def __init__(self, slots, **keywords):
        self.executor = CountingExecutor(slots, **keywords)
        self._events = []

    def submit(self):
        event = threading.Event()
        self._events.append(event)
        return self.executor.submit(event.wait, DEADLINE)

    def submits(self, count):
        return [self.submit() for _ in range(count)]

    def let_go(self, index):
        self._events[index].set()

    def close(self):
        for event in self._events:
            event.set()
        self.executor.shutdown()


@pytest.fixture
def blocked():
    made = []

    def blocked(*arguments, **keywords):
        made.append(Blocked(*arguments, **keywords))
        return made[-1]

    yield blocked
    for one in made:
        one.close()


def set_clock(gate, clock):
    gate._clock = gate._queue._clock = clock


def idle(executor, capacity):
    """Nothing is left, whatever has happened: no job, no slot, no carrier."""
    assert executor.read()[:3] == (0, 0, capacity)
    assert executor.gate.empty
    carriers = executor._carriers
    assert (carriers._waiting, list(carriers._ready)) == ({}, [])


# The figures, the bound and the age


def test_jobs_are_active_up_to_the_capacity_and_queued_beyond(blocked):
    jobs = blocked(2, max_queue=3)
    jobs.submits(5)
    assert jobs.executor.read()[:3] == (3, 2, 2)
    assert repr(jobs.executor) == "<CountingExecutor 2/2 with 3 waiting>"


def test_a_full_queue_raises_and_keeps_nothing_of_the_job(blocked):
    jobs = blocked(2, max_queue=3)
    jobs.submits(5)
    with pytest.raises(QueueFull) as raised:
        jobs.submit()
    assert raised.value.reason is Reason.QUEUE_FULL
    assert isinstance(raised.value, Refused)
    assert jobs.executor.read()[:3] == (3, 2, 2)


def test_a_draining_gate_takes_no_job_but_finishes_those_it_has(blocked):
    jobs = blocked(1)
    first, second = jobs.submits(2)
    jobs.executor.gate.drain()
    with pytest.raises(QueueFull) as raised:
        jobs.submit()
    assert raised.value.reason is Reason.DRAINING
    jobs.let_go(0)
    jobs.let_go(1)
    assert first.result(DEADLINE) is second.result(DEADLINE) is True


def test_refusals_do_not_pile_up_behind_stuck_threads(blocked, until):
    """The queue is bounded, and so is what stands in the pool for it."""
    jobs = blocked(2, max_queue=3)
    begun = jobs.submits(5)[:2]
    until(lambda: all(job.running() for job in begun))
    for _ in range(1000):
        with pytest.raises(QueueFull):
            jobs.submit()
    assert len(jobs.executor._carriers._unbegun) <= 4


def test_cancelled_jobs_do_not_pile_up_behind_stuck_threads(blocked, until):
    jobs = blocked(2, max_queue=3)
    begun = jobs.submits(2)
    until(lambda: all(job.running() for job in begun))
    for _ in range(1000):
        assert jobs.submit().cancel()
    assert len(jobs.executor._carriers._unbegun) == 1


def test_who_waited_for_a_result_finds_the_slot_free(hurry):
    with CountingExecutor(1, max_queue=0) as executor:
        for number in range(2000):
            assert executor.submit(int, number).result(DEADLINE) == number


def test_the_job_that_is_told_of_a_cancelled_one_finds_its_place_free(blocked):
    jobs = blocked(1, max_queue=1)
    _, waiting = jobs.submits(2)
    taken = []
    waiting.add_done_callback(lambda _: taken.append(jobs.submit()))
    assert waiting.cancel()
    assert len(taken) == 1


def test_an_aged_out_job_times_out_while_every_thread_is_stuck(blocked):
    jobs = blocked(1, max_wait=0.05)
    _, waiting, another = jobs.submits(3)
    for job in (waiting, another):
        with pytest.raises(QueueTimeout) as raised:
            job.result(DEADLINE)
        assert raised.value.reason is Reason.QUEUE_AGE
        assert isinstance(raised.value, Refused)
    assert jobs.executor.read()[:3] == (0, 1, 1)


def test_an_aged_out_job_never_runs(blocked, clock):
    jobs = blocked(1, max_wait=1.0, ticker=False)
    set_clock(jobs.executor.gate, clock)
    ran = []
    first = jobs.submit()
    waiting = jobs.executor.submit(ran.append, 1)
    clock.now += 1.5
    jobs.let_go(0)
    first.result(DEADLINE)
    assert isinstance(waiting.exception(DEADLINE), QueueTimeout)
    assert ran == []
    idle(jobs.executor, 1)


def test_a_loop_can_look_at_the_ages_itself(blocked, clock):
    jobs = blocked(1, max_wait=1.0, ticker=False)
    set_clock(jobs.executor.gate, clock)
    _, waiting = jobs.submits(2)
    clock.now += 1.0
    jobs.executor.expire()
    assert not waiting.done()
    clock.now += 0.5
    jobs.executor.expire()
    assert isinstance(waiting.exception(0), QueueTimeout)


def tickers():
    return [t for t in threading.enumerate() if t.name == "busyguard-executor"]


def test_the_ticker_runs_only_while_something_waits_that_can_time_out(blocked, until):
    until(lambda: tickers() == [])  # those of other tests
    for never in (blocked(1, max_wait=INF), blocked(1, max_wait=1000.0, ticker=False)):
        never.submits(2)
        assert tickers() == []
    jobs = blocked(1, max_wait=1000.0)
    jobs.submit()
    assert tickers() == []
    for _ in range(2):
        waiting = jobs.submits(2)
        assert len(tickers()) == 1
        assert tickers()[0].daemon
        for job in waiting:
            job.cancel()
        until(lambda: tickers() == [])


def test_no_ticker_outlives_a_shutdown(until):
    until(lambda: tickers() == [])
    jobs = Blocked(1, max_wait=1000.0)
    jobs.submits(2)
    assert len(tickers()) == 1
    jobs.close()
    assert tickers() == []


def test_jobs_time_out_after_a_shutdown_that_did_not_wait(blocked):
    jobs = blocked(1, max_wait=0.05)
    _, waiting = jobs.submits(2)
    jobs.executor.shutdown(wait=False)
    assert isinstance(waiting.exception(DEADLINE), QueueTimeout)


def test_a_ticker_that_cannot_start_breaks_no_job(blocked, monkeypatch):
    jobs = blocked(1, max_wait=1000.0)
    first = jobs.submit()
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    waiting = jobs.submit()
    monkeypatch.undo()
    jobs.let_go(0)
    jobs.let_go(1)
    assert first.result(DEADLINE) is waiting.result(DEADLINE) is True


def no_thread(*_):
    raise RuntimeError("can't start new thread")


# The edges


def test_it_calls_back_when_it_becomes_busy_and_free(blocked):
    told = []
    jobs = blocked(2, on_busy=told.append, on_free=told.append)
    all_of_them = jobs.submits(2)
    assert told == []
    all_of_them += jobs.submits(1)
    assert [t.state for t in told] == [State.BUSY]
    assert told[0].load[:3] == (1, 2, 2)
    jobs.let_go(0)
    all_of_them[0].result(DEADLINE)
    assert len(told) == 1
    jobs.let_go(1)
    all_of_them[1].result(DEADLINE)
    assert [t.state for t in told] == [State.BUSY, State.FREE]
    assert told[1].load[:3] == (0, 1, 2)


def test_a_monitor_of_ones_own_can_stand_over_it(blocked):
    jobs = blocked(1)
    told = []
    monitor = Monitor(jobs.executor, on_busy=told.append)
    jobs.submits(2)
    assert [t.state for t in told] == [State.BUSY]
    assert monitor.state is jobs.executor.monitor.state is State.BUSY


def test_each_change_of_the_figures_is_told(blocked, until):
    seen = []
    jobs = blocked(1, max_wait=INF, changed=lambda: seen.append(jobs.executor.read()[:2]))
    first = jobs.submit()
    until(lambda: len(seen) == 2)  # that it came, and that it began
    second, third = jobs.submits(2)
    assert seen[-1] == (2, 1)
    third.cancel()
    assert seen[-1] == (1, 1)
    jobs.let_go(0)
    first.result(DEADLINE)
    jobs.let_go(1)
    second.result(DEADLINE)
    assert seen[-1] == (0, 0)
    told = [figures for figures, _ in itertools.groupby(seen)]
    assert told == [(0, 1), (1, 1), (2, 1), (1, 1), (0, 1), (0, 0)]


def test_an_aged_out_job_is_told_too(blocked, clock):
    seen = []
    jobs = blocked(1, ticker=False, changed=lambda: seen.append(jobs.executor.read()[:2]))
    set_clock(jobs.executor.gate, clock)
    jobs.submits(2)
    assert seen[-1] == (1, 1)
    clock.now += 5
    jobs.executor.expire()
    assert seen[-1] == (0, 1)


def test_a_refused_job_changes_nothing_and_nothing_is_told(blocked):
    seen = []
    jobs = blocked(1, max_queue=0, changed=lambda: seen.append(1), max_wait=INF)
    jobs.submit()
    settled = len(seen)
    with pytest.raises(QueueFull):
        jobs.submit()
    assert len(seen) - settled <= 1  # the first, when it began


def test_what_is_told_is_told_outside_any_lock(blocked):
    """So that whoever is told may do anything, submit and cancel included."""
    told = []
    alone = threading.Lock()

    def busybody():
        if len(told) < 10 and alone.acquire(blocking=False):
            helper = threading.Thread(target=lambda: jobs.executor.submit(int).cancel())
            helper.start()
            helper.join(DEADLINE)
            told.append(helper.is_alive())
            alone.release()

    jobs = blocked(1, max_wait=INF, changed=busybody)
    while len(told) < 10:
        assert jobs.executor.submit(int).result(DEADLINE) == 0
    assert set(told) == {False}


def test_one_that_raises_when_told_is_logged_once_a_streak_and_breaks_no_job(caplog):
    broken = [True]

    def changed():
        if broken[0]:
            raise ZeroDivisionError

    with CountingExecutor(1, changed=changed) as executor:
        for _ in range(3):
            assert executor.submit(int).result(DEADLINE) == 0
        assert len(caplog.records) == 1
        assert "raised when told of a change" in caplog.text
        broken[0] = False
        executor.submit(int).result(DEADLINE)
        broken[0] = True
        executor.submit(int).result(DEADLINE)
    assert len(caplog.records) == 2
    assert {record.name for record in caplog.records} == {"wsgi_busyguard"}


# The slot of the job


def test_a_job_knows_its_slot(blocked, clock):
    jobs = blocked(1, max_wait=100.0, ticker=False)
    set_clock(jobs.executor.gate, clock)
    first = jobs.submit()
    waiting = jobs.executor.submit(
        lambda: (jobs.executor.current().since, jobs.executor.current().waited)
    )
    clock.now += 3
    jobs.let_go(0)
    assert first.result(DEADLINE) is True
    assert waiting.result(DEADLINE) == (clock.now, 3.0)


def test_outside_of_jobs_there_is_no_slot():
    seen = []
    with CountingExecutor(1) as executor, CountingExecutor(1) as another:
        assert executor.current() is None
        job = executor.submit(executor.current)
        assert isinstance(job.result(DEADLINE), Slot)
        assert executor.submit(another.current).result(DEADLINE) is None
        gate = threading.Event()
        job = executor.submit(gate.wait, DEADLINE)
        job.add_done_callback(lambda _: seen.append(executor.current()))
        gate.set()
        job.result(DEADLINE)
    assert seen == [None]


# Whatever becomes of the pool


def test_waiting_jobs_run_side_by_side_after_a_shutdown_too(hurry):
    """Two that need each other get two threads, however the slots are handed over."""
    for _ in range(50):
        jobs = Blocked(2, max_queue=INF, max_wait=INF)
        jobs.submits(2)
        both = threading.Barrier(2)
        waiting = [jobs.executor.submit(both.wait, DEADLINE) for _ in range(6)]
        jobs.executor.shutdown(wait=False)
        jobs.close()
        assert sorted(job.result(0) for job in waiting) == [0, 0, 0, 1, 1, 1]
        idle(jobs.executor, 2)


def test_a_surplus_carrier_takes_no_job_after_a_shutdown(blocked):
    jobs = blocked(1)
    jobs.submit()
    jobs.submit().cancel()
    jobs.executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        jobs.submit()


def test_a_thread_that_cannot_start_leaves_no_slot_taken(monkeypatch, caplog):
    with CountingExecutor(2, max_queue=2) as executor:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        for _ in range(5):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                executor.submit(int)
            idle(executor, 2)
        monkeypatch.undo()
        for _ in range(5):
            assert executor.submit(int).result(DEADLINE) == 0
    idle(executor, 2)
    assert caplog.records == []


def test_a_second_thread_that_cannot_start_loses_no_job(blocked, monkeypatch):
    jobs = blocked(2)
    first = jobs.submit()
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        jobs.submit()
    monkeypatch.undo()
    third = jobs.submit()
    fourth = jobs.submit()
    jobs.let_go(0)
    jobs.let_go(2)
    assert first.result(DEADLINE) is third.result(DEADLINE) is True
    assert not fourth.done()
    jobs.let_go(3)
    jobs.executor.shutdown()
    assert fourth.result(0) is True
    idle(jobs.executor, 2)


def test_no_slot_is_lost_to_an_initializer_that_raises(caplog):
    def fail():
        raise ZeroDivisionError

    executor = CountingExecutor(1, initializer=fail, max_queue=10, max_wait=INF)
    jobs = []
    try:
        for _ in range(8):
            jobs.append(executor.submit(int))
    except BrokenThreadPool:
        assert jobs
    for job in jobs:
        assert isinstance(job.exception(DEADLINE), BrokenThreadPool)
    with pytest.raises(BrokenThreadPool, match="initializer raised"):
        executor.submit(int)
    executor.shutdown()
    idle(executor, 1)


def test_jobs_that_wait_when_a_later_thread_fails_to_initialize_fail_too(until, caplog):
    calls, gate = [], threading.Event()

    def second_fails():
        calls.append(1)
        if len(calls) == 2:
            gate.wait(DEADLINE)
            raise ZeroDivisionError

    hang = threading.Event()
    with CountingExecutor(2, initializer=second_fails, max_wait=INF) as executor:
        fine = executor.submit(hang.wait, DEADLINE)
        until(fine.running)
        others = [executor.submit(int) for _ in range(5)]
        gate.set()
        for job in others:
            assert isinstance(job.exception(DEADLINE), BrokenThreadPool)
        hang.set()
        assert fine.result(DEADLINE) is True
    idle(executor, 2)


def test_a_callback_that_wants_out_is_logged_and_costs_no_slot(caplog):
    def leave(_):
        raise SystemExit

    with CountingExecutor(1) as executor:
        gate = threading.Event()
        job = executor.submit(gate.wait, DEADLINE)
        job.add_done_callback(leave)
        gate.set()
        job.result(DEADLINE)
        assert executor.submit(int).result(DEADLINE) == 0
    idle(executor, 1)
    assert [record.message for record in caplog.records] == ["a callback raised"]


def test_an_interrupted_submit_leaves_nothing_behind(blocked):
    """As a gevent timeout or Ctrl-C can, a listener's SystemExit goes through submit()."""
    jobs = blocked(1)
    first = jobs.submit()

    def out():
        raise SystemExit

    jobs.executor.gate.subscribe(out)
    with pytest.raises(SystemExit):
        jobs.submit()
    assert jobs.executor.read()[:3] == (0, 1, 1)
    jobs.executor.gate._watchers.remove(out)
    jobs.let_go(0)
    first.result(DEADLINE)
    idle(jobs.executor, 1)


def test_nobody_but_its_user_keeps_an_executor():
    jobs = Blocked(1, max_wait=1000.0)
    gone = weakref.ref(jobs.executor)
    futures = jobs.submits(3)
    del jobs.executor
    assert gone() is None
    for index, future in enumerate(futures):
        jobs.let_go(index)
        assert future.result(DEADLINE) is True


# Many jobs of all kinds


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_counts_are_exact_after_20_000_jobs_of_all_kinds(hurry, start, until, seed):
    executor = CountingExecutor(3, max_queue=8, max_wait=0.05)
    ran, futures, refused = [], [], []

    def work(kind):
        ran.append(kind)
        if kind == 1:
            raise ZeroDivisionError
        if kind == 2:
            raise SystemExit

    def visit(number):
        chance = random.Random(seed * 100 + number)
        for _ in range(2_500):
            try:
                job = executor.submit(work, chance.randrange(4))
            except QueueFull as refusal:
                refused.append(refusal.reason)
                continue
            futures.append(job)
            if chance.random() < 0.3:
                job.cancel()
            elif chance.random() < 0.3:
                job.exception(DEADLINE) if not job.cancelled() else None

    threads = [start(visit, number) for number in range(8)]
    looks = 0
    while any(thread.is_alive() for thread in threads):
        queued, active, capacity = executor.read()[:3]
        assert 0 <= queued <= 8
        assert 0 <= active <= capacity <= 3  # fewer while they compete for the interpreter
        looks += 1
    executor.shutdown()
    executor.gate.resize(3)
    idle(executor, 3)
    assert len(futures) + len(refused) == 20_000
    assert all(future.done() for future in futures)
    cancelled = sum(future.cancelled() for future in futures)
    kept = [future for future in futures if not future.cancelled()]
    timed_out = sum(isinstance(future.exception(), QueueTimeout) for future in kept)
    assert len(ran) == len(futures) - cancelled - timed_out
    # A thread that is held up for longer than a job may wait finds it too old when it comes.
    assert set(refused) <= {Reason.QUEUE_FULL, Reason.QUEUE_AGE}
    assert looks


def test_a_cancel_that_races_with_the_start_has_one_outcome(hurry, start):
    with CountingExecutor(1, max_queue=INF, max_wait=INF) as executor:
        for _ in range(2000):
            ran = []
            executor.submit(int)
            job = executor.submit(ran.append, 1)
            cancelled = job.cancel()
            concurrent.futures.wait([job], DEADLINE)
            assert (cancelled, ran) in [(True, []), (False, [1])]
    idle(executor, 1)


@pytest.mark.slow
def test_a_shutdown_that_races_with_submits_loses_no_job(hurry, start):
    for _ in range(40):
        executor = CountingExecutor(2, max_queue=INF, max_wait=INF)
        ran, futures = [], []

        def visit(executor=executor, ran=ran, futures=futures):
            try:
                while True:
                    futures.append(executor.submit(ran.append, 1))
            except RuntimeError:
                pass

        threads = [start(visit) for _ in range(3)]
        while len(ran) < 5:
            pass
        executor.shutdown(cancel_futures=bool(len(ran) % 2))
        for thread in threads:
            thread.join(DEADLINE)
        concurrent.futures.wait(futures, DEADLINE)
        assert len(ran) == sum(not future.cancelled() for future in futures)
        executor.shutdown()
        idle(executor, 2)


class ExecutorMachine(RuleBasedStateMachine):
    """An executor beside a list of those inside and a list of those who wait."""

    SLOTS, MAX_QUEUE, MAX_WAIT = 2, 3, 10.0

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        limits = {"max_queue": self.MAX_QUEUE, "max_wait": self.MAX_WAIT, "client_timeout": 1e9}
        self.jobs = Blocked(self.SLOTS, **limits, ticker=False)
        set_clock(self.jobs.executor.gate, lambda: self.now)
        self.count = 0
        self.inside = []  # (number, future)
        self.waiting = []  # (number, future, arrived)

    def hand_over(self):
        while self.waiting and len(self.inside) < self.SLOTS:
            number, future, arrived = self.waiting.pop(0)
            if self.now - arrived > self.MAX_WAIT:
                self.timed_out(future)
            else:
                self.inside.append((number, future))

    def timed_out(self, future):
        assert isinstance(future.exception(DEADLINE), QueueTimeout)

    def expire(self):
        while self.waiting and self.now - self.waiting[0][2] > self.MAX_WAIT:
            self.timed_out(self.waiting.pop(0)[1])

    @rule()
    def submit(self):
        number, self.count = self.count, self.count + 1
        try:
            future = self.jobs.submit()
        except QueueFull:
            self.expire()
            assert len(self.waiting) == self.MAX_QUEUE
            return
        self.expire()
        self.waiting.append((number, future, self.now))
        self.hand_over()
        assert len(self.waiting) <= self.MAX_QUEUE

    @precondition(lambda self: self.inside)
    @rule(which=st.integers(0, SLOTS - 1))
    def finish(self, which):
        number, future = self.inside.pop(which % len(self.inside))
        self.jobs.let_go(number)
        assert future.result(DEADLINE) is True
        self.hand_over()

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, MAX_QUEUE - 1))
    def cancel(self, which):
        _, future, _ = self.waiting.pop(which % len(self.waiting))
        assert future.cancel()
        assert future.cancelled()

    @rule(seconds=st.sampled_from([0.5, 4.0, 10.5]))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def look_at_the_ages(self):
        self.jobs.executor.expire()
        self.expire()

    @invariant()
    def the_figures_are_right(self):
        load = self.jobs.executor.read()
        assert load[:3] == (len(self.waiting), len(self.inside), self.SLOTS)
        assert all(not future.done() for _, future, _ in self.waiting)
        assert all(not future.done() for _, future in self.inside)

    def teardown(self):
        self.jobs.close()
        idle(self.jobs.executor, self.SLOTS)


TestExecutorAgainstTheModel = pytest.mark.slow(ExecutorMachine.TestCase)
TestExecutorAgainstTheModel.settings = settings(max_examples=200)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be at least 1, not 0"),
        ({"max_workers": 2.5}, TypeError, "max_workers must be a whole number, not 2.5"),
        ({"max_queue": -1}, ValueError, "max_queue must be at least 0, not -1"),
        ({"max_wait": 0}, ValueError, "max_wait must be more than 0 seconds, not 0"),
        ({"client_timeout": "5"}, TypeError, "client_timeout must be a number of seconds, not '5'"),
        ({"changed": 7}, TypeError, "changed must be callable with nothing, not 7"),
        ({"ticker": "no"}, TypeError, "ticker must be True or False, not 'no'"),
        ({"on_busy": 7}, TypeError, "on_busy must be a function that takes a Transition, not 7"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, error, words):
    with pytest.raises(error, match=f"^{words}$"):
        CountingExecutor(**{"max_workers": 2, **arguments})


def test_the_defaults_are_those_of_the_stock_executor_and_of_the_gate():
    with CountingExecutor() as executor, concurrent.futures.ThreadPoolExecutor() as stock:
        assert executor._max_workers == stock._max_workers
        workers = stock._max_workers
        assert executor.gate.limits == (workers, 4 * workers, 1.0)
        assert executor.read() == Load(0, 0, workers)
    with CountingExecutor(2, client_timeout=2.0) as executor:
        assert executor.gate.limits == (2, 8, 0.4)


def test_a_job_that_will_not_run_keeps_nothing(blocked, clock):
    class Thing:
        def method(self):
            """Never called."""

    jobs = blocked(1, max_wait=1.0, ticker=False)
    set_clock(jobs.executor.gate, clock)
    jobs.submit()
    things = [Thing(), Thing()]
    gone = [weakref.ref(thing) for thing in things]
    futures = [jobs.executor.submit(thing.method) for thing in things]
    assert futures[0].cancel()
    clock.now += 2
    jobs.executor.expire()
    assert isinstance(futures[1].exception(0), QueueTimeout)
    things.clear()
    assert [ref() for ref in gone] == [None, None]


def test_a_shutdown_that_cancels_reaches_a_job_that_is_just_coming(blocked, until):
    jobs = blocked(1)
    until(jobs.submit().running)
    gate = jobs.executor.gate
    offer = gate.offer

    def too_late(job):
        jobs.executor.shutdown(wait=False, cancel_futures=True)
        return offer(job)

    gate.offer = too_late
    job = jobs.submit()
    assert job.cancelled()
    assert concurrent.futures.wait([job], 0).done == {job}
    assert jobs.executor.read()[:3] == (0, 1, 1)


def test_a_shutdown_can_cancel_a_job_that_has_its_slot_and_no_thread_yet(blocked):
    """The only thread is in a callback of the job before, whose slot is free by then."""
    jobs = blocked(1)
    in_callback, go_on = threading.Event(), threading.Event()
    first = jobs.submit()
    first.add_done_callback(lambda _: (in_callback.set(), go_on.wait(DEADLINE)))
    jobs.let_go(0)
    assert in_callback.wait(DEADLINE)
    second = jobs.submit()
    assert jobs.executor.read()[:3] == (0, 1, 1)
    jobs.executor.shutdown(wait=False, cancel_futures=True)
    assert second.cancelled()
    go_on.set()
    jobs.executor.shutdown()
    idle(jobs.executor, 1)


def test_jobs_that_have_slots_and_no_threads_yet_begin_in_their_order(blocked):
    jobs = blocked(2)
    in_callback, go_on, ran = threading.Semaphore(0), [threading.Event(), threading.Event()], []
    for index, job in enumerate(jobs.submits(2)):
        job.add_done_callback(
            lambda _, index=index: (in_callback.release(), go_on[index].wait(DEADLINE))
        )
        jobs.let_go(index)
    assert all(in_callback.acquire(timeout=DEADLINE) for _ in range(2))
    later = [jobs.executor.submit(ran.append, number) for number in range(2)]
    go_on[0].set()
    concurrent.futures.wait(later, DEADLINE)
    go_on[1].set()
    assert ran == [0, 1]


def test_a_carrier_that_is_not_needed_any_more_gives_its_thread_back(until):
    """Even if somebody else has taken the slots, so that it stands and waits with its job."""
    executor = CountingExecutor(2, max_wait=INF)
    slots = [executor.gate.enter() for _ in range(2)]
    jobs = [executor.submit(int) for _ in range(2)]
    until(lambda: executor._carriers._parked == 2)
    for left, job in zip((1, 0), jobs, strict=True):
        assert job.cancel()
        until(lambda left=left: executor._carriers._parked == left)
    later = executor.submit(int)
    for slot in slots:
        executor.gate.leave(slot)
    assert later.result(DEADLINE) == 0
    executor.shutdown()
    idle(executor, 2)


def test_a_carrier_that_has_begun_although_the_pool_raised_is_as_good_as_any(blocked, start):
    """The stock executor queues first, and raises when it cannot start one more thread."""
    jobs = blocked(1)
    ran = []

    def submit(carry, carrier):
        start(carry, carrier)
        while carrier in jobs.executor._carriers._unbegun:
            pass
        raise RuntimeError("can't start new thread")

    job = Job(jobs.executor._carriers, (ran.append, (1,), {}))
    jobs.executor._carriers.add(job, submit)
    assert job.result(DEADLINE) is None
    assert ran == [1]
    idle(jobs.executor, 1)


# In an app


def test_the_reports_of_the_docs_are_refused_when_there_are_too_many():
    page = (ROOT / "docs" / "executor.rst").read_text()
    code = re.search(r"   :caption: reports.py\n\n((?:(?:   .*)?\n)+)", page)[1]
    module = {"__name__": "reports"}
    exec(textwrap.dedent(code), module)
    hang = threading.Event()
    module["render"] = lambda number: hang.wait(DEADLINE)
    with module["jobs"]:
        client = module["app"].test_client()
        answers = [client.post(f"/reports/{number}") for number in range(13)]
        hang.set()
    assert [answer.status_code for answer in answers] == [202] * 12 + [503]
    assert answers[-1].headers["Retry-After"] == "10"
    assert "try again" in answers[-1].text


# In an event loop


def test_a_loop_takes_it_as_its_default_executor():
    async def main():
        loop = asyncio.get_running_loop()
        executor = CountingExecutor(2, max_queue=1)
        loop.set_default_executor(executor)
        assert await asyncio.to_thread(sum, [1, 2]) == 3
        hang = threading.Event()
        hanging = [loop.run_in_executor(None, hang.wait, DEADLINE) for _ in range(3)]
        assert executor.read()[:3] == (1, 2, 2)
        with pytest.raises(QueueFull):
            await asyncio.to_thread(int)
        hanging[2].cancel()
        await asyncio.sleep(0)
        assert executor.read()[:3] == (0, 2, 2)
        hang.set()
        assert await asyncio.gather(*hanging[:2]) == [True, True]
        return executor

    executor = asyncio.run(main())
    idle(executor, 2)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)


def test_a_loop_is_told_that_a_job_has_timed_out():
    async def main():
        hang = threading.Event()
        with CountingExecutor(1, max_wait=0.02) as executor:
            loop = asyncio.get_running_loop()
            first = loop.run_in_executor(executor, hang.wait, DEADLINE)
            with pytest.raises(QueueTimeout):
                await loop.run_in_executor(executor, int)
            hang.set()
            await first

    asyncio.run(main())


@pytest.mark.slow
def test_under_gevent_it_counts_greenlets(python):
    said = python(
        """
        from gevent import monkey
        monkey.patch_all()
        import threading, gevent
        from wsgi_busyguard.adapters.executor import CountingExecutor, QueueFull, QueueTimeout

        with CountingExecutor(2, max_queue=2, max_wait=0.05) as executor:
            hang = threading.Event()
            jobs = [executor.submit(hang.wait, 20) for _ in range(4)]
            print(executor)
            try:
                executor.submit(int)
            except QueueFull:
                print("full")
            print([type(job.exception(20)).__name__ for job in jobs[2:]])
            hang.set()
            print([job.result(20) for job in jobs[:2]])
            print(list(executor.map(abs, [-1, -2])))
        print(executor)
        """
    )
    assert said.splitlines() == [
        "<CountingExecutor 2/2 with 2 waiting>",
        "full",
        "['QueueTimeout', 'QueueTimeout']",
        "[True, True]",
        "[1, 2]",
        "<CountingExecutor 0/2 with 0 waiting>",
    ]


def test_a_forked_child_makes_its_own(python):
    said = python(
        """
        import os, threading
        from wsgi_busyguard.adapters.executor import CountingExecutor
        hang = threading.Event()
        with CountingExecutor(1) as executor:
            jobs = [executor.submit(hang.wait, 20) for _ in range(3)]
            if not (child := os.fork()):
                with CountingExecutor(1) as own:
                    fine = own.submit(int).result(20) == 0
                os._exit(0 if fine and executor.read()[:3] == (0, 0, 1) else 1)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), executor.read()[:3])
            hang.set()
        """
    )
    assert said == "0 (2, 1, 1)\n"
