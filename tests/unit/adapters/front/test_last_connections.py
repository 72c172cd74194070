from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys

import pytest

from wsgi_busyguard.adapters.front.last_connections import admit_no_more, pending


@pytest.fixture(params=["IPv4", "IPv6", "Unix"])
def listener(request, tmp_path):
    """A listening socket of one family or another."""
    family = {"IPv4": socket.AF_INET, "IPv6": socket.AF_INET6}.get(request.param, socket.AF_UNIX)
    hosts = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}
    with socket.socket(family) as listener:
        listener.bind(hosts.get(family, str(tmp_path / "socket")))
        listener.listen(8)
        yield listener


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """As a server without children; what runs these tests may have some."""

    def waitid(*_):
        raise ChildProcessError

    monkeypatch.setattr(os, "waitid", waitid)


def is_let_in(listener):
    with socket.socket(listener.family) as client:
        client.settimeout(0.05)
        try:
            client.connect(listener.getsockname())
        except OSError:
            return False
        return True


def test_who_is_in_is_served_and_who_comes_later_is_not_let_in(listener):
    with socket.socket(listener.family) as early:
        early.settimeout(5)
        early.connect(listener.getsockname())
        assert admit_no_more(listener, os.getpid())
        assert not is_let_in(listener)
        assert pending(listener)
        served, _ = listener.accept()
        with served:
            early.sendall(b"ask")
            assert served.recv(100) == b"ask"
            served.sendall(b"answer")
            assert early.recv(100) == b"answer"
    listener.settimeout(0)
    with pytest.raises(OSError):  # noqa: PT011 (which one depends on the family)
        listener.accept()


@pytest.mark.slow
def test_who_is_not_let_in_tries_again_and_is_refused_once_the_socket_is_closed():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as late:
        where = listener.getsockname()
        assert admit_no_more(listener, os.getpid())
        late.setblocking(False)
        assert late.connect_ex(where) == errno.EINPROGRESS
        listener.close()
        poller = select.poll()
        poller.register(late, select.POLLOUT)
        assert poller.poll(10_000)
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


def test_nothing_is_done_to_a_socket_that_another_process_has_made(listener):
    assert not admit_no_more(listener, os.getppid())
    assert is_let_in(listener)


def test_nothing_is_done_while_there_are_children_who_may_have_the_socket_too(
    listener, monkeypatch
):
    monkeypatch.undo()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert not admit_no_more(listener, os.getpid())
        assert is_let_in(listener)
        child.stdin.close()


def test_a_socket_that_is_closed_is_not_worth_an_error(listener):
    listener.close()
    assert not admit_no_more(listener, os.getpid())
    assert not pending(listener)


def test_nobody_is_pending_when_nobody_waits(listener):
    assert not pending(listener)
