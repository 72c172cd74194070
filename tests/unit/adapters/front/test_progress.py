"""Clients that do not get on: what they may take, and how they are found."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from conftest import DEADLINE

from wsgi_busyguard.adapters.front import progress
from wsgi_busyguard.adapters.front.descriptors import hang_up
from wsgi_busyguard.adapters.front.progress import (
    RATE_BYTES,
    Answers,
    Clients,
    Credit,
    Upload,
    acknowledged,
    cut,
)


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, peer:
        yield ours, peer


def test_bytes_earn_what_waiting_spends():
    credit = Credit(30)
    credit.spend(20, 0)
    assert credit.left == 10
    credit.spend(1, 5 * RATE_BYTES)
    assert credit.left == 14
    credit.spend(0, 1e9)  # and not more than there was at first
    assert credit.left == 30


def test_at_the_rate_it_goes_on_for_ever_and_below_it_does_not():
    enough, too_little = Credit(30), Credit(30)
    for _ in range(1000):
        enough.spend(1, RATE_BYTES)
        too_little.spend(1, RATE_BYTES / 2)
    assert enough.left == 30
    assert too_little.left < 0


def test_who_waits_for_a_client_is_let_go(pair, start, until):
    ours, _ = pair
    upload, raised = Upload(ours, 0.05), []

    def read():
        with pytest.raises(ConnectionResetError) as error:
            upload.recv(10)
        raised.append(error)

    assert not upload.cut_if_stalled()  # nobody waits
    start(read)
    until(upload.cut_if_stalled)
    until(lambda: raised)


def test_what_has_come_is_read_as_from_the_socket(pair):
    ours, peer = pair
    upload = Upload(ours, 30)
    peer.sendall(b"some")
    assert upload.recv(10) == b"some"
    assert upload.fileno() == ours.fileno()
    peer.close()
    assert upload.recv(10) == b""


def test_an_answer_that_is_not_read_is_found(pair, monkeypatch, start, until):
    ours, peer = pair
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    answers = Answers(30)
    assert acknowledged(ours) is None
    assert answers.stalled([ours]) == []
    sending = threading.Event()

    def send():
        sending.set()
        with pytest.raises(OSError):  # noqa: PT011 - EPIPE or a reset
            ours.sendall(b"b" * 50_000_000)

    start(send)
    assert sending.wait(20)
    counts = [None]
    until(lambda: counts.append(acknowledged(ours)) or counts[-1] is not None)
    before = -1
    while before != (before := acknowledged(ours)):  # until its buffers are full
        threading.Event().wait(0.3)
    assert answers.stalled([ours]) == []
    now[0] += 29
    assert answers.stalled([ours]) == []
    peer.recv(10_000_000, socket.MSG_WAITALL)
    now[0] += 2
    assert answers.stalled([ours]) == []
    now[0] += 31
    assert answers.stalled([]) == []  # it is served no more
    assert answers.stalled([ours]) == []
    now[0] += 31
    assert answers.stalled([ours]) == [ours]
    cut(ours)


@pytest.mark.parametrize("end", [cut, hang_up])
def test_what_is_no_socket_but_pyopenssls_ends_too(pair, end):
    """Whoever raised for one would do nothing for all others."""
    from OpenSSL import SSL

    ours, peer = pair
    end(SSL.Connection(SSL.Context(SSL.TLS_SERVER_METHOD), ours))
    peer.settimeout(DEADLINE)
    with contextlib.suppress(ConnectionResetError):
        assert peer.recv(1) == b""


def test_of_a_socket_that_is_no_tcp_nothing_is_known():
    ours, peer = socket.socketpair()
    with ours, peer:
        assert acknowledged(ours) is None
    assert acknowledged(ours) is None
    cut(ours)


def test_only_those_who_are_served_are_cut_off(pair, start, until, caplog):
    """An idle connection may be silent, and so may one of which the head is there."""
    ours, _ = pair
    clients, raised = Clients(0.05), []
    watched = clients.watched(ours)
    watched.await_head()
    threading.Event().wait(0.1)
    clients.cut_the_stalled()  # nobody serves it
    clients.begin(watched)
    clients.end(watched)
    watched = clients.watched(ours)  # as the sync worker does when it has the head
    clients.begin(watched)
    clients.cut_the_stalled()
    buffer = bytearray(10)

    def read():
        with pytest.raises(ConnectionResetError) as error:
            watched.recv_into(buffer)
        raised.append(error)

    start(read)
    with caplog.at_level("INFO", "wsgi_busyguard"):
        until(lambda: clients.cut_the_stalled() or raised)
        clients.cut_the_stalled()
    assert [record.msg for record in caplog.records] == [
        "closed the connection of a client that made no progress: %s"
    ]


def test_with_no_limit_nobody_is_looked_at(pair):
    ours, _ = pair
    clients = Clients(float("inf"))
    watched = clients.watched(ours)
    clients.begin(watched)
    watched.await_head()
    clients.cut_the_stalled()
    assert not watched.cut_if_stalled()
    clients.end(watched)
    clients.end(watched)


def test_what_is_stored_is_counted(pair):
    ours, peer = pair
    watched = Upload(ours, 30)
    peer.sendall(b"some")
    buffer = bytearray(10)
    assert watched.recv_into(buffer) == 4
    assert bytes(buffer[:4]) == b"some"
