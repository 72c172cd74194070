"""A Twisted of another day, with other names for what is its own: requests are served."""

from __future__ import annotations

import pytest
from support.names import Renamed
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from wsgi_busyguard._support.log import FailOpen
from wsgi_busyguard.adapters.twisted import connections, guarded_site, resource, shutdown, site


@pytest.fixture(autouse=True)
def nothing_has_failed(monkeypatch):
    """What failed in one test is not said in the next."""
    safely = FailOpen("Twisted")
    for module in (connections, resource, shutdown, site):
        monkeypatch.setattr(module, "safely", safely)


@pytest.fixture
def reactor():
    reactor = MemoryReactorClock()
    reactor.callFromThread = lambda call, *arguments: reactor.callLater(0, call, *arguments)
    return reactor


@pytest.fixture
def site_of(reactor):
    return guarded_site(lambda *_: [], 2, reactor=reactor)


def ask(site, reactor, said):
    """Return what is answered to one connection."""
    address = IPv4Address("TCP", "127.0.0.1", 80)
    transport = StringTransport(address, address)
    transport.abortConnection = transport.loseConnection
    protocol = site.buildProtocol(address)
    protocol.makeConnection(transport)
    protocol.dataReceived(said)
    reactor.advance(0.3)
    protocol.connectionLost(Failure(ConnectionDone()))
    return transport.value()


@pytest.mark.parametrize("name", ["site", "transport", "requests"])
def test_checks_are_answered_and_it_is_said_at_most_once(
    monkeypatch, caplog, reactor, site_of, name
):
    monkeypatch.setattr(HTTPChannel, name, Renamed(HTTPChannel, name), raising=False)
    for _ in range(3):
        assert ask(site_of, reactor, b"OPTIONS / HTTP/1.0\r\n\r\n").endswith(b"free")
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said == sorted(set(said))
    assert all(one.endswith("raised; Twisted goes on as without it") for one in said)


def test_a_request_that_cannot_be_matched_is_no_check_and_comes_to_the_app(
    monkeypatch, caplog, reactor, site_of
):
    guard = site_of.guard
    monkeypatch.setattr(guard, "_match", lambda request: request.renamed)
    submitted = []
    monkeypatch.setattr(guard, "submit", lambda work: submitted.append(work) or True)
    for _ in range(2):
        ask(site_of, reactor, b"GET /page HTTP/1.0\r\n\r\n")
    assert len(submitted) == 2
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


def test_ports_that_cannot_be_looked_at_keep_nobody_waiting(monkeypatch, caplog, site_of):
    guard = site_of.guard
    looks = []
    monkeypatch.setattr(guard, "_beside", lambda: site_of.connections.renamed)
    monkeypatch.setattr(guard.gate, "expire", lambda: looks.append(1))
    guard.beat()
    guard.beat()
    assert looks == [1, 1]
    assert len(caplog.records) == 1


def test_a_last_call_that_cannot_be_made_is_over(monkeypatch, caplog, reactor, site_of):
    class Port:
        factory = site_of

    monkeypatch.setattr(shutdown.IListeningPort, "providedBy", lambda _: True)
    reactor.getReaders = lambda: [Port()]  # it has no "connected"
    done = []
    site_of.drain(5.0).addCallback(done.append)
    for _ in range(5):
        reactor.advance(0.2)
    assert done == [None]
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
