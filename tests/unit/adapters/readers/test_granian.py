"""granian's metrics are a stand-in here; tests/servers/test_gate_anywhere.py has real ones."""

from __future__ import annotations

import functools
import multiprocessing
import socketserver
import sys
import threading
import types

import pytest
from contracts.reader import CAPACITY, AdapterContract

from wsgi_busyguard import BusyGuard, Load
from wsgi_busyguard.adapters.detect import find
from wsgi_busyguard.adapters.readers import granian
from wsgi_busyguard.adapters.readers.granian import GranianAdapter


class Metrics:
    """A metrics port that tells what it is told to, at each look a second older."""

    def __init__(self):
        self.age = self.queued = 0
        self.told = None
        metrics = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                while self.rfile.readline().strip():
                    pass
                self.wfile.write(metrics.answer())

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def answer(self):
        if self.told is not None:
            return self.told
        self.age += 1
        lines = [
            f'granian_worker_lifetime{{worker="{worker}"}} {self.age}\n'
            f'granian_blocking_threads{{worker="{worker}"}} 1\n'
            f'granian_blocking_queue{{worker="{worker}"}} {queued}\n'
            for worker, queued in ((1, self.queued), (2, 5), (11, 7))
        ]
        body = "".join(lines).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(20)


class GranianStage:
    """Counters by itself, and has the adapter look whenever something has changed."""

    def __init__(self):
        self.metrics = Metrics()
        self._outstanding = 0
        self.adapter = GranianAdapter(
            CAPACITY, port=self.metrics.port, active=lambda: min(self._outstanding, CAPACITY)
        )
        self.adapter._metrics = self.metrics.answer  # without the way there, which takes a thread

    def submit(self):
        self._move(1)

    def finish(self):
        self._move(-1)

    def _move(self, by):
        self._outstanding += by
        self.metrics.queued = max(0, self._outstanding - CAPACITY)
        self.adapter.look()

    def close(self):
        self.adapter.stop()
        self.metrics.close()


@pytest.fixture
def stage():
    stage = GranianStage()
    yield stage
    stage.close()


class TestTheAdapter(AdapterContract):
    """That which reads granian's metrics."""


@pytest.fixture
def metrics():
    metrics = Metrics()
    yield metrics
    metrics.close()


@pytest.fixture
def reader(metrics, monkeypatch, clock):
    """Makes an adapter that looks only when told to, and whose time goes on only when told to."""
    monkeypatch.setattr(granian.Beat, "start", lambda self: None)
    monkeypatch.setattr(granian.time, "monotonic", clock)
    return lambda worker=1, active=4: GranianAdapter(4, worker, metrics.port, active=lambda: active)


def test_each_worker_has_figures_of_its_own(reader):
    workers = [reader(worker) for worker in (1, 2, 11)]
    for worker in workers:
        worker.look()
    assert [worker.read().queued for worker in workers] == [0, 5, 7]


def test_while_a_thread_is_free_nobody_waits_whatever_was_told(reader):
    adapter = reader(2, active=3)
    adapter.look()
    assert adapter.read() == Load(0, 3, 4)


def test_what_has_not_been_told_anew_for_long_is_unknown(reader, metrics, clock):
    adapter = reader()
    assert adapter.read() == Load(0, 4, 4)
    metrics.queued = 9
    adapter.look()
    metrics.told = metrics.answer()
    adapter.look()
    assert adapter.read() == Load(9, 4, 4)
    clock.now += 2.4
    adapter.look()
    assert adapter.read() == Load(9, 4, 4)
    clock.now += 0.2
    adapter.look()
    assert adapter.read() is None
    metrics.told = None
    adapter.look()
    assert adapter.read() == Load(9, 4, 4)


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"junk",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 200 OK\r\n\r\ngranian_worker_lifetime{worker="1"} 3\n',
        b'HTTP/1.1 200 OK\r\n\r\ngranian_worker_lifetime{worker="1"} 3\n'
        b'granian_blocking_queue{worker="1"} NaN\n',
        b"HTTP/1.1 200 OK\r\n\r\n" + 2_000_000 * b"x",
    ],
    ids=lambda told: str(told[:60]),
)
def test_whatever_another_server_says_there_the_load_is_unknown(reader, metrics, clock, told):
    metrics.told = told
    adapter = reader()
    clock.now += 3
    adapter.look()
    assert adapter.read() is None


def test_where_nobody_listens_the_load_is_unknown(reader, clock):
    adapter = GranianAdapter(4, port=1)
    clock.now += 3
    adapter.look()
    assert adapter.read() is None


def test_it_looks_by_itself(metrics, until):
    metrics.queued = 9
    adapter = GranianAdapter(4, port=metrics.port, active=lambda: 4)
    try:
        until(lambda: adapter.read() == Load(9, 4, 4))
    finally:
        adapter.stop()
    assert repr(adapter) == f"<GranianAdapter of 4 threads, worker 1 at 127.0.0.1:{metrics.port}>"


def test_it_says_what_it_wanted():
    with pytest.raises(ValueError, match="capacity must be at least 1, not 0"):
        GranianAdapter(0)
    with pytest.raises(ValueError, match="worker must be at least 1, not 0"):
        GranianAdapter(4, 0)


# Which worker this is


class Main:
    """The main process's settings, of which a worker that was forked has a copy."""

    metrics_port, metrics_address = 1, "127.0.0.9"


@pytest.fixture
def worker(monkeypatch):
    """Makes this process a worker, as granian's main process would."""

    def worker(metrics, module="granian.server.mp"):
        def _spawn_wsgi_worker(worker_id, callback, blocking_threads, http1_settings, metrics):
            """Take what granian's own takes, and in that order."""

        @functools.wraps(_spawn_wsgi_worker)
        def wrapped(worker_id, process_name, callback_loader, env_files, *args):
            """Take what multiprocessing gives it, as granian's own wrapper does."""

        wrapped.__module__ = module
        args = (3, "name", None, (), 8, None, (metrics, None))
        process = types.SimpleNamespace(_target=wrapped, _args=args)
        monkeypatch.setattr(multiprocessing, "current_process", lambda: process)

    monkeypatch.setattr(granian.Beat, "start", lambda self: None)
    return worker


@pytest.mark.parametrize(
    ("metrics", "forked", "why"),
    [
        (1, True, None),
        (15, True, "--metrics --metrics-scrape-interval 1"),
        (None, True, "--metrics --metrics-scrape-interval 1"),
        (1, False, "does not say where its metrics are"),
    ],
)
def test_it_is_told_by_what_the_process_was_given(worker, monkeypatch, metrics, forked, why):
    common = types.ModuleType("granian.server.common")
    common.AbstractServer = Main
    monkeypatch.setitem(sys.modules, "granian.server.common", common)
    worker(metrics)
    main = Main() if forked else None
    server = find({})
    del main
    assert (server.name, server.threads) == ("granian", 8)
    if why is None:
        assert not server.counts_checks
        assert repr(server.adapter()) == "<GranianAdapter of 8 threads, worker 3 at 127.0.0.9:1>"
    else:
        assert server.adapter is None
        assert why in server.why


def test_a_process_of_somebody_else_is_no_granian(worker):
    assert find({}) is None
    worker(1, module="hypercorn.run")
    assert find({}) is None


def test_who_is_in_the_app_is_who_is_inside_a_guard(metrics, environ, start, until):
    go_on = threading.Event()
    adapter = GranianAdapter(4, port=metrics.port)
    guard = BusyGuard(lambda environ, start_response: [go_on.wait(20)])
    for _ in range(2):
        start(guard, environ("GET", "/x"), print)
    until(lambda: adapter.read() == Load(0, 2, 4))
    go_on.set()
    until(lambda: adapter.read() == Load(0, 0, 4))
    adapter.stop()
