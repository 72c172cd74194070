from __future__ import annotations

import queue
import threading

import pytest
from twisted.python.threadpool import ThreadPool

from wsgi_busyguard import Gate, Load
from wsgi_busyguard.adapters.frames import FrameAdapter
from wsgi_busyguard.adapters.twisted import BusyThreadPool, GuardedWSGIResource, TwistedAdapter
from wsgi_busyguard.gate import Slot, Ticket

from .contract import CAPACITY, DEADLINE, AdapterContract, settled


class FakeStage:
    """Counts by itself: what the unit tests use in place of a server."""

    def __init__(self):
        self.adapter = self
        self._outstanding = 0

    def submit(self):
        self._outstanding += 1

    def finish(self):
        self._outstanding -= 1

    def read(self):
        outstanding = self._outstanding
        active = min(outstanding, CAPACITY)
        return Load(outstanding - active, active, CAPACITY)

    def close(self):
        pass

    def __repr__(self):
        return "<a fake>"


class Hanging:
    """Jobs that run until they are let go, one by one."""

    def __init__(self):
        self._leave = queue.SimpleQueue()

    def hang(self, *_):
        self._leave.get(timeout=DEADLINE)

    def finish(self):
        self._leave.put(None)


class GateStage(Hanging):
    """Threads that go through a gate."""

    def __init__(self):
        super().__init__()
        self.adapter = self.gate = Gate(CAPACITY, 1000, 1000.0)
        self._threads = []

    def submit(self):
        thread = threading.Thread(target=self._visit, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _visit(self):
        slot = self.gate.enter()
        try:
            self.hang()
        finally:
            self.gate.leave(slot)

    def close(self):
        for _ in self._threads:
            self.finish()
        for thread in self._threads:
            thread.join(DEADLINE)


class BusyPoolStage(Hanging):
    def __init__(self):
        super().__init__()
        self.pool = BusyThreadPool(0, CAPACITY, reactor=AtOnce())
        self.pool.start()
        self.adapter = self.pool
        self._sent = 0

    def submit(self):
        self._sent += 1
        self.pool.callInThread(self.hang)

    def close(self):
        for _ in range(self._sent):
            self.finish()
        self.pool.stop()


class StockPoolStage(BusyPoolStage):
    def __init__(self):
        Hanging.__init__(self)
        self.pool = ThreadPool(0, CAPACITY)
        self.pool.start()
        self.adapter = TwistedAdapter(self.pool)
        self._sent = 0


class AtOnce:
    """A reactor that does everything at once, in the thread that asks."""

    def callFromThread(self, call, *arguments):  # noqa: N802
        call(*arguments)

    def callWhenRunning(self, call):  # noqa: N802
        """The beat does not start, so nothing is late."""


class LateGateStage:
    """A guarded resource's own adapter, with tickets as its requests have them."""

    def __init__(self):
        pool = ThreadPool(0, CAPACITY)
        resource = GuardedWSGIResource(AtOnce(), pool, print, max_queue=1000, max_wait=1000.0)
        self.gate = resource.gate
        self.adapter = resource.monitor.adapter
        self._inside = queue.SimpleQueue()

    def submit(self):
        ticket = Ticket(lambda ticket: self._inside.put(ticket.outcome))
        outcome = self.gate.offer(ticket)
        if isinstance(outcome, Slot):
            self._inside.put(outcome)

    def finish(self):
        self.gate.leave(self._inside.get(timeout=DEADLINE))

    def close(self):
        pass


@pytest.fixture(params=[FakeStage, GateStage, BusyPoolStage, StockPoolStage, LateGateStage])
def stage(request):
    stage = request.param()
    yield stage
    stage.close()


class TestEveryAdapter(AdapterContract):
    """Each of the adapters above."""


def test_a_reader_of_frames_knows_who_is_inside_and_no_more():
    """It reads the calls that a guard makes, and so it is a guard that it is tried with."""
    from wsgi_busyguard import BusyGuard

    jobs = Hanging()
    inside = threading.Semaphore(0)

    def app(environ, start_response):
        inside.release()
        jobs.hang()
        return []

    guard = BusyGuard(app)
    adapter = guard.monitor.adapter
    assert isinstance(adapter, FrameAdapter)
    assert adapter.read() == Load(0, 0, None)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/page", "busyguard.monitor": None}
    threads = [threading.Thread(target=guard, args=(environ, print)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert inside.acquire(timeout=DEADLINE)
    assert adapter.read() == Load(0, 3, None)
    for _ in threads:
        jobs.finish()
    for thread in threads:
        thread.join(DEADLINE)
    settled(adapter, 0, 0)
