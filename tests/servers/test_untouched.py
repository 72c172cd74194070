"""Whatever becomes of those who look, requests go on."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time

import pytest
from support.client import ask, eventually, request
from support.daemons import Carbon

from wsgi_busyguard import BusyGuard, Load, Monitor
from wsgi_busyguard.metrics.graphite import Graphite, StatsD

LONG = ".".join(["x" * 200] * 10)  # fills what the kernel takes in a moment


def times(port, count=50):
    """Return the seconds that so many requests took, one after the other."""
    answers = [ask(port, path="/") for _ in range(count)]
    assert {answer.status for answer in answers} == {200}
    return sorted(answer.took for answer in answers)


def test_scrapers_that_do_not_read_hold_up_neither_checks_nor_requests(site):
    served = site(threads=4)
    with contextlib.ExitStack() as stack:
        for n in range(200):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.connect(("127.0.0.1", served.check))
            sock.sendall(request("GET", ("/metrics", "/load", "/load?watch")[n % 3]))
        took = times(served.port)
        assert ask(served.check, path="/metrics").status == 200
        assert ask(served.check, path="/readyz").took < 1
    assert took[-1] < 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_disk_under_the_log_is_nothing_to_a_request(capfd):
    handler = logging.FileHandler("/dev/full", delay=True)
    logger = logging.getLogger("wsgi_busyguard")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:

        class Crowded:
            def read(self):
                return Load(9, 4, 4)

        guard = BusyGuard(lambda environ, start_response: [b"ok"], monitor=Monitor(Crowded()))
        assert guard.monitor.check().word == "busy"
        assert "No space left on device" in capfd.readouterr().err  # logging's own way to say it
        assert guard({"PATH_INFO": "/shop"}, None) == [b"ok"]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        with contextlib.suppress(OSError):
            handler.close()


def test_a_carbon_that_is_stopped_is_nothing_to_a_request(started, tmp_path, caplog):
    """It takes connections still, for the kernel does that, and nothing else."""
    carbon = started(Carbon, tmp_path)
    guard = BusyGuard(lambda environ, start_response: [b"ok"], slots=2)
    guard({"PATH_INFO": "/shop"}, None)  # a process that serves; one that does not sends nothing
    to = f"127.0.0.1:{carbon.port}"
    senders = [Graphite(guard.monitor, to, every=0.01, prefix=LONG).start() for _ in range(4)]
    senders.append(StatsD(guard.monitor, to, every=0.01).start())
    try:
        eventually(lambda: carbon.files())
        carbon.signal(signal.SIGSTOP)
        until, slowest = time.monotonic() + 2, 0.0
        while time.monotonic() < until:
            began = time.monotonic()
            assert guard({"PATH_INFO": "/shop"}, None) == [b"ok"]
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 0.5
        assert guard.monitor.counts().served > 1000
    finally:
        for sender in senders:
            sender.stop()
        carbon.signal(signal.SIGCONT)
