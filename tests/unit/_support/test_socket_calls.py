from __future__ import annotations

import _socket
import os
import socket
import struct
import sys

import pytest

from wsgi_busyguard._support.listener import listening
from wsgi_busyguard._support.socket_calls import CHUNK_BYTES, Plain, Quick, system_calls


@pytest.fixture(params=[Plain, Quick])
def calls(request):
    return request.param()


@pytest.fixture(params=["127.0.0.1:0", "[::1]:0"], ids=["IPv4", "IPv6"])
def listener(request):
    listener = listening(request.param)
    yield listener
    listener.close()


@pytest.fixture
def ends(calls, listener, until):
    """Both ends of a connection: a client's, and what was accepted."""
    client = socket.create_connection(listener.getsockname()[:2])
    accepted, host = calls.accept(listener)
    assert host == client.getsockname()[0]
    yield client, accepted
    client.close()
    calls.close(accepted)


def test_nobody_there_is_an_error_of_its_own(calls, listener):
    with pytest.raises(BlockingIOError):
        calls.accept(listener)


def test_what_is_accepted_is_no_programs_that_is_started(ends):
    assert not os.get_inheritable(ends[1].fileno())


def test_what_goes_in_comes_out(calls, ends):
    client, accepted = ends
    with pytest.raises(BlockingIOError):
        calls.receive(accepted)
    client.sendall(b"a\0b")
    assert calls.receive(accepted) == b"a\0b"
    client.sendall(b"c" * (CHUNK_BYTES + 10))
    parts = [calls.receive(accepted), calls.receive(accepted)]
    assert [len(part) for part in parts] == [CHUNK_BYTES, 10]
    assert calls.send(accepted, b"d\0e") == 3
    assert client.recv(10) == b"d\0e"
    client.shutdown(socket.SHUT_WR)
    assert calls.receive(accepted) == b""


def test_what_does_not_go_is_told(calls, ends):
    _, accepted = ends
    assert 0 < calls.send(accepted, b"x" * 50_000_000) < 50_000_000

    def fill():
        while calls.send(accepted, b"x" * 1_000_000):
            pass

    with pytest.raises(BlockingIOError):
        fill()


def test_to_shut_down_is_to_say_the_end(calls, ends):
    client, accepted = ends
    calls.shut(accepted, socket.SHUT_WR)
    assert client.recv(10) == b""
    with pytest.raises(BrokenPipeError):
        calls.send(accepted, b"more")


def test_a_reset_is_an_error_of_its_own(calls, ends, until):
    client, accepted = ends
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    with pytest.raises(ConnectionResetError):
        calls.receive(accepted)


def test_what_is_closed_can_be_closed_again_and_nobody_elses_with_it(calls):
    one, other = _socket.socketpair()
    descriptor = one.fileno()
    calls.close(one)
    os.dup2(other.fileno(), descriptor)  # somebody else gets the same number
    calls.close(one)
    os.fstat(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        calls.shut(one, socket.SHUT_RDWR)
    os.close(descriptor)
    other.close()


def test_where_the_library_cannot_be_called_the_methods_do(monkeypatch):
    assert isinstance(system_calls(), Quick)
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "ctypes", None)
        assert type(system_calls()) is Plain
    with monkeypatch.context() as context:
        context.setattr(sys, "platform", "darwin")
        assert type(system_calls()) is Plain
