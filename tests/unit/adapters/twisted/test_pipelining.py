"""Who has sent many requests at once is answered one by one, against a reactor turned by hand."""

from __future__ import annotations

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from wsgi_busyguard.adapters.twisted import guarded_site, resource

MANY = 5
CHECK = b"GET /readyz HTTP/1.1\r\nHost: test\r\n\r\n"
PAGE = b"GET /page HTTP/1.1\r\nHost: test\r\n\r\n"


def app(environ, start_response):
    raise AssertionError("nothing is let in")


# Seconds that a turn takes here. Within one, the real reactor calls nothing that was put off in it.
TURN = 0.001


class Reactor(MemoryReactorClock):
    def callLater(self, seconds, call, *arguments):  # noqa: N802
        return super().callLater(max(TURN, seconds), call, *arguments)

    def callFromThread(self, call, *arguments):  # noqa: N802
        self.callLater(0, call, *arguments)


@pytest.fixture
def reactor():
    return Reactor()


@pytest.fixture
def full(reactor):
    """Makes a site that refuses everything but checks."""

    def make(**options):
        site = guarded_site(app, threads=1, max_queue=0, reactor=reactor, **options)
        site.guard.gate.enter()
        return site

    return make


class Connection:
    def __init__(self, site):
        self.transport = StringTransport()
        self.protocol = site.buildProtocol(None)
        self.protocol.makeConnection(self.transport)

    def send(self, data):
        self.protocol.dataReceived(data)

    @property
    def answers(self):
        return self.transport.value().count(b"HTTP/1.1 ")


@pytest.mark.parametrize("request_", [CHECK, PAGE], ids=["checks", "refusals"])
def test_the_second_answer_on_a_connection_is_given_in_the_next_turn(full, reactor, request_):
    site = full()
    one, other = Connection(site), Connection(site)
    one.send(request_ * MANY)
    assert one.answers == 1
    other.send(request_)
    assert other.answers == 1
    for turn in range(2, MANY + 1):
        reactor.advance(TURN)
        assert one.answers == turn
    reactor.advance(TURN)
    other.send(request_)
    assert (one.answers, other.answers) == (MANY, 2)


def test_nothing_is_done_in_later_turns_when_all_are_answered(full, reactor):
    before = len(reactor.getDelayedCalls())
    Connection(full()).send(CHECK * 2)
    reactor.pump([TURN] * 4)
    assert len(reactor.getDelayedCalls()) == before + 1  # when the connection has been idle


def test_who_has_left_before_its_turn_is_not_answered_and_others_are(full, reactor):
    site = full()
    one, other = Connection(site), Connection(site)
    for connection in (one, other):
        connection.send(CHECK * 2)
    one.protocol.connectionLost(Failure(ConnectionDone()))
    reactor.pump([TURN] * 3)
    assert (one.answers, other.answers) == (1, 2)


def test_a_refusal_app_that_raises_when_it_is_its_turn_is_replaced(full, reactor, caplog):
    said = iter([[b"later"]])

    def refusal(environ, start_response):
        start_response("503 Later", [("Content-Length", "5")])
        return next(said)

    one = Connection(full(refusal=refusal))
    one.send(PAGE * 2)
    reactor.pump([TURN] * 3)
    assert one.answers == 2
    assert one.transport.value().endswith(b"\r\n\r\nbusy")
    assert "the refusal app raised" in caplog.text


def test_a_check_that_cannot_be_answered_when_it_is_its_turn_is_a_500(
    full, reactor, monkeypatch, caplog
):
    site = full()
    one = Connection(site)
    one.send(CHECK * 2)
    monkeypatch.setattr(site.guard, "_responses", None)
    reactor.pump([TURN] * 3)
    assert b"HTTP/1.1 500 " in one.transport.value()
    assert "could not answer a request" in caplog.text


def test_one_whose_answer_fails_when_it_is_given_keeps_nobody_from_its_turn(
    full, reactor, monkeypatch
):
    site = full()
    one, other = Connection(site), Connection(site)
    for connection in (one, other):
        connection.send(CHECK * 2)

    def answered(request, *_):
        monkeypatch.undo()
        request.finish()
        raise ValueError

    monkeypatch.setattr(resource, "send", answered)
    with pytest.raises(RuntimeError, match="finish"):
        reactor.advance(TURN)
    reactor.pump([TURN] * 3)
    assert other.answers == 2
