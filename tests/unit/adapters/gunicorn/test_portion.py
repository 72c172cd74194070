"""What of the kernel's queue counts for one of gunicorn's workers."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from wsgi_busyguard import Load
from wsgi_busyguard.adapters.gunicorn import GunicornAdapter
from wsgi_busyguard.adapters.gunicorn.hub_load import RATE_SECONDS, HubLoad
from wsgi_busyguard.adapters.gunicorn.worker import HostLoad

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel does not tell")


@pytest.fixture
def listener(until):
    """A listener at which seven wait."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=16))
        for _ in range(7):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        yield listener


def worker(listener, workers=3, reuse_port=False):
    cfg = SimpleNamespace(workers=workers, reuse_port=reuse_port, threads=1)
    return SimpleNamespace(cfg=cfg, sockets=[listener], run_for_one=None)


@pytest.mark.parametrize(
    ("workers", "reuse_port", "share"), [(1, False, 7), (3, False, 2), (3, True, 7), (9, False, 0)]
)
def test_of_a_stock_worker(listener, workers, reuse_port, share):
    adapter = GunicornAdapter(worker(listener, workers, reuse_port))
    assert adapter.read().queued == 7
    assert adapter.portion()[:3] == (share, 0, 1)


@pytest.mark.parametrize("awake", [0, 1, 3])
def test_of_a_guarded_worker_by_how_many_are_awake(listener, adapter, awake):
    adapter.load = Load(0, 1, 1, 0.0, 0.5)
    board = SimpleNamespace(awake=lambda: dict.fromkeys(range(awake)))
    publisher = SimpleNamespace(adapter=adapter, board=board, shared=board)
    load = HostLoad(publisher, worker(listener)).portion()
    assert load == Load(7 // max(1, awake), 1, 1, 0.0, 0.5)


def test_where_each_has_a_queue_of_its_own_that_is_in_its_own_figures(listener, adapter):
    adapter.load = Load(4, 1, 1)
    publisher = SimpleNamespace(adapter=adapter, shared=None)
    assert HostLoad(publisher, worker(listener, reuse_port=True)).portion() == Load(4, 1, 1)


def hub(clock, adapter):
    return HubLoad(adapter.read, clock)


def test_a_hub_that_computes_is_as_fast_as_one_after_the_other(clock, adapter):
    load = hub(clock, adapter)
    adapter.load = Load(50, 1, 1000)
    load.read()
    for _ in range(200):
        clock.now += 0.02
        load.admitted += 1
        seen = load.read()
    assert seen.delay == pytest.approx(50 * 0.02, rel=0.05)


def test_a_hub_that_has_just_begun_with_a_burst_takes_it_in_at_once(clock, adapter):
    load = hub(clock, adapter)
    adapter.load = Load(400, 0, 1000)
    assert load.read().delay == 0
    for active in range(1, 100):
        clock.now += 0.0005
        load.admitted += 1
        adapter.load = Load(400 - active, active, 1000)
        assert load.read().delay < 0.2


def test_what_it_did_a_while_ago_counts_for_less_and_less(clock, adapter):
    load = hub(clock, adapter)
    adapter.load = Load(50, 1, 1000)
    load.read()
    for seconds in (0.001, 0.1):
        for _ in range(int(10 * RATE_SECONDS / seconds)):
            clock.now += seconds
            load.admitted += 1
            seen = load.read()
    assert seen.delay == pytest.approx(50 * 0.1, rel=0.2)


def test_nothing_is_known_of_it_while_nobody_waits(clock, adapter):
    load = hub(clock, adapter)
    for unknown in (None, Load(0, 3, 1000), Load(3, 3, None)):
        adapter.load = unknown
        assert load.read() is unknown
