"""The last call of a site, against a reactor that is turned by hand."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from wsgi_busyguard.adapters.front.last_connections import (
    HANDSHAKE_SECONDS,
    LINGER_SECONDS,
    LOOK_SECONDS,
)
from wsgi_busyguard.adapters.twisted import guarded_site
from wsgi_busyguard.adapters.twisted.shutdown import StoppingSite

SITE = SimpleNamespace()


class Reactor(Clock):
    def __init__(self):
        super().__init__()
        self.readers = []

    def getReaders(self):  # noqa: N802
        return list(self.readers)


@implementer(IListeningPort)
class Port:
    """A port as one that was adopted, which others listen at, too."""

    port = None
    disconnecting = False

    def __init__(self, factory):
        self.factory, self.connected = factory, True
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.stops, self.accepted = 0, 0

    def stopListening(self):  # noqa: N802
        self.stops += 1
        self.disconnecting = True

    def doRead(self):  # noqa: N802
        self.socket.accept()[0].close()
        self.accepted += 1


@pytest.fixture
def reactor():
    reactor = Reactor()
    yield reactor
    for reader in reactor.readers:
        if isinstance(reader, Port):
            reader.socket.close()


def wrapped(factory):
    return SimpleNamespace(wrappedFactory=factory)


def connection(factory):
    return SimpleNamespace(protocol=SimpleNamespace(factory=factory))


def made(reactor, awaited=(), until=1000.0):
    over = []
    connections = SimpleNamespace(may_ask=lambda transport: transport in awaited, used=list)
    stopping = StoppingSite(reactor, SITE, connections)
    stopping.stop(os.getpid(), until).addCallback(over.append)
    return over


def test_without_anybody_it_is_over_after_a_handshake(reactor):
    reactor.readers = [SimpleNamespace(), connection(SITE)]
    over = made(reactor)
    reactor.advance(HANDSHAKE_SECONDS - 0.001)
    assert not over
    reactor.pump([0.001, 0])
    assert over


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "over TLS"])
def test_who_may_ask_still_is_waited_for_and_not_longer_than_a_moment(reactor, tls):
    silent = connection(wrapped(SITE) if tls else SITE)
    awaited = [silent.protocol if tls else silent]
    reactor.readers = [silent]
    patient, asks = made(reactor, awaited), made(reactor, awaited)
    reactor.pump([HANDSHAKE_SECONDS, 0, LOOK_SECONDS, LOOK_SECONDS])
    assert not asks
    awaited.clear()
    reactor.pump([LOOK_SECONDS, 0])
    assert asks
    assert patient
    awaited.append(silent)
    over = made(reactor, [silent.protocol, silent])
    reactor.pump([LOOK_SECONDS] * int(LINGER_SECONDS / LOOK_SECONDS - 3))
    assert not over
    reactor.pump([LOOK_SECONDS] * 5)
    assert over


def test_it_is_over_when_the_grace_is(reactor):
    reactor.readers = [silent := connection(SITE)]
    over = made(reactor, [silent], until=0.0)
    reactor.pump([0, 0])
    assert over


def test_ports_are_left_once_each_and_those_of_others_stay(reactor):
    ports = [Port(SITE), Port(wrapped(SITE)), Port(SimpleNamespace())]
    reactor.readers = list(ports)
    calls = [made(reactor), made(reactor)]  # as twist does: by the service, and by the reactor
    reactor.pump([HANDSHAKE_SECONDS, 0, LOOK_SECONDS])
    assert [port.stops for port in ports] == [1, 1, 0]
    assert all(calls)


def test_who_waits_to_be_accepted_is_taken_in_before_the_socket_is_closed(reactor):
    port = Port(SITE)
    reactor.readers = [port]
    clients = [socket.create_connection(port.socket.getsockname()) for _ in range(3)]
    made(reactor)
    reactor.pump(
        [HANDSHAKE_SECONDS, *[LOOK_SECONDS] * int(LINGER_SECONDS / LOOK_SECONDS + 1), 0]
    )  # nobody else reads
    assert port.accepted == 3
    for client in clients:
        client.close()


class Memory(MemoryReactorClock):
    def callFromThread(self, call, *args):  # noqa: N802
        self.callLater(0, call, *args)


def test_a_site_knows_by_which_connections_a_request_is_still_to_come():
    site = guarded_site(print, 1, reactor=Memory())
    protocol, transport = site.buildProtocol(None), StringTransport()
    protocol.makeConnection(transport)
    assert site.connections.may_ask(transport)
    protocol.dataReceived(b"OPTIONS / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" in transport.value()
    assert not site.connections.may_ask(transport)
    protocol.dataReceived(b"OPTIONS / HTTP/1.1\r\n")
    assert site.connections.may_ask(transport)
    protocol.dataReceived(b"Host: x\r\n\r\n")
    assert not site.connections.may_ask(transport)
    protocol.connectionLost(Failure(ConnectionDone()))
