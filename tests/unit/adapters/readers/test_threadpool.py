"""What the standard library's executor promises, asked of it and of the counting one alike."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import math
import sys
import threading
import time
import weakref
from concurrent.futures import BrokenExecutor, CancelledError, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool

import pytest
from contracts.reader import DEADLINE

from wsgi_busyguard.adapters.executor import CountingExecutor


def counting(*arguments, **keywords):
    return CountingExecutor(*arguments, **keywords, max_queue=math.inf, max_wait=math.inf)


def ticking(*arguments, **keywords):
    return CountingExecutor(*arguments, **keywords, max_queue=100_000, max_wait=1000.0)


@pytest.fixture(
    params=[ThreadPoolExecutor, counting, ticking], ids=["stock", "counting", "ticking"]
)
def make(request):
    """Makes an executor of one kind or the other; all are shut down."""
    made = weakref.WeakSet()

    def make(*arguments, **keywords):
        executor = request.param(*arguments, **keywords)
        made.add(executor)
        return executor

    yield make
    for executor in list(made):
        executor.shutdown(cancel_futures=True)


@pytest.fixture
def hang():
    event = threading.Event()
    yield event
    event.set()


def pool_threads(prefix):
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]


# Jobs


def test_a_job_gets_its_arguments_and_gives_its_result(make):
    def say(*args, **kwargs):
        return args, kwargs

    job = make(1).submit(say, 1, self=2, fn=3, job=4)
    assert job.result(DEADLINE) == ((1,), {"self": 2, "fn": 3, "job": 4})
    assert isinstance(job, concurrent.futures.Future)


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_a_job_raises_is_its_outcome_and_the_thread_goes_on(make, error):
    executor = make(1)

    def fail():
        raise error("so")

    job = executor.submit(fail)
    with pytest.raises(error, match="so"):
        job.result(DEADLINE)
    assert executor.submit(int).result(DEADLINE) == 0


def test_a_job_can_submit_another(make):
    executor = make(1)
    inner = executor.submit(lambda: executor.submit(int)).result(DEADLINE)
    assert inner.result(DEADLINE) == 0


def test_as_many_jobs_run_side_by_side_as_there_are_threads(make):
    together = threading.Barrier(7)
    executor = make(6)
    jobs = [executor.submit(together.wait, DEADLINE) for _ in range(12)]
    for _ in range(2):
        together.wait(DEADLINE)
    assert not [job for job in jobs if job.exception(DEADLINE)]


def test_jobs_are_begun_in_the_order_in_which_they_came(make, hang):
    executor = make(1)
    ran = []
    jobs = [executor.submit(hang.wait, DEADLINE)]
    jobs += [executor.submit(ran.append, number) for number in range(50)]
    hang.set()
    concurrent.futures.wait(jobs, DEADLINE)
    assert ran == list(range(50))


def test_an_idle_thread_is_used_again(make):
    executor = make(50, "again")
    for _ in range(20):
        executor.submit(int).result(DEADLINE)
    assert len(pool_threads("again")) < 10


def test_threads_carry_the_prefix(make):
    job = make(1, thread_name_prefix="bread").submit(lambda: threading.current_thread().name)
    assert job.result(DEADLINE) == "bread_0"


def test_neither_the_job_nor_its_arguments_are_kept_when_it_is_done(make, until):
    class Thing:
        def method(self, other):
            return None

        def fail(self, other):
            raise ZeroDivisionError

    gc.collect()
    gc.disable()  # so that nothing in a cycle would go
    try:
        for name in ("method", "fail"):
            thing, other = Thing(), Thing()
            gone = [weakref.ref(thing), weakref.ref(other)]
            job = make(1).submit(getattr(thing, name), other)
            concurrent.futures.wait([job], DEADLINE)
            if name == "method":
                del thing, other
                until(lambda gone=gone: [ref() for ref in gone] == [None, None])
            kept = weakref.ref(job)
            del job
            thing = other = None
            until(lambda gone=gone, kept=kept: [r() for r in (*gone, kept)] == [None] * 3)
    finally:
        gc.enable()


# map()


def test_map_gives_results_in_order(make):
    executor = make(4)
    assert list(executor.map(pow, range(40), [2] * 40)) == [n * n for n in range(40)]
    assert list(executor.map(int, [])) == []
    assert list(executor.map(pow, [1, 2, 3], [1, 2])) == [1, 4]


def test_map_raises_where_a_call_has_raised(make):
    results = make(2).map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert next(results) == (0, 1)
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_times_out_and_cancels_what_has_not_begun(make, hang):
    executor = make(1)
    ran = []
    results = executor.map(
        lambda work: work(), [int, lambda: hang.wait(DEADLINE), ran.append], timeout=0.05
    )
    got = []
    with pytest.raises(concurrent.futures.TimeoutError):
        got.extend(results)
    hang.set()
    executor.shutdown()
    assert ran == []


def test_map_has_submitted_everything_when_it_returns(make):
    executor = make(2)
    ran = []
    executor.map(ran.append, range(4))
    executor.shutdown()
    assert sorted(ran) == [0, 1, 2, 3]


# Cancelling


def test_a_job_that_has_not_begun_can_be_cancelled_and_never_runs(make, hang):
    executor = make(1)
    ran = []
    executor.submit(hang.wait, DEADLINE)
    job = executor.submit(ran.append, 1)
    assert job.cancel()
    assert job.cancel()
    assert job.cancelled()
    assert job.done()
    with pytest.raises(CancelledError):
        job.result(0)
    hang.set()
    executor.shutdown()
    assert ran == []


def test_a_job_that_runs_or_is_done_cannot_be_cancelled(make, hang, until):
    job = make(1).submit(hang.wait, DEADLINE)
    until(job.running)
    assert not job.cancel()
    hang.set()
    assert job.result(DEADLINE) is True
    assert not job.cancel()
    assert not job.cancelled()


def test_cancelled_jobs_are_waited_for_no_longer(make, hang):
    executor = make(1)
    executor.submit(hang.wait, DEADLINE)
    jobs = [executor.submit(int) for _ in range(3)]
    jobs[1].cancel()
    hang.set()
    done, left = concurrent.futures.wait(jobs, DEADLINE)
    assert (done, left) == (set(jobs), set())
    assert set(concurrent.futures.as_completed(jobs, DEADLINE)) == set(jobs)


def test_callbacks_are_called_whatever_becomes_of_the_job(make, hang):
    executor = make(1)
    called = []
    jobs = [
        executor.submit(hang.wait, DEADLINE),
        executor.submit(int),
        executor.submit(divmod, 1, 0),
    ]
    for job in jobs:
        job.add_done_callback(called.append)
    jobs[1].cancel()
    assert called == [jobs[1]]
    hang.set()
    executor.shutdown()
    assert called == [jobs[1], jobs[0], jobs[2]]


# Shutting down


def test_after_a_shutdown_nothing_is_taken(make):
    executor = make(1)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(int)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(int, [1])
    executor.shutdown()
    executor.shutdown(wait=False, cancel_futures=True)


def test_nothing_is_taken_after_a_shutdown_while_jobs_wait_either(make, hang):
    executor = make(1)
    for _ in range(3):
        executor.submit(hang.wait, DEADLINE)
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(int)


def test_a_shutdown_waits_for_every_job(make):
    executor = make(3, "down")
    jobs = [executor.submit(time.sleep, 0.002) for _ in range(30)]
    executor.shutdown()
    assert all(job.done() for job in jobs)
    assert pool_threads("down") == []


def test_a_with_block_does_so_too(make):
    with make(3, "with") as executor:
        jobs = [executor.submit(time.sleep, 0.002) for _ in range(30)]
    assert all(job.done() for job in jobs)
    assert pool_threads("with") == []


def test_a_shutdown_that_does_not_wait_loses_no_job(make, hang, until):
    executor = make(2, "later")
    jobs = [executor.submit(hang.wait, DEADLINE) for _ in range(9)]
    executor.shutdown(wait=False)
    assert not any(job.done() for job in jobs)
    hang.set()
    assert all(job.result(DEADLINE) for job in jobs)
    until(lambda: pool_threads("later") == [])


def test_a_shutdown_can_cancel_what_has_not_begun(make, hang, until):
    executor = make(2, "cancel")
    jobs = [executor.submit(hang.wait, DEADLINE) for _ in range(9)]
    until(lambda: sum(job.running() for job in jobs) == 2)
    executor.shutdown(wait=False, cancel_futures=True)
    assert [job.cancelled() for job in jobs] == [False] * 2 + [True] * 7
    hang.set()
    executor.shutdown()
    assert [job.result(DEADLINE) for job in jobs[:2]] == [True, True]
    assert pool_threads("cancel") == []


def test_a_job_can_shut_its_executor_down(make, hang):
    executor = make(1)
    executor.submit(hang.wait, DEADLINE)
    executor.submit(executor.shutdown, wait=False)
    last = executor.submit(int)
    hang.set()
    assert last.result(DEADLINE) == 0


# Letting go


def test_threads_end_when_nobody_has_the_executor_any_more(make, until):
    executor = make(3, "lost")
    assert list(executor.map(abs, [-1, -2])) == [1, 2]
    assert pool_threads("lost")
    del executor
    until(lambda: pool_threads("lost") == [])


def test_an_executor_that_was_let_go_of_still_runs_what_it_was_given(make, hang, until):
    executor = make(2, "gone")
    gone = weakref.ref(executor)
    jobs = [executor.submit(hang.wait, DEADLINE) for _ in range(9)]
    until(lambda: sum(job.running() for job in jobs) == 2)
    del executor
    assert gone() is None
    hang.set()
    assert all(job.result(DEADLINE) for job in jobs)
    until(lambda: pool_threads("gone") == [])


@pytest.mark.parametrize("kind", ["stock(2)", "counting(2, max_wait=1000.0)"])
@pytest.mark.parametrize("shut", ["", "executor.shutdown(wait=False)", "del executor"])
def test_what_was_submitted_runs_before_the_process_ends(python, kind, shut):
    said = python(
        f"""
        import threading
        from concurrent.futures import ThreadPoolExecutor as stock
        from wsgi_busyguard.adapters.executor import CountingExecutor as counting
        executor = {kind}
        over = threading.Event()
        def job(number):
            over.wait()
            print(str(number) + "\\n", end="", flush=True)
        for number in range(6):
            executor.submit(job, number)
        {shut}
        print("over", flush=True)
        over.set()
        """
    )
    assert said.split()[0] == "over"
    assert sorted(said.split()) == ["0", "1", "2", "3", "4", "5", "over"]


@pytest.mark.parametrize("kind", ["stock(1)", "counting(1)"])
def test_a_job_that_submits_itself_again_does_not_hold_up_the_end(python, kind):
    said = python(
        f"""
        import threading
        from concurrent.futures import ThreadPoolExecutor as stock
        from wsgi_busyguard.adapters.executor import CountingExecutor as counting
        executor = {kind}
        enough = threading.Event()
        ran = []
        def again():
            ran.append(1)
            if len(ran) == 100:
                enough.set()
            try:
                executor.submit(again)
            except RuntimeError as error:
                print(error)
        executor.submit(again)
        enough.wait(20)
        """
    )
    assert said == "cannot schedule new futures after interpreter shutdown\n"


# Initializers


def test_each_thread_is_initialized_once_before_its_first_job(make):
    here = threading.local()
    calls = []

    def initialize(one, two):
        calls.append((one, two))
        here.ready = True

    with make(3, initializer=initialize, initargs=(1, 2)) as executor:
        together = threading.Barrier(3)
        jobs = [executor.submit(lambda: (together.wait(DEADLINE), here.ready)[1]) for _ in range(9)]
        assert all(job.result(DEADLINE) for job in jobs)
    assert calls == [(1, 2)] * 3


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_an_initializer_that_raises_breaks_the_executor(make, caplog, error):
    go = threading.Event()

    def fail():
        go.wait(DEADLINE)
        raise error("so")

    executor = make(1, initializer=fail)
    jobs = [executor.submit(int) for _ in range(4)]
    go.set()
    for job in jobs:
        with pytest.raises(BrokenExecutor):
            job.result(DEADLINE)
        assert isinstance(job.exception(), BrokenThreadPool)
    with pytest.raises(BrokenThreadPool):
        executor.submit(int)
    executor.shutdown()
    records = [record for record in caplog.records if record.name == "concurrent.futures"]
    assert [record.getMessage() for record in records] == ["Exception in initializer:"]
    assert "so" in caplog.text


def test_wrong_arguments_are_refused(make):
    for number in (0, -1):
        with pytest.raises(ValueError, match="max_workers"):
            make(number)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        make(1, initializer=3)


# Loops


def test_a_loop_runs_jobs_in_it_and_shuts_it_down(make):
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(make(2, "loop"))
        jobs = [loop.run_in_executor(None, abs, -number) for number in range(20)]
        assert await asyncio.gather(*jobs) == list(range(20))
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(divmod, 1, 0)

    asyncio.run(main())
    assert pool_threads("loop") == []


def test_a_loop_can_stop_waiting_for_a_job(make, hang):
    async def main():
        loop = asyncio.get_running_loop()
        executor = make(1)
        running = loop.run_in_executor(executor, hang.wait, DEADLINE)
        ran = []
        waiting = loop.run_in_executor(executor, ran.append, 1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(waiting, 0.02)
        hang.set()
        await running
        await loop.run_in_executor(executor, int)
        assert ran == []

    asyncio.run(main())


def test_many_executors_at_once_come_and_go(make, hurry):
    for _ in range(50):
        with make(5) as executor:
            assert sum(executor.map(abs, range(20))) == 190


if sys.version_info >= (3, 14):  # pragma: no cover

    def test_map_with_a_buffer_submits_no_more_than_that_ahead(make):
        assert list(make(2).map(abs, range(100), buffersize=3)) == list(range(100))
