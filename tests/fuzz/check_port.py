"""The check port, whole: whatever comes, in whatever pieces, hears one answer of HTTP or nothing.

The first byte says where what follows is cut in two. The loop is turned by hand.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from types import SimpleNamespace

import h11

from wsgi_busyguard import Load, Monitor
from wsgi_busyguard.checkport.event_loop import Loop
from wsgi_busyguard.checkport.ports import CheckPort

STATUSES = {200, 400, 404, 405, 429, 431, 503}

PORT = CheckPort(Monitor(SimpleNamespace(read=lambda: Load(3, 4, 4, 9.0))), "127.0.0.1:0")
LOOP = Loop(PORT)
MOST_TURNS = 50


def target(data: bytes) -> None:
    cut, said = data[0] if data else 0, data[1:]
    with socket.create_connection(PORT.address, 10) as client:
        # A reset, for a thousand connections a second would take every port of the machine.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        LOOP._turn()  # it accepts
        for part in filter(None, (said[:cut], said[cut:])):
            client.sendall(part)
            turn()
        with suppress(OSError):  # it said more than a request, and is reset: it has its answer
            client.shutdown(socket.SHUT_WR)
        turn()
        answer = received(client)
    for _ in range(MOST_TURNS):
        turn()
    assert not LOOP._peers
    assert LOOP.failures == 0, LOOP.failure
    if answer:
        judge(answer)


def turn() -> None:
    """Have the loop see what has come; where nobody is left there is nothing to wait for."""
    if LOOP._peers:
        LOOP._turn()


def received(client: socket.socket) -> bytes:
    client.setblocking(False)
    parts = []
    for _ in range(MOST_TURNS):
        try:
            parts.append(client.recv(1 << 20))
        except (BlockingIOError, ConnectionResetError):
            break
        if not parts[-1]:
            break
    return b"".join(parts)


def judge(answer: bytes) -> None:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(answer)
    response = connection.next_event()
    assert isinstance(response, h11.Response), response
    assert response.status_code in STATUSES
