"""What comes of a host that is asked how it is: a line that can be shown, whatever it answers.

The first byte chooses who asks: ``busyguard check`` with a path, or with a check port, and the rest
is all that comes; or ``busyguard top``, and the rest is the body.
"""

from __future__ import annotations

import http.client
import socket
import threading
from types import SimpleNamespace
from unittest.mock import patch

from wsgi_busyguard._support.health_client import ask
from wsgi_busyguard.cli.top import hosts
from wsgi_busyguard.cli.top.plain_lines import line

TARGETS = ["http://h/readyz", "h:1"]

# What would cut off who takes too long: here all has come.
TIMER = SimpleNamespace(start=bool, cancel=bool)


def checked(where: str, said: bytes) -> str:
    ours, peer = socket.socketpair()

    def connect(connection: http.client.HTTPConnection) -> None:
        connection.sock = ours

    with (
        ours,
        peer,
        patch.object(http.client.HTTPConnection, "connect", connect),
        patch.object(threading, "Timer", lambda *_: TIMER),
    ):
        peer.sendall(said)
        peer.shutdown(socket.SHUT_WR)
        result = ask(where)
    assert result.code in (0, 1, 2)
    return result.text


def target(data: bytes) -> None:
    kind, said = data[0] % 3 if data else 0, data[1:]
    if kind < len(TARGETS):
        text = checked(TARGETS[kind], said)
    else:
        with patch.object(hosts, "fetched", lambda *_: (200, "application/json", said)):
            text = line(hosts.HostWatch("h:1", 1.0).look())
    assert text.isprintable(), text
    assert len(text) < 2000
