"""What SIGTERM does to a guarded site in a real process."""

from __future__ import annotations

import signal
import time

import pytest
from support.client import Line, Stopwatch, ask, eventually, request

REFUSALS = "busyguard-refused"


def test_sigterm_lets_a_slow_client_read_the_rest_of_its_answer(site):
    """Twisted takes a whole body into its memory; the thread is done long before the client."""
    size = 48_000_000
    guarded = site(threads=2, grace=100.0)
    with Line(guarded.port) as line:
        line.send(request(path=f"/big/{size}", version="1.0"))
        eventually(lambda: guarded.ran)
        guarded.at_rest()
        guarded.signal()
        read = 0
        while data := line.socket.recv(500_000):
            read += len(data)
            time.sleep(0.01)  # the slow client: 48 MB in about a second
    assert read > size
    assert guarded.ended() == 0


def test_sigterm_does_not_wait_beyond_the_grace_for_a_client_that_does_not_read(site):
    guarded = site(threads=2, grace=1.0)
    with Line(guarded.port) as line:
        line.send(request(path="/big/48000000"))
        eventually(lambda: guarded.ran)
        guarded.at_rest()
        with Stopwatch() as watch:
            guarded.signal()
            guarded.ended()
        assert watch.seconds <= 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_pool_that_has_worked_is_gone_cleanly(site, number):
    guarded = site(threads=2)
    for _ in range(5):
        ask(guarded.port, path="/echo")
    guarded.signal(number)
    assert guarded.ended() == 0
    assert "Traceback" not in guarded.output
    assert guarded.lines[-1] == "reactor ended\n"
