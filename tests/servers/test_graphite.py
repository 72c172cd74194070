"""A real carbon beside the senders."""

from __future__ import annotations

import os
import signal

import pytest
from support.client import eventually
from support.daemons import Carbon

from wsgi_busyguard import Gate, Monitor
from wsgi_busyguard.metrics import sender as sending
from wsgi_busyguard.metrics.graphite import Graphite, flat
from wsgi_busyguard.metrics.report import look


@pytest.fixture
def gate():
    return Gate(4, 2)


@pytest.fixture
def sender(gate):
    senders = []

    def send(port):
        to = f"127.0.0.1:{port}"
        named = {"prefix": "site.web1.{pid}", "threadpool": "threadpool"}
        senders.append(Graphite(Monitor(gate), to, every=0.1, **named).start())

    yield send
    for each in senders:
        each.stop()


def test_carbon_keeps_every_figure(started, tmp_path, gate, sender):
    carbon = started(Carbon, tmp_path)
    sender(carbon.port)
    for _ in range(3):
        gate.leave(gate.enter())
    gate.enter()
    begins = f"site.web1.{os.getpid()}."
    paths = {begins + path for path, _, _ in flat(look(Monitor(gate)), "threadpool")}
    eventually(lambda: carbon.files() >= paths)
    assert {file for file in carbon.files() if file.startswith("site.")} == paths
    eventually(lambda: carbon.last(begins + "served") == 3)
    assert carbon.last(begins + "threadpool.working") == 1
    assert carbon.last(begins + "threadpool.threads") == 4
    gate.enter()
    eventually(lambda: carbon.last(begins + "active") == 2)


def test_a_carbon_that_dies_is_found_again(started, tmp_path, gate, sender, monkeypatch, caplog):
    monkeypatch.setattr(sending, "LONGEST_RETRY_SECONDS", 0.2)
    carbon = started(Carbon, tmp_path)
    sender(carbon.port)
    path = f"site.web1.{os.getpid()}.active"
    eventually(lambda: carbon.last(path) == 0)
    carbon.signal(signal.SIGKILL)
    carbon.ended()
    eventually(lambda: "cannot send" in caplog.text)
    gate.enter()  # whatever carbon does, requests go on
    again = started(Carbon, tmp_path, port=carbon.port)
    eventually(lambda: again.last(path) == 1)
    assert caplog.text.count("cannot send") == 1
    assert "again" in caplog.text
