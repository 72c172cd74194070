"""Behind the printed HAProxy configuration a refused POST is served by another server.

Clients send head and body apart: so do curl and browsers over HTTP/2, and urllib. What HAProxy has
not got whole when it passes it on, it cannot retry.
"""

from __future__ import annotations

import collections
import time

import httpx
import pytest
from support.balanced import Server
from support.client import Line, eventually, many
from support.haproxies import Balancer

from wsgi_busyguard.haproxy import Server as Known
from wsgi_busyguard.haproxy import Setting, configuration

FULL = ("--threads=1", "--max-queue=0", "--client-timeout=25")
FREE = ("--threads=8", "--client-timeout=25")
ROUNDS = 6


def pair(started, folder, kind, bind="", *, more=()):
    """Return a HAProxy, one of whose two servers is full until the test is over."""
    full, free = (
        started(Server, folder, name, *options, kind=kind).wait()
        for name, options in (("full", FULL), ("free", FREE))
    )
    many(1, full.port, path="/sleep/60", timeout=60)
    eventually(lambda: full.load["active"] == 1)
    known = [Known(s.name, f"127.0.0.1:{s.port}") for s in (full, free)]

    def text(where, stats):
        return configuration(known, Setting(8, 1, "lb1", where + bind, stats, more), minimal=True)

    balancer = started(Balancer, folder, 1, text)
    eventually(balancer.answers)
    return balancer


def post(port, size, pause):
    with Line(port) as line:
        line.send(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
        time.sleep(pause)  # not to wait for something: this is how such a client sends
        line.send(b"x" * size)
        return line.answer().status


@pytest.mark.parametrize("kind", ["twisted", "gunicorn", "waitress"])
def test_a_refused_post_is_retried_though_its_body_comes_after_its_head(started, tmp_path, kind):
    balancer = pair(started, tmp_path, kind)
    for size in (10, 2_000, 14_000):
        for pause in (0, 0.005):
            seen = collections.Counter(post(balancer.port, size, pause) for _ in range(ROUNDS))
            assert seen == {200: ROUNDS}, (size, pause)


def test_a_refused_post_over_http_2_is_retried(started, tmp_path):
    balancer = pair(started, tmp_path, "twisted", " proto h2")
    with httpx.Client(
        http1=False, http2=True, base_url=f"http://127.0.0.1:{balancer.port}"
    ) as curl:
        for size in (10, 2_000, 14_000):
            answers = [curl.post("/", content=b"x" * size) for _ in range(ROUNDS)]
            assert {(a.http_version, a.status_code) for a in answers} == {("HTTP/2", 200)}, size


def test_what_does_not_fit_a_buffer_is_not_retried_and_a_larger_buffer_helps(started, tmp_path):
    """As the docs say: HAProxy would have to keep it."""
    balancer = pair(started, tmp_path, "twisted")
    seen = collections.Counter(post(balancer.port, 17_000, 0.005) for _ in range(ROUNDS))
    assert set(seen) == {200, 503}
    balancer = pair(started, tmp_path, "twisted", more=("tune.bufsize 65536",))
    seen = collections.Counter(post(balancer.port, 60_000, 0.005) for _ in range(ROUNDS))
    assert seen == {200: ROUNDS}
