"""Behind each balancer with its documented configuration the checks are not for clients.

However they are spelled: what any server would take for a check (see test_spellings.py, too) must
not come through.
"""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from typing import NamedTuple

import pytest
from balancers.test_apache_proxy import Apache
from balancers.test_envoy import Envoy
from balancers.test_traefik import Traefik
from support.balanced import Caddy, Nginx
from support.client import Line, eventually
from support.haproxies import Balancer
from support.spellings import NAMES, may_be_a_check, spellings

from wsgi_busyguard.haproxy import Server as Known
from wsgi_busyguard.haproxy import Setting, configuration


class Recorder:
    """A server that notes the target of each request, and has no check."""

    def __init__(self):
        self.targets = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.check = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and (data := connection.recv(65536)):
                head += data
            if head:
                line = head.split(b"\r\n", 1)[0].decode("latin-1")
                by_a_client = b"client: me" in head.lower()
                if by_a_client:
                    self.targets.append(line.split(" ")[1])
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\napp"
                )

    def close(self):
        self._listener.close()


@pytest.fixture
def recorders():
    servers = [Recorder(), Recorder()]
    yield servers
    for server in servers:
        server.close()


def haproxy(place, servers):
    known = [Known(f"web{n}", f"127.0.0.1:{s.port}") for n, s in enumerate(servers)]

    def text(bind, stats):
        return configuration(known, Setting(10, 1, "lb1", bind, stats), minimal=True)

    return Balancer(place, 1, text)


BALANCERS = {
    "HAProxy": haproxy,
    "nginx": lambda place, servers: Nginx(place, servers).answers(),
    "Caddy": lambda place, servers: Caddy(place, servers).answers(),
    "Envoy": lambda place, servers: Envoy(place, servers, {}).wait(),
    "Traefik": lambda place, servers: Traefik(place, servers, {}).answers(),
    "Apache": lambda place, servers: Apache(servers).answers(),
}


class Said(NamedTuple):
    status: int
    body: bytes


def said(port, target, method="GET"):
    """Ask for exactly that; the status is 0 if the connection is closed without a word."""
    with Line(port) as line:
        line.send(f"{method} {target} HTTP/1.1\r\nHost: a\r\nClient: me\r\n\r\n".encode())
        try:
            answer = line.answer()
        except (OSError, ValueError, IndexError):
            return Said(0, b"")
    return Said(answer.status, answer.body)


@pytest.fixture(params=BALANCERS)
def front(request, started):
    """Starts this balancer in front of these servers."""

    def front(place, servers):
        balancer = started(BALANCERS[request.param], place, servers)
        eventually(lambda: said(balancer.port, "/page").status == 200)
        return balancer

    return front


def test_no_spelling_of_a_check_comes_through(front, recorders, tmp_path):
    balancer = front(tmp_path, recorders)
    for name in NAMES:
        for target in spellings(name):
            said(balancer.port, target)
    came = [target for recorder in recorders for target in recorder.targets]
    assert sorted({target for target in came if may_be_a_check(target)}) == []


def test_what_is_no_check_comes_through(front, recorders, tmp_path):
    balancer = front(tmp_path, recorders)
    for target in (
        "/",
        "/shop/readyz",
        "/readyz/x",
        "/a//b",
        "/readyzz",
        "/a.b/c..d/e?livez=/livez",
    ):
        assert said(balancer.port, target).status == 200, target
    came = [target for recorder in recorders for target in recorder.targets]
    came = {re.sub("/+", "/", target) for target in came}  # Apache and Traefik drop some
    assert {"/shop/readyz", "/a/b", "/a.b/c..d/e?livez=/livez"} <= came
