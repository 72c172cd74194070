"""Who is refused where it is accepted, and who is the server's."""

from __future__ import annotations

import contextlib
import logging
import socket
import time

import pytest
from support.client import eventually

from wsgi_busyguard import Gate
from wsgi_busyguard.adapters.front.refusing_listener import CONNECTIONS_PER_TURN, RefusingListener
from wsgi_busyguard.adapters.front.sockets import since_heard
from wsgi_busyguard.gate import Ticket

GET = b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n"
REFUSAL = b"refused: "


class Door:
    """A gate of one slot and a queue of one, on a clock, and the listening socket in front."""

    def __init__(self, listener):
        self.now, self.judge = 100.0, lambda head: head.path == "/livez"
        limits = {"max_queue": 1, "max_wait": 10.0, "client_timeout": 1.0}
        self.gate = Gate(1, **limits, clock=lambda: self.now)
        self.listener = RefusingListener(
            listener, self.gate, lambda head: self.judge(head), self._refusal, many=True
        )
        self.slots, self.connections = [], contextlib.ExitStack()

    def _refusal(self, method, reason):
        return REFUSAL + f"{method} {reason.value}".encode()

    @property
    def refused(self):
        """How many were refused, by the listener or behind it."""
        return sum(self.gate.counts().refused)

    def offer(self):
        """Have a request come that the server has accepted before."""
        return self.gate.offer(Ticket(lambda ticket: self.slots.append(ticket.outcome)))

    def crowd(self):
        """Have one inside, one wait, and one be refused."""
        self.slots.append(self.offer())
        return [self.offer(), self.offer()]

    def overload(self):
        """Have the queue stand for as long as clients wait."""
        self.crowd()
        self.now += 1.5
        self.offer()
        assert self.gate.discipline.tight

    def connect(self, data=GET, family=socket.AF_INET):
        """Connect, and send so much."""
        sock = self.connections.enter_context(socket.socket(family))
        sock.settimeout(10)
        sock.connect(self.listener.getsockname())
        sock.sendall(data)
        return sock

    def accept(self):
        """Return the connections that are let in by one turn of a server's loop."""
        accepted = []
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted.append(self.connections.enter_context(self.listener.accept()[0]))
        return accepted


@pytest.fixture(params=["tcp", "unix"])
def door(request, tmp_path):
    if request.param == "tcp":
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "socket"))
        listener.listen(100)
    with listener:
        listener.setblocking(False)
        door = Door(listener)
        door.family = listener.family
        with door.connections:
            yield door


def test_at_a_free_gate_everybody_is_the_servers(door):
    for _ in range(4):
        door.connect(family=door.family)
    assert len(door.accept() + door.accept()) == 4
    assert door.refused == 0


def test_in_a_burst_everybody_is_the_servers_so_that_connections_are_kept(door):
    door.crowd()
    refused = door.refused
    door.connect(family=door.family)
    assert len(door.accept()) == 1
    assert door.refused == refused


def test_in_an_overload_a_request_is_refused_and_its_connection_closed(door):
    door.overload()
    before = door.refused
    clients = [door.connect(family=door.family) for _ in range(3)]
    clients.append(door.connect(GET.replace(b"GET", b"HEAD"), door.family))
    assert door.accept() == []
    for client, method in zip(clients, [b"GET", b"GET", b"GET", b"HEAD"], strict=True):
        assert client.recv(1000) == REFUSAL + method + b" queue-full"
        assert client.recv(1000) == b""
    assert door.refused == before + 4


@pytest.mark.parametrize(
    "data",
    [
        b"OPTIONS /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",  # a check
        b"GET /page HTTP/1.1\r\n",  # not whole
        GET.replace(b"\r\n", b"\n"),  # not whole, to waitress and Twisted
        GET + GET,
        GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"),
        GET.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
        GET.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
        GET.replace(b"\r\n\r\n", b"\r\nUpgrade: websocket\r\n\r\n"),
        b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n" + GET,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"no request at all\r\n\r\n",
        GET.replace(b"\r\n\r\n", b"\r\nCookie: " + 9000 * b"c" + b"\r\n\r\n"),
    ],
)
def test_in_an_overload_whoever_asks_for_something_else_is_the_servers(door, data):
    door.overload()
    door.connect(data, door.family)
    [accepted] = door.accept()
    assert accepted.recv(len(data), socket.MSG_WAITALL) == data


def test_one_that_has_left_is_dropped_but_for_a_check(door):
    door.overload()
    before = door.refused
    door.connect(family=door.family).close()
    assert door.accept() == []
    check = door.connect(b"OPTIONS /livez HTTP/1.1\r\n\r\n", door.family)
    check.shutdown(socket.SHUT_WR)
    assert len(door.accept()) == 1
    assert (door.refused, door.gate.counts().dropped) == (before, 1)


@pytest.mark.parametrize("crowded", [False, True])
def test_one_that_has_closed_its_half_is_served_but_in_an_overload(door, crowded):
    if crowded:
        door.crowd()
    door.connect(family=door.family).shutdown(socket.SHUT_WR)
    [accepted] = door.accept()
    assert accepted.recv(len(GET), socket.MSG_WAITALL) == GET
    assert door.gate.counts().dropped == 0


def test_what_cannot_be_said_leaves_the_request_unread_for_the_server(door):
    door.overload()
    door.listener._refusal = None
    door.connect(family=door.family)
    [accepted] = door.accept()
    assert accepted.recv(len(GET), socket.MSG_WAITALL) == GET


def test_no_more_are_let_in_than_there_is_room_for_before_the_gate_has_seen_them(door):
    for _ in range(2 + CONNECTIONS_PER_TURN):
        door.connect(family=door.family)
    assert len(door.accept()) == 2  # a slot, and one may wait
    assert len(door.accept()) == 2
    door.crowd()
    assert len(door.accept()) == 1  # it could be a check


def test_many_are_refused_in_turns(door):
    door.overload()
    for _ in range(CONNECTIONS_PER_TURN + 2):
        door.connect(family=door.family)
    before = door.refused
    door.accept()
    assert door.refused - before == CONNECTIONS_PER_TURN
    door.accept()
    assert door.refused - before == CONNECTIONS_PER_TURN + 2


def test_while_draining_everybody_is_the_servers_which_says_so(door):
    door.overload()
    door.gate.drain()
    door.connect(family=door.family)
    assert len(door.accept()) == 1


def test_what_cannot_be_judged_is_the_servers_and_that_is_said_once(door, caplog):
    door.overload()
    door.judge = None
    for _ in range(3):
        door.connect(family=door.family)
    with caplog.at_level(logging.ERROR):
        accepted = [one for _ in range(3) for one in door.accept()]
    assert len(accepted) == 3
    assert [record.message for record in caplog.records] == [
        "could not judge a connection; left to the server"
    ]


def test_a_socket_that_waits_is_asked_for_no_more_than_there_are(door):
    door.overload()
    door.listener.settimeout(10)
    for _ in range(2):
        door.connect(family=door.family)
    began = time.monotonic()
    assert door.accept() == []
    assert time.monotonic() - began < 9
    assert door.refused == 4


def test_all_else_is_as_of_the_socket(door):
    assert door.listener.fileno() > 0
    assert door.listener.family == door.family


@pytest.mark.skipif(not hasattr(socket, "TCP_DEFER_ACCEPT"), reason="Linux has it")
def test_in_an_overload_one_that_has_only_connected_is_not_shown_yet():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        door = Door(listener)
        with door.connections:
            door.overload()
            assert door.accept() == []
            client = door.connect(b"")
            assert door.accept() == []
            client.sendall(GET)
            eventually(lambda: door.accept() == [] and door.refused == 3)
            assert client.recv(1000).startswith(REFUSAL)
            defers = (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)
            assert listener.getsockopt(*defers)
            door.gate.leave(door.slots[0])
            door.gate.leave(door.slots[-1])
            door.now += 20  # nobody was refused for so long
            door.crowd()
            assert not door.gate.discipline.tight
            door.accept()
            door.connect(b"")
            eventually(lambda: len(door.accept()) == 1)


@pytest.mark.skipif(not hasattr(socket, "TCP_DEFER_ACCEPT"), reason="Linux has it")
def test_who_has_connected_when_it_drains_is_shown_though_the_overload_stands():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        door = Door(listener)
        with door.connections:
            door.overload()
            assert door.accept() == []
            door.gate.drain()
            assert door.accept() == []
            door.connect(b"")
            eventually(lambda: len(door.accept()) == 1)


def test_the_gate_hears_how_long_a_request_had_waited_for_the_servers_loop(door):
    door.connect(family=door.family)
    time.sleep(0.05)  # what it waits
    assert len(door.accept()) == 1
    late = door.gate.late
    assert late >= 0.04 if door.family == socket.AF_INET else late == 0  # not known there
    door.connect(family=door.family)
    assert len(door.accept()) == 1
    assert door.gate.late >= late  # the longest; adaptive.py sets it back


def test_the_kernel_says_since_when_nothing_has_come():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(GET)
            eventually(lambda: since_heard(accepted)[0] >= 0.05)
            assert not since_heard(accepted)[1]
            client.close()
            eventually(lambda: since_heard(accepted)[1])
            eventually(lambda: since_heard(accepted)[0] >= 0.1)
