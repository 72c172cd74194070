from __future__ import annotations

import pickle
import queue
import random
import sys
import threading
import time

import pytest
from contracts.reader import DEADLINE, settled
from twisted.python.threadpool import ThreadPool

from wsgi_busyguard import Load, State
from wsgi_busyguard.adapters.twisted import BusyThreadPool, TwistedAdapter

BUSY, FREE = State.BUSY, State.FREE


class Reactor:
    """A reactor of one thread, which notes who calls."""

    def __init__(self):
        self._calls = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def callFromThread(self, call, *arguments):  # noqa: N802
        self._calls.put((call, arguments))

    def _run(self):
        while (work := self._calls.get()) is not None:
            call, arguments = work
            call(*arguments)

    def caught_up(self):
        done = threading.Event()
        self.callFromThread(done.set)
        assert done.wait(DEADLINE)

    def stop(self):
        self._calls.put(None)
        self.thread.join(DEADLINE)


@pytest.fixture
def reactor():
    reactor = Reactor()
    yield reactor
    reactor.stop()


@pytest.fixture
def told():
    return []


@pytest.fixture
def pool(reactor, told):
    def note(transition):
        told.append((transition.state, threading.current_thread()))

    pool = BusyThreadPool(0, 4, "t", on_busy=note, on_free=note, reactor=reactor)
    pool.start()
    yield pool
    if not pool.joined:
        pool.stop()


@pytest.fixture
def hanging():
    """A job that hangs until the event is set."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def impatient():
    """Threads that are interrupted after every few instructions."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_counts_are_exact_and_edges_alternate_under_stress(pool, reactor, told, impatient):
    jobs, submitters = 1500, 4
    done = []
    bursts = random.Random(5)

    def submit():
        for n in range(jobs):
            pool.callInThread(done.append, n)
            if bursts.random() < 0.02:
                time.sleep(0.001)  # lets the pool catch up now and then, for more edges

    threads = [threading.Thread(target=submit) for _ in range(submitters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    settled(pool, 0, 0)
    reactor.caught_up()
    assert len(done) == jobs * submitters
    states = [state for state, _ in told]
    assert states[:1] == [BUSY]
    assert states == [BUSY, FREE] * (len(states) // 2)
    assert {thread for _, thread in told} == {reactor.thread}
    print(f"{len(done)} jobs, {len(states)} edges told")


def test_the_state_is_busy_only_when_more_are_queued_than_threads_are_idle(pool, hanging):
    for _ in range(4):
        pool.callInThread(hanging.wait, DEADLINE)
    settled(pool, 0, 4)
    assert pool.monitor.state is FREE
    pool.callInThread(hanging.wait, DEADLINE)
    assert pool.monitor.state is BUSY
    hanging.set()
    settled(pool, 0, 0)
    assert pool.monitor.state is FREE


def test_both_edges_are_told_though_nobody_looks(pool, reactor, told, hanging):
    for _ in range(5):
        pool.callInThread(hanging.wait, DEADLINE)
    reactor.caught_up()
    assert [state for state, _ in told] == [BUSY]
    hanging.set()
    settled(pool, 0, 0)
    reactor.caught_up()
    assert [state for state, _ in told] == [BUSY, FREE]


def test_free_is_told_as_soon_as_one_thread_has_nothing_to_do(pool, told):
    leave = queue.SimpleQueue()
    for _ in range(6):
        pool.callInThread(leave.get, timeout=DEADLINE)
    for queued, active, states in [(1, 4, [BUSY]), (0, 4, [BUSY]), (0, 3, [BUSY, FREE])]:
        leave.put(None)
        settled(pool, queued, active)
        until = time.monotonic() + 5
        while [state for state, _ in told] != states:
            assert time.monotonic() < until, told
            time.sleep(0.002)
    for _ in range(3):
        leave.put(None)


def test_a_listener_may_give_the_pool_work_and_ask_its_state(reactor):
    seen = queue.SimpleQueue()

    def busy(_):
        pool.callInThread(seen.put, pool.monitor.state)

    pool = BusyThreadPool(1, 1, on_busy=busy, reactor=reactor)
    pool.start()
    held = threading.Event()
    pool.callInThread(held.wait, DEADLINE)
    pool.callInThread(lambda: None)
    reactor.caught_up()
    held.set()
    assert seen.get(timeout=DEADLINE) is BUSY
    pool.stop()
    assert pool.read()[:2] == (0, 0)


def test_a_job_that_raises_is_counted_like_any_other(pool):
    results = queue.SimpleQueue()

    def raising():
        raise KeyError("the job's own fault")

    for _ in range(50):
        pool.callInThreadWithCallback(lambda *result: results.put(result), raising)
    for _ in range(50):
        success, failure = results.get(timeout=DEADLINE)
        assert not success
        assert failure.check(KeyError)
    settled(pool, 0, 0)


def test_a_job_is_finished_before_its_result_is_told(pool):
    seen = queue.SimpleQueue()
    pool.callInThreadWithCallback(lambda *result: seen.put((pool.read(), result)), pow, 2, 5)
    load, result = seen.get(timeout=DEADLINE)
    assert (load.queued, load.active) == (0, 0)
    assert result == (True, 32)


def test_arguments_reach_the_job(pool):
    seen = queue.SimpleQueue()
    pool.callInThread(lambda *a, **k: seen.put((a, k)), 1, 2, three=3)
    assert seen.get(timeout=DEADLINE) == ((1, 2), {"three": 3})


def test_a_job_of_a_pool_that_is_not_started_waits_for_it(reactor):
    pool = BusyThreadPool(0, 2, reactor=reactor)
    seen = queue.SimpleQueue()
    for n in range(3):
        pool.callInThread(seen.put, n)
    assert pool.read()[:3] == (1, 2, 2)
    assert pool.monitor.state is BUSY
    pool.start()
    assert {seen.get(timeout=DEADLINE) for _ in range(3)} == {0, 1, 2}
    settled(pool, 0, 0)
    assert pool.monitor.state is FREE
    pool.stop()


def test_work_for_a_pool_that_is_stopped_is_dropped_and_not_counted(pool):
    pool.callInThread(lambda: None)
    pool.stop()
    pool.callInThread(lambda: None)
    assert pool.read()[:2] == (0, 0)


def test_a_thread_that_cannot_start_leaves_the_counts_right(reactor):
    pool = BusyThreadPool(0, 2, reactor=reactor)
    pool.start()

    def no_thread(*_, **__):
        raise RuntimeError("can't start new thread")

    pool.threadFactory = no_thread
    for _ in range(5):
        with pytest.raises(RuntimeError, match="can't start new thread"):
            pool.callInThread(lambda: None)
    assert pool.read()[:2] == (0, 0)
    assert pool.monitor.state is FREE
    del pool.threadFactory
    seen = queue.SimpleQueue()
    pool.callInThread(seen.put, "works again")
    assert seen.get(timeout=DEADLINE) == "works again"
    settled(pool, 0, 0)
    pool.stop()


def test_a_change_of_size_is_a_change_of_state(pool, reactor, told, hanging):
    for _ in range(4):
        pool.callInThread(hanging.wait, DEADLINE)
    settled(pool, 0, 4)
    pool.adjustPoolsize(0, 2)
    reactor.caught_up()
    assert [state for state, _ in told] == [BUSY]
    assert pool.read()[:3] == (2, 2, 2)
    pool.adjustPoolsize(maxthreads=8)
    reactor.caught_up()
    assert [state for state, _ in told] == [BUSY, FREE]
    assert pool.read()[:3] == (0, 4, 8)


def test_a_pickled_pool_comes_back_with_its_sizes_and_works(reactor):
    pool = pickle.loads(pickle.dumps(BusyThreadPool(1, 3, reactor=reactor)))
    assert (pool.min, pool.max) == (1, 3)
    assert pool.read() == Load(0, 0, 3)
    pool.start()
    seen = queue.SimpleQueue()
    pool.callInThread(seen.put, "done")
    assert seen.get(timeout=DEADLINE) == "done"
    settled(pool, 0, 0)
    pool.stop()


def test_the_service_time_counts_jobs_that_still_run(pool, hanging):
    done = threading.Event()
    pool.callInThread(done.set)
    assert done.wait(DEADLINE)
    settled(pool, 0, 0)
    for _ in range(4):
        pool.callInThread(hanging.wait, DEADLINE)
    settled(pool, 0, 4)
    first = pool.read().service
    until = time.monotonic() + DEADLINE
    while pool.read().service <= first + 0.05:
        assert time.monotonic() < until
        time.sleep(0.01)


# TwistedAdapter


def test_a_stock_pool_that_is_not_started_has_all_its_places():
    pool = ThreadPool(0, 2)
    adapter = TwistedAdapter(pool)
    assert adapter.read() == Load(0, 0, 2)
    seen = queue.SimpleQueue()
    for n in range(3):
        pool.callInThread(seen.put, n)
    assert adapter.read() == Load(1, 2, 2)
    pool.start()
    assert {seen.get(timeout=DEADLINE) for _ in range(3)} == {0, 1, 2}
    settled(adapter, 0, 0)
    pool.stop()
    assert adapter.read() == Load(0, 0, 2)


def test_an_adapter_follows_a_stock_pool_that_changes_its_size(hanging):
    pool = ThreadPool(0, 4)
    pool.start()
    adapter = TwistedAdapter(pool)
    for _ in range(4):
        pool.callInThread(hanging.wait, DEADLINE)
    settled(adapter, 0, 4)
    pool.adjustPoolsize(0, 3)
    assert adapter.read() == Load(1, 3, 3)
    hanging.set()
    pool.stop()


def test_an_adapter_reads_what_old_pools_show_in_public():
    """Twisted before 15.4 has no team; the legacy attributes are still there in every version."""
    adapter = TwistedAdapter(ThreadPool(0, 2))
    adapter._statistics = None
    assert adapter.read() == Load(0, 0, 2)


def test_an_adapter_wants_a_pool():
    with pytest.raises(TypeError, match="pool must be a twisted ThreadPool, not 7"):
        TwistedAdapter(7)
