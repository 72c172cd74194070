"""A counting executor with real threads: jobs in any order, and what is promised of each."""

from __future__ import annotations

import functools
import sys
import threading
from concurrent.futures import CancelledError

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.client import eventually

from wsgi_busyguard import Gate
from wsgi_busyguard.adapters.executor import CountingExecutor, QueueFull, QueueTimeout, executor
from wsgi_busyguard.adapters.executor.carriers import AbandonedJob

WORKERS = 3
ENDS = ("returns", "raises", "for nobody", "callback raises")


class Work:
    """A job that begins, and ends when and how it is told to."""

    def __init__(self):
        self.began, self.go = threading.Event(), threading.Event()
        self.end = "returns"
        self.future = None

    def __call__(self):
        assert not self.began.is_set(), "it runs twice"
        self.began.set()
        assert self.go.wait(60)
        if self.end == "raises":
            raise KeyError(self.end)
        if self.end == "for nobody":
            raise AbandonedJob
        return self

    @property
    def runs(self):
        return self.began.is_set() and not self.future.done()


class ExecutorMachine(RuleBasedStateMachine):
    """Jobs come, end, are cancelled, time out; the executor is resized, drained and shut down."""

    def __init__(self):
        super().__init__()
        self.now = 100.0
        clocked = functools.partial(Gate, clock=lambda: self.now)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(executor, "Gate", clocked)
            options = {"client_timeout": 2.0, "adaptive": False, "ticker": False}
            self.executor = CountingExecutor(WORKERS, **options)
        self.gate = self.executor.gate
        self.interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        self.jobs = []
        self.came = self.not_taken = self.for_nobody = 0
        self.counted = [0] * len(self.gate.counts().flat())

    def settle(self):
        """Wait until all that have a slot have begun."""
        eventually(lambda: sum(job.runs for job in self.jobs) == self.gate.read().active, every=0)

    @rule(count=st.integers(1, 8))
    def submit(self, count):
        for _ in range(count):
            job = Work()
            self.came += 1
            try:
                job.future = self.executor.submit(job)
            except QueueFull:
                self.not_taken += 1
                assert not job.began.is_set()
                continue
            self.jobs.append(job)
        self.settle()

    @precondition(lambda self: any(job.runs for job in self.jobs))
    @rule(data=st.data(), end=st.sampled_from(ENDS))
    def finish(self, data, end):
        job = data.draw(st.sampled_from([job for job in self.jobs if job.runs]))
        assert not job.future.cancel()
        if end == "callback raises":
            job.future.add_done_callback(lambda _: 1 / 0)
        job.end = end
        alone = not self.waiting()
        job.go.set()
        error = job.future.exception(60)
        if alone:  # else the slot is the next one's by now
            active = self.gate.read().active
            assert active == sum(job.runs for job in self.jobs), "its result came before its slot"
        expected = {"raises": KeyError, "for nobody": AbandonedJob}.get(end, type(None))
        assert type(error) is expected
        assert error or job.future.result() is job
        self.for_nobody += end == "for nobody"
        self.settle()

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def cancel(self, data):
        job = data.draw(st.sampled_from(self.waiting()))
        assert job.future.cancel()
        self.settle()

    def waiting(self):
        return [job for job in self.jobs if not job.began.is_set() and not job.future.done()]

    @rule(seconds=st.sampled_from([0.01, 0.5, 2.5, 86400.0]))
    def wait(self, seconds):
        self.now += seconds
        self.executor.expire()
        self.settle()

    @rule(slots=st.integers(1, WORKERS))
    def resize(self, slots):
        self.gate.resize(slots)
        self.settle()

    @precondition(lambda self: self.came > 30)
    @rule()
    def drain(self):
        self.gate.drain()

    @invariant()
    def no_more_run_than_may(self):
        assert sum(job.runs for job in self.jobs) <= self.gate.slots <= WORKERS

    @invariant()
    def nothing_waits_while_a_thread_may_run_it(self):
        assert not self.waiting() or sum(job.runs for job in self.jobs) >= self.gate.wanted

    @invariant()
    def who_is_refused_or_cancelled_has_not_run(self):
        for job in self.jobs:
            if job.future.done() and not job.began.is_set():
                assert job.future.cancelled() or isinstance(job.future.exception(), QueueTimeout)

    @invariant()
    def each_is_counted_once(self):
        counts = self.gate.counts()
        over = [job for job in self.jobs if job.future.done()]
        ran = sum(job.began.is_set() for job in over)
        cancelled = sum(job.future.cancelled() for job in over)
        refused = len(over) - ran - cancelled
        assert counts.served == ran - self.for_nobody
        assert counts.dropped == cancelled + self.for_nobody
        assert sum(counts.refused) == self.not_taken + refused
        assert self.gate.read().queued == len(self.waiting())

    @invariant()
    def no_number_ever_goes_down(self):
        before, self.counted = self.counted, self.gate.counts().flat()
        assert all(is_ >= was for is_, was in zip(self.counted, before, strict=True))

    def teardown(self):
        """Shut down: whatever was taken ends, and nothing more is taken meanwhile."""
        for job in self.waiting()[:1]:
            job.future.cancel()  # the thread that would have run it could run another one
        self.executor.shutdown(wait=False)
        with pytest.raises(RuntimeError):
            self.executor.submit(Work())
        ender = threading.Thread(target=self.executor.shutdown)
        ender.start()
        for job in self.jobs:
            job.go.set()
        ender.join(60)
        sys.setswitchinterval(self.interval)
        assert not ender.is_alive(), "it does not shut down"
        for job in self.jobs:
            try:
                assert isinstance(job.future.exception(0), (type(None), Exception))
            except CancelledError:
                assert not job.began.is_set()
        assert self.gate.empty


ExecutorMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
test_the_executor_keeps_what_it_promises = pytest.mark.slow(ExecutorMachine.TestCase)
