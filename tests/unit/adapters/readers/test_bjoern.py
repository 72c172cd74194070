"""What is read beside a bjoern; tests/servers/test_gate_anywhere.py has a real one."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import types

import pytest

from wsgi_busyguard import Board, BusyGuard, Load, Monitor
from wsgi_busyguard.adapters.detect import find
from wsgi_busyguard.adapters.readers.bjoern import BjoernAdapter


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def clients(listener):
    """Come to the door and wait."""
    with contextlib.ExitStack() as stack:

        def clients(count):
            for _ in range(count):
                stack.enter_context(socket.create_connection(listener.getsockname()))

        yield clients


def test_one_is_inside_and_the_others_are_in_the_kernel(listener, clients, environ, start, until):
    adapter, go_on = BjoernAdapter(listener), threading.Event()
    assert adapter.read() == Load(0, 0, 1)
    guard = BusyGuard(lambda *_: [go_on.wait(20)], monitor=Monitor(adapter))
    start(guard, environ("GET", "/x"), print)
    clients(3)
    until(lambda: adapter.read() == Load(3, 1, 1))
    assert guard.monitor.state.value == "busy"
    go_on.set()
    until(lambda: adapter.read() == Load(3, 0, 1))
    listener.close()
    assert adapter.read() is None


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_who_is_accepted_and_has_asked_waits_too(family, environ, start, until, tmp_path):
    host = {socket.AF_INET: "", socket.AF_INET6: "::"}.get(family)
    where = str(tmp_path / "site") if host is None else (host, 0)
    go_on = threading.Event()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.bind(where)
        listener.listen()
        adapter = BjoernAdapter(listener)
        clients = [stack.enter_context(socket.socket(family)) for _ in range(4)]
        for client in clients:
            client.connect(listener.getsockname())
        accepted = [stack.enter_context(listener.accept()[0]) for _ in range(3)]
        for client in clients[:2]:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        for one, other in (socket.socketpair(), (accepted[2], clients[2])):
            one.sendall(b"not for bjoern")  # an app's own, and an answer
            stack.callback(one.close)
            stack.callback(other.close)
        assert adapter.read() == Load(1, 0, 1)  # in a moment they are read
        guard = BusyGuard(lambda *_: [go_on.wait(20)], monitor=Monitor(adapter))
        start(guard, environ("GET", "/x"), print)
        until(lambda: adapter.read() == Load(3, 1, 1))
        go_on.set()
        until(lambda: adapter.read() == Load(1, 0, 1))


def test_on_a_board_one_of_several_posts_those_whom_nobody_has_accepted(
    listener, clients, environ, start, until, monkeypatch
):
    clients(3)
    accepted, _ = listener.accept()
    share, go_on = BjoernAdapter(listener).share(Board()), threading.Event()
    monkeypatch.setattr(
        "wsgi_busyguard.adapters.readers.bjoern._has_bytes", accepted.fileno().__eq__
    )
    guard = BusyGuard(lambda *_: [go_on.wait(20)], monitor=Monitor(share))
    start(guard, environ("GET", "/x"), print)
    until(lambda: share.read() == Load(3, 1, 1))
    monkeypatch.setattr("wsgi_busyguard.adapters.readers.bjoern.speaks", lambda board: False)
    assert share.read() == Load(1, 1, 1)
    go_on.set()
    accepted.close()
    assert repr(share).startswith("<BjoernAdapter: one request at a time")


def test_it_says_what_it_wanted():
    with pytest.raises(TypeError, match=r"^listener must be the socket of bjoern.listen\(\), not "):
        BjoernAdapter(None)


def test_it_is_told_by_the_function_that_runs_it(listener):
    bjoern = types.ModuleType("bjoern")
    exec("def server_run(sock, call):\n    return call()", bjoern.__dict__)
    server = bjoern.server_run(listener, lambda: find({}))
    assert (server.name, server.threads) == ("bjoern", math.inf)
    assert server.adapter().read() == Load(0, 0, 1)
    assert "leave it out" in server.blocks
    elsewhere = types.ModuleType("unicorn")
    exec("def server_run(sock, call):\n    return call()", elsewhere.__dict__)
    assert elsewhere.server_run(listener, lambda: find({})) is None
