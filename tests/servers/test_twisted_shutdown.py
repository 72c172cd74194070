"""What SIGTERM does to a guarded site in a real process."""

from __future__ import annotations

import signal
import time

import pytest
from support.client import Line, ask, check, eventually, many, request, together

REFUSALS = "busyguard-refused"


def test_sigterm_lets_those_inside_and_in_the_queue_finish_and_tells_everybody_else(site):
    guarded = site(threads=4, max_queue=20, max_wait=30.0)
    answers, threads = many(10, guarded.port, path="/sleep/0.7")
    guarded.filled(4, 6)
    with Line(guarded.port) as kept:
        kept.send(request(path="/livez"))
        assert kept.answer().status == 200
        guarded.signal()
        eventually(lambda: check(guarded.port).text == "draining", within=1)
        assert check(guarded.port).status == 503
        assert ask(guarded.check, path="/readyz?ready=always").status == 503
        assert ask(guarded.port, path="/livez").text == "alive"
        kept.send(request(path="/echo"))
        refused = kept.answer()
        assert (refused.status, refused.headers[REFUSALS]) == (503, "draining")
        assert refused.headers["connection"] == "close"
        assert kept.closed()
        assert guarded.popen.poll() is None
    together(threads)
    assert [answer.status for answer in answers] == [200] * 10
    assert guarded.ended(within=5) == 0


def test_sigterm_while_every_thread_is_stuck_waits_for_the_grace_and_no_longer(site):
    guarded = site(threads=4, max_queue=20, grace=1.0)
    _, _ = many(4, guarded.port, path="/hang")
    guarded.filled(4)
    began = time.monotonic()
    guarded.signal()
    guarded.ended(within=10)
    assert 0.9 <= time.monotonic() - began <= 1.0 + 0.1 + 0.5 + 2.0


def test_sigterm_while_idle_ends_at_once_also_with_idle_connections(site):
    guarded = site(threads=4, grace=20.0)
    with Line(guarded.port) as idle, Line(guarded.port) as silent:
        idle.send(request(path="/sleep/0"))
        assert idle.answer().status == 200
        silent.send(b"GET /")
        began = time.monotonic()
        guarded.signal()
        guarded.ended(within=10)
        assert time.monotonic() - began <= 3


def test_sigterm_lets_a_slow_client_read_the_rest_of_its_answer(site):
    """Twisted takes a whole body into its memory; the thread is done long before the client."""
    size = 48_000_000
    guarded = site(threads=2, grace=15.0)
    with Line(guarded.port) as line:
        line.send(request(path=f"/big/{size}", version="1.0"))
        eventually(lambda: guarded.ran, within=5)
        guarded.at_rest()
        guarded.signal()
        read = 0
        while data := line.socket.recv(500_000):
            read += len(data)
            time.sleep(0.01)  # the slow client: 48 MB in about a second
    assert read > size
    assert guarded.ended(within=5) == 0


def test_sigterm_does_not_wait_beyond_the_grace_for_a_client_that_does_not_read(site):
    guarded = site(threads=2, grace=1.0)
    with Line(guarded.port) as line:
        line.send(request(path="/big/48000000"))
        eventually(lambda: guarded.ran, within=5)
        guarded.at_rest()
        began = time.monotonic()
        guarded.signal()
        guarded.ended(within=10)
        assert time.monotonic() - began <= 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_pool_that_has_worked_is_gone_cleanly(site, number):
    guarded = site(threads=2)
    for _ in range(5):
        ask(guarded.port, path="/echo")
    guarded.signal(number)
    assert guarded.ended(within=5) == 0
    assert "Traceback" not in guarded.said
    assert guarded.lines[-1] == "reactor ended\n"
