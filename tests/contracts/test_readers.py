from __future__ import annotations

import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cheroot.wsgi import Server
from twisted.python.threadpool import ThreadPool
from waitress import create_server
from waitress.trigger import trigger
from waitress.wasyncore import close_all

from contracts.reader import CAPACITY, DEADLINE, AdapterContract
from wsgi_busyguard import Board, BusyGuard, Gate, Load
from wsgi_busyguard.adapters import cheroot, waitress
from wsgi_busyguard.adapters.acceptqueue import AcceptQueueAdapter
from wsgi_busyguard.adapters.executor import CountingExecutor
from wsgi_busyguard.adapters.readers.threadpool import ThreadPoolAdapter
from wsgi_busyguard.adapters.twisted import BusyThreadPool, GuardedWSGIResource, TwistedAdapter
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.gate import Slot, Ticket

# No limit is ever reached, and a look that takes the interpreter takes no slot.
LOOSE = {"max_queue": 500, "max_wait": 1000.0, "adaptive": False}


class FakeStage:
    """Counters by itself: what the unit tests use in place of a server."""

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

    def addSystemEventTrigger(self, *_):  # noqa: N802
        """It never ends."""


class LateGateStage:
    """A guarded resource's own adapter, with tickets as its requests have them."""

    def __init__(self):
        pool = ThreadPool(0, CAPACITY)
        resource = GuardedWSGIResource(AtOnce(), pool, print, **LOOSE)
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


class ExecutorStage(Hanging):
    def __init__(self):
        super().__init__()
        self.adapter = self.executor = CountingExecutor(CAPACITY, **LOOSE)
        self._sent = 0

    def submit(self):
        self._sent += 1
        self.executor.submit(self.hang)

    def close(self):
        for _ in range(self._sent):
            self.finish()
        self.executor.shutdown()


class StockExecutorStage(Hanging):
    """An executor of the standard library that runs a guarded app, as ASGI bridges do."""

    def __init__(self):
        super().__init__()
        self._executor = ThreadPoolExecutor(CAPACITY)
        self.adapter = ThreadPoolAdapter(self._executor)
        self._guard = BusyGuard(lambda environ, start_response: [self.hang()])
        self._sent = 0

    def submit(self):
        self._sent += 1
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/page", "busyguard.monitor": None}
        self._executor.submit(self._guard, environ, print)

    def close(self):
        for _ in range(self._sent):
            self.finish()
        self._executor.shutdown()


class AcceptQueueStage(Hanging):
    """A server that accepts only when it can serve, as gunicorn's sync workers do."""

    def __init__(self):
        super().__init__()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._listener.settimeout(0.01)
        self._clients = []
        self._lock = threading.Lock()
        self._active = 0
        self._stopping = False
        self.adapter = AcceptQueueAdapter([self._listener], CAPACITY, lambda: self._active)
        self._threads = [threading.Thread(target=self._serve) for _ in range(CAPACITY)]
        for thread in self._threads:
            thread.start()

    def submit(self):
        self._clients.append(socket.create_connection(self._listener.getsockname()))

    def close(self):
        self._stopping = True
        for _ in self._clients:
            self.finish()
        for thread in self._threads:
            thread.join(DEADLINE)
        for client in self._clients:
            client.close()
        self._listener.close()

    def _serve(self):
        while not self._stopping:
            try:
                accepted, _ = self._listener.accept()
            except TimeoutError:
                continue
            self._count(1)
            self.hang()
            self._count(-1)
            accepted.close()

    def _count(self, change):
        with self._lock:
            self._active += change


class BoardStage(GateStage):
    """A gate whose process is the only one that posts on a board."""

    def __init__(self):
        super().__init__()
        self.adapter = Publisher(Board(), self.gate)
        self.adapter.join()
        self.adapter.ready()


class ServedStage(Hanging):
    """A server with real clients, each of which hangs in the app."""

    def __init__(self):
        super().__init__()
        self._lines = []
        port = self.serve()
        self._address = "127.0.0.1", port
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()

    def app(self, environ, start_response):
        self.hang()
        start_response("200 OK", [("Content-Length", "0")])
        return []

    def submit(self):
        line = socket.create_connection(self._address, DEADLINE)
        line.sendall(b"GET /app HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self._lines.append(line)

    def close(self):
        for _ in self._lines:
            self.finish()
        self.stop()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        for line in self._lines:
            line.close()


class WaitressStage(ServedStage):
    def serve(self):
        self._sockets = {}
        self.server = create_server(
            self.app, map=self._sockets, threads=CAPACITY, host="127.0.0.1", port=0
        )
        self.adapter = waitress.WaitressAdapter(self.server)
        self._ends = trigger(self._sockets)
        return self.server.effective_port

    def run(self):
        self.server.run()

    def stop(self):
        self._ends.pull_trigger(lambda: close_all(self._sockets, ignore_all=True))
        self._thread.join(DEADLINE)
        self.server.task_dispatcher.shutdown()


class GuardedWaitressStage(ServedStage):
    def serve(self):
        self.server = waitress.guarded_server(
            self.app, threads=CAPACITY, host="127.0.0.1", port=0, **LOOSE
        )
        self.adapter = self.server.guard.monitor.adapter
        return self.server.effective_port

    def run(self):
        self.server.run()

    def stop(self):
        self.server.guard.drain(0.01)


class CherootStage(ServedStage):
    def serve(self):
        self.server = Server(
            ("127.0.0.1", 0), self.app, numthreads=CAPACITY, request_queue_size=128
        )
        self.server.expiration_interval = 0.02  # how often it looks whether it is to stop
        self.adapter = cheroot.CherootAdapter(self.server)
        self.server.prepare()
        return self.server.bind_addr[1]

    def run(self):
        self.server.serve()

    def stop(self):
        self.server.stop()


class GuardedCherootStage(CherootStage):
    def serve(self):
        self.server = cheroot.guarded_server(self.app, ("127.0.0.1", 0), threads=CAPACITY, **LOOSE)
        self.server.expiration_interval = 0.02
        self.adapter = self.server.guard.monitor.adapter
        self.server.prepare()
        return self.server.bind_addr[1]


STAGES = [
    *(FakeStage, GateStage, BusyPoolStage, StockPoolStage, LateGateStage),
    *(ExecutorStage, StockExecutorStage, AcceptQueueStage, BoardStage),
    *(WaitressStage, GuardedWaitressStage, CherootStage, GuardedCherootStage),
]


@pytest.fixture(params=STAGES)
def stage(request):
    stage = request.param()
    yield stage
    stage.close()


class TestEveryAdapter(AdapterContract):
    """Each of the adapters above."""
