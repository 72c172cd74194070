"""What every adapter holds to, whichever server it reads: subclass and give a ``stage`` fixture.

A stage is a server of ``CAPACITY`` slots with the adapter that reads it: ``submit()`` gives it a
job that runs until ``finish()`` lets one go, ``close()`` ends it.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from wsgi_busyguard import Load, Monitor, State

CAPACITY = 3

DEADLINE = 20.0


def settled(adapter, queued, active):
    """Wait until the adapter shows these figures, and return its load."""
    until = time.monotonic() + DEADLINE
    while True:
        load = adapter.read()
        if (load.queued, load.active) == (queued, active):
            return load
        assert time.monotonic() < until, f"still {load}, not {queued} queued, {active} active"
        time.sleep(0.002)


class AdapterContract:
    def test_an_idle_server_has_nothing_queued_and_nothing_active(self, stage):
        load = settled(stage.adapter, 0, 0)
        assert isinstance(load, Load)
        assert load.capacity == CAPACITY
        assert load.idle == CAPACITY
        assert load.waited == 0.0
        assert load.delay == 0.0

    @pytest.mark.parametrize("sent", [1, CAPACITY, CAPACITY + 1, 4 * CAPACITY])
    def test_of_n_sent_on_c_slots_c_are_active_and_the_rest_is_queued(self, stage, sent):
        for _ in range(sent):
            stage.submit()
        active = min(sent, CAPACITY)
        load = settled(stage.adapter, sent - active, active)
        assert load.idle == CAPACITY - active
        assert load.capacity == CAPACITY

    def test_everything_returns_to_zero(self, stage):
        for _ in range(2 * CAPACITY):
            stage.submit()
        settled(stage.adapter, CAPACITY, CAPACITY)
        for _ in range(2 * CAPACITY):
            stage.finish()
        settled(stage.adapter, 0, 0)

    def test_a_slot_that_becomes_free_goes_to_one_who_waits(self, stage):
        for _ in range(CAPACITY + 2):
            stage.submit()
        settled(stage.adapter, 2, CAPACITY)
        stage.finish()
        settled(stage.adapter, 1, CAPACITY)
        stage.finish()
        settled(stage.adapter, 0, CAPACITY)
        stage.finish()
        settled(stage.adapter, 0, CAPACITY - 1)

    def test_it_can_be_read_from_any_thread_and_each_look_is_possible(self, stage):
        wrong = []
        stop = threading.Event()

        def look():
            while not stop.is_set():
                load = stage.adapter.read()
                possible = load.queued >= 0 and 0 <= load.active <= load.capacity == CAPACITY
                if not possible or load.waited < 0:
                    wrong.append(load)

        with ThreadPoolExecutor(4) as lookers:
            looks = [lookers.submit(look) for _ in range(4)]
            for _ in range(10):
                for _ in range(2 * CAPACITY):
                    stage.submit()
                for _ in range(2 * CAPACITY):
                    stage.finish()
            stop.set()
            for done in looks:
                done.result(DEADLINE)
        assert wrong == []
        settled(stage.adapter, 0, 0)

    def test_a_look_never_blocks_while_every_slot_is_taken(self, stage):
        for _ in range(4 * CAPACITY):
            stage.submit()
        settled(stage.adapter, 3 * CAPACITY, CAPACITY)
        began = time.monotonic()
        for _ in range(100):
            stage.adapter.read()
        assert time.monotonic() - began < 2

    def test_a_look_leaves_no_trace(self, stage):
        for _ in range(CAPACITY + 1):
            stage.submit()
        settled(stage.adapter, 1, CAPACITY)
        looks = {stage.adapter.read()[:3] for _ in range(10)}
        assert looks == {(1, CAPACITY, CAPACITY)}

    def test_a_monitor_judges_it(self, stage):
        monitor = Monitor(stage.adapter)
        assert monitor.state is State.FREE
        for _ in range(CAPACITY):
            stage.submit()
        settled(stage.adapter, 0, CAPACITY)
        assert monitor.state is State.FREE
        stage.submit()
        settled(stage.adapter, 1, CAPACITY)
        assert monitor.state is State.BUSY
        stage.finish()
        settled(stage.adapter, 0, CAPACITY)
        assert monitor.state is State.BUSY
        stage.finish()
        settled(stage.adapter, 0, CAPACITY - 1)
        assert monitor.state is State.FREE

    def test_it_says_what_it_is(self, stage):
        assert " object at 0x" not in repr(Monitor(stage.adapter))
