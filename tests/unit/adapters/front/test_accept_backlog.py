"""Who stands in the kernel's queue of a server that accepts nobody."""

from __future__ import annotations

import contextlib
import socket

import pytest

from wsgi_busyguard import Gate, Load, Monitor, State
from wsgi_busyguard.adapters.front import accept_backlog as standing
from wsgi_busyguard.adapters.front.accept_backlog import StandingQueue
from wsgi_busyguard.adapters.front.threaded import ThreadedFront


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(standing, "time", clock)
    return clock


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def queue(listener):
    return StandingQueue(lambda: [listener])


@pytest.fixture
def connect(listener):
    """Connects so often."""
    with contextlib.ExitStack() as stack:

        def connect(times=1):
            for _ in range(times):
                stack.enter_context(socket.create_connection(listener.getsockname()))

        yield connect


def test_who_stands_there_is_queued_and_the_loop_is_late_by_as_long(queue, clock, connect):
    connect(3)
    queue.look()
    clock.now += 2.0
    queue.look()
    assert queue.added(Load(1, 2, 2, lag=0.1)) == Load(4, 2, 2, lag=2.0)
    assert queue.added(Load(0, 0, 2, lag=5.0)) == Load(3, 0, 2, lag=5.0)


def test_who_has_just_come_is_not(queue, clock, connect):
    connect(3)
    assert queue.added(Load(0, 0, 2)) == Load(0, 0, 2)  # before the first look
    queue.look()
    clock.now += 0.2
    assert queue.added(Load(0, 0, 2)) == Load(0, 0, 2)


def test_a_queue_that_shrinks_or_has_gone_does_not_stand(queue, clock, connect, listener):
    connect(3)
    queue.look()
    clock.now += 2.0
    listener.accept()[0].close()
    queue.look()
    assert queue.added(Load(0, 0, 2)) == Load(0, 0, 2)
    clock.now += 0.5
    connect(2)
    queue.look()
    assert queue.added(Load(0, 0, 2)) == Load(4, 0, 2, lag=0.5)
    for _ in range(4):
        listener.accept()[0].close()
    assert queue.added(Load(0, 0, 2)) == Load(0, 0, 2)  # looked at, also between two beats
    queue.look()
    clock.now += 5.0
    assert queue.added(Load(0, 0, 2)) == Load(0, 0, 2)


def test_an_adapter_can_do_with_it_what_it_can_without(queue):
    gate = Gate(2)
    outside = queue.before(gate)
    monitor = Monitor(outside)
    gate.enter()
    assert outside.counts() == gate.counts()
    assert monitor.load == Load(0, 1, 2, service=monitor.load.service)
    assert repr(gate) in repr(outside)


def test_a_front_that_accepts_nobody_is_busy_and_after_its_patience_not_ready(
    clock, connect, listener
):
    class Idle(ThreadedFront):
        def listeners(self):
            return [listener]

    front = Idle(4)
    front.gate.leave(front.gate.enter())  # so it knows how long one takes
    assert front.monitor.check("damped", 2.0)[:2] == ("free", True)
    connect()
    front.beat()
    clock.now += 1.0
    front.beat()
    assert front.monitor.state is State.BUSY
    assert front.monitor.check("exact", 2.0)[:2] == ("busy", False)
    assert front.monitor.check("damped", 2.0)[:2] == ("busy", True)
    clock.now += 1.5
    assert front.monitor.check("damped", 2.0)[:2] == ("busy", False)
    listener.accept()[0].close()
    front.beat()
    assert front.monitor.check("damped", 2.0)[:2] == ("free", True)
