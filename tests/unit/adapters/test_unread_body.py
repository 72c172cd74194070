"""What is left of a refused body; with real servers: tests/servers/test_refused_uploads.py."""

from __future__ import annotations

import io
import socket
import sys
import threading
import types

import pytest

from wsgi_busyguard import BusyGuard
from wsgi_busyguard.adapters import unread_body as leftovers
from wsgi_busyguard.adapters.unread_body import MOST_BYTES, PIECE_BYTES, UnreadBodyReader
from wsgi_busyguard.policy import Reason


class Input:
    """A body of so many bytes; ``waits`` is an event without which a read does not end."""

    def __init__(self, size, waits=None):
        self.size = size
        self.asked = []
        self.begun = threading.Event()
        self._waits = waits

    def read(self, size):
        self.asked.append(size)
        self.begun.set()
        if self._waits is not None:
            assert self._waits.wait(20)
        piece, self.size = min(size, self.size), self.size - min(size, self.size)
        return b"x" * piece


Elsewhere = type("Body", (Input,), {"__module__": "a2wsgi.wsgi"})


@pytest.fixture
def read_off():
    return UnreadBodyReader()


@pytest.fixture
def connection():
    """Both ends of one; the first is the server's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def request(body, length, **more):
    return {"wsgi.input": body, "CONTENT_LENGTH": str(length), **more}


def test_a_time_limit_that_comes_late_leaves_the_next_refusal_its_turn(
    read_off, connection, monkeypatch
):
    def late(_):
        raise TimeoutError("a signal handler's")

    monkeypatch.setattr(leftovers.Bell, "ring", late)
    read_off(request(Input(10), 10, **{"gunicorn.socket": connection[0]}))
    monkeypatch.undo()
    body = Input(10)
    read_off(request(body, 10, **{"gunicorn.socket": connection[0]}))
    assert body.size == 0


def test_what_ends_a_request_before_its_body_is_found_leaves_the_next_refusal_its_turn(
    read_off, connection, monkeypatch
):
    def ended(*_):
        raise SystemExit

    monkeypatch.setattr(leftovers, "_body", ended)
    with pytest.raises(SystemExit):
        read_off(request(Input(10), 10))
    monkeypatch.undo()
    body = Input(10)
    read_off(request(body, 10, **{"gunicorn.socket": connection[0]}))
    assert body.size == 0


def test_a_refusal_comes_when_the_rest_of_the_body_is_read(read_off, connection):
    body = Input(10)
    refuse = read_off.before(lambda reason: lambda *_: [reason, body.size])(Reason.QUEUE_FULL)
    environ = request(body, 10, **{"gunicorn.socket": connection[0]})
    assert refuse(environ, None) == [Reason.QUEUE_FULL, 0]


def test_what_was_announced_is_read_and_no_more(read_off, connection):
    body = Input(1_000_000)
    read_off(request(body, 200_000, **{"gunicorn.socket": connection[0]}))
    assert body.size == 800_000
    assert max(body.asked) == PIECE_BYTES


def test_no_more_is_read_than_there_is(read_off, connection):
    body = Input(10)
    read_off(request(body, 200_000, **{"gunicorn.socket": connection[0]}))
    assert body.size == 0
    assert len(body.asked) == 2


@pytest.mark.parametrize("length", [MOST_BYTES + 5, 10**30], ids=["more than is read", "a joke"])
def test_of_the_largest_a_part_is_read(read_off, connection, length):
    body = Input(MOST_BYTES + 5)
    read_off(request(body, length, **{"gunicorn.socket": connection[0]}))
    assert body.size == 5


def test_one_in_chunks_is_read_to_its_end(read_off, connection):
    body = Input(100_000)
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "gunicorn.socket": connection[0]}
    read_off({"wsgi.input": body, **chunked})
    assert body.size == 0


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"CONTENT_LENGTH": ""},
        {"CONTENT_LENGTH": "0"},
        {"CONTENT_LENGTH": "-5"},
        {"CONTENT_LENGTH": "x"},
        {"CONTENT_LENGTH": "\N{SUPERSCRIPT TWO}"},
    ],
    ids=str,
)
def test_where_none_was_announced_none_is_read(read_off, connection, environ):
    body = Input(10)
    read_off({"wsgi.input": body, "gunicorn.socket": connection[0], **environ})
    assert body.asked == []


def test_on_a_server_that_nobody_knows_nothing_is_read(read_off):
    """A read might wait for ever there."""
    body = Input(10)
    for _ in range(3):
        read_off(request(body, 10))
    assert body.asked == []


def test_what_is_sent_only_when_it_is_read_is_not_read(read_off):
    body = Elsewhere(10)
    read_off(request(body, 10, HTTP_EXPECT="100-continue"))
    assert body.asked == []
    read_off(request(body, 10))
    assert body.size == 0


def test_what_goes_wrong_is_nothing_to_the_refusal(read_off, connection):
    class Broken:
        def read(self, size):
            raise OSError("the client has left")

    for _ in range(3):
        read_off(request(Broken(), 10, **{"gunicorn.socket": connection[0]}))
    closed = socket.socket()
    closed.close()
    for _ in range(3):
        read_off(request(Input(10), 10, **{"gunicorn.socket": closed}))
    body = Input(10)
    read_off(request(body, 10, **{"gunicorn.socket": connection[0]}))
    assert body.size == 0


@pytest.mark.parametrize("kind", [Input, Elsewhere])
def test_where_no_thread_can_be_started_nothing_is_read(read_off, connection, monkeypatch, kind):
    def start(self):
        raise RuntimeError("can't start new thread")

    body = kind(10)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(3):
            read_off(request(body, 10, **{"gunicorn.socket": connection[0]}))
    assert body.asked == []
    read_off(request(body, 10, **{"gunicorn.socket": connection[0]}))
    assert body.size == 0


def test_of_a_client_that_never_sends_the_read_ends_and_it_can_be_answered(
    read_off, connection, monkeypatch
):
    monkeypatch.setattr(leftovers, "LONGEST_SECONDS", 0.05)
    ours, theirs = connection
    body = types.SimpleNamespace(read=ours.recv)
    read_off(request(body, 10, **{"gunicorn.socket": ours}))
    ours.sendall(b"503")
    assert theirs.recv(3) == b"503"


def test_a_connection_is_not_shut_that_was_read_in_time(read_off, connection, monkeypatch, until):
    """It may be kept alive."""
    monkeypatch.setattr(leftovers, "LONGEST_SECONDS", 0.05)
    ours, theirs = connection
    theirs.sendall(b"0123456789")
    read_off(request(types.SimpleNamespace(read=ours.recv), 10, **{"gunicorn.socket": ours}))
    until(lambda: not any(t.name == "busyguard-leftovers" for t in threading.enumerate()))
    theirs.sendall(b"next")
    assert ours.recv(10) == b"next"


def test_a_read_that_cannot_be_ended_is_left_alone(read_off, monkeypatch, until):
    """It holds its place until it has ended, so that there are never many of them."""
    monkeypatch.setattr(leftovers, "LONGEST_SECONDS", 0.05)
    goes_on = threading.Event()
    stuck, other = Elsewhere(10, goes_on), Elsewhere(10)
    read_off(request(stuck, 10))
    assert stuck.begun.is_set()
    read_off(request(other, 10))
    assert other.asked == []
    goes_on.set()
    until(lambda: read_off(request(other, 10)) or other.size == 0)
    assert len(stuck.asked) == 1


def test_no_more_threads_than_are_spare_do_it_at_once(read_off, start, until):
    read_off.allow(2)
    goes_on = threading.Event()
    busy = [Elsewhere(10, goes_on) for _ in range(2)]
    threads = [start(read_off, request(body, 10)) for body in busy]
    for body in busy:
        assert body.begun.wait(20)
    third = Elsewhere(10)
    read_off(request(third, 10))
    assert third.asked == []
    goes_on.set()
    for thread in threads:
        thread.join(20)
    until(lambda: read_off(request(third, 10)) or third.size == 0)


def test_uwsgis_chunks_have_a_function_of_their_own(read_off, connection, monkeypatch):
    chunks = [b"x" * 1000, b"y" * 1000, b""]
    uwsgi = types.SimpleNamespace(
        chunked_read=lambda: chunks.pop(0), connection_fd=connection[0].fileno
    )
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    marks = {"uwsgi.version": b"2", "HTTP_TRANSFER_ENCODING": "chunked"}
    read_off({"wsgi.input": io.BytesIO(), **marks})
    assert chunks == []


def test_a_guard_reads_what_it_refuses_and_nothing_else(connection, start, until):
    entered, leave = threading.Event(), threading.Event()

    def app(environ, start_response):
        entered.set()
        assert leave.wait(20)
        return []

    guard = BusyGuard(app, slots=1, max_queue=0)
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/x", "gunicorn.socket": connection[0]}
    inside, refused = Input(10), Input(10)
    thread = start(guard, {**environ, **request(inside, 10)}, print)
    assert entered.wait(20)
    guard({**environ, **request(refused, 10)}, lambda *_: None)
    assert refused.size == 0
    assert inside.asked == []
    leave.set()
    thread.join(20)
