"""What counts in gunicorn's workers holds to the adapters' contract."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from gunicorn.config import Config
from gunicorn.workers.gthread import ThreadWorker

from contracts.reader import CAPACITY, AdapterContract
from contracts.test_readers import Hanging
from wsgi_busyguard.adapters.gunicorn import GunicornAdapter
from wsgi_busyguard.adapters.gunicorn.pool import ConnectionPool


class ConnectionPoolStage(Hanging):
    """The executor of a guarded worker."""

    def __init__(self):
        super().__init__()
        self.adapter = self.pool = ConnectionPool(CAPACITY, max_queue=1000, max_wait=1000.0)
        self._sent = 0

    def submit(self):
        self._sent += 1
        self.pool.submit(self.hang, SimpleNamespace(sock=None))

    def close(self):
        for _ in range(self._sent):
            self.finish()
        self.pool.shutdown()


class StockWorkerStage(Hanging):
    """A stock worker, whose connections are taken in and seen off as its main loop would."""

    def __init__(self):
        super().__init__()
        cfg = Config()
        cfg.set("threads", CAPACITY)
        self.worker = ThreadWorker(1, os.getpid(), [], None, 30, cfg, None)
        self.worker.tpool = self.worker.get_thread_pool()
        self.adapter = GunicornAdapter(self.worker)
        self._sent = 0

    def submit(self):
        self._sent += 1
        self.worker.nr_conns += 1
        self.worker.tpool.submit(self.hang).add_done_callback(self._finish_request)

    def _finish_request(self, future):
        self.worker.nr_conns -= 1

    def close(self):
        for _ in range(self._sent):
            self.finish()
        self.worker.tpool.shutdown()
        self.worker.tmp.close()


@pytest.fixture(params=[ConnectionPoolStage, StockWorkerStage])
def stage(request):
    stage = request.param()
    yield stage
    stage.close()


class TestEveryAdapter(AdapterContract):
    """Both of the above."""


def test_other_workers_are_a_mistake():
    with pytest.raises(TypeError, match="expected a gthread or a sync worker, not 'gevent'"):
        GunicornAdapter("gevent")


def test_what_is_kept_alive_or_silent_is_not_inside():
    stage = StockWorkerStage()
    stage.worker.nr_conns = 5
    stage.worker.keepalived_conns.extend("abc")
    stage.worker.pending_conns.append("d")
    assert stage.adapter.read()[:2] == (0, 1)
    stage.close()


def test_a_worker_whose_names_moved_is_unknown_and_no_guess():
    stage = StockWorkerStage()
    del stage.worker.keepalived_conns
    with pytest.raises(AttributeError):
        stage.adapter.read()
    stage.close()
