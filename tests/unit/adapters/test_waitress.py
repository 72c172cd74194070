from __future__ import annotations

import logging
import socket
import threading
from types import SimpleNamespace

import pytest
from django.core.handlers.asgi import ASGIHandler
from waitress import create_server
from waitress.channel import HTTPChannel

from wsgi_busyguard import Load, Monitor
from wsgi_busyguard.adapters.waitress import WaitressAdapter, guarded_server
from wsgi_busyguard.adapters.waitress import server as module
from wsgi_busyguard.adapters.waitress.tasks import AnswerTask


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"app"]


@pytest.fixture
def made():
    """Makes guarded servers, and ends them."""
    servers = []

    def made(app=app, **options):
        if "sockets" not in options and "listen" not in options:
            options["sockets"] = [socket.create_server(("127.0.0.1", 0))]
        server = guarded_server(app, **options)
        servers.append((server, options.get("sockets", ())))
        return server

    yield made
    for server, sockets in servers:
        thread = threading.Thread(target=server.run, daemon=True)
        server.guard.end()
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        for sock in sockets:
            sock.close()


# The reader


def test_a_reader_wants_a_server():
    with pytest.raises(
        TypeError,
        match=r"^server must be a waitress server, as waitress.create_server\(\) returns it",
    ):
        WaitressAdapter(app)


def test_the_load_is_known_while_the_lock_is_not_to_be_had(caplog, until):
    """waitress writes its log line about the queue under it, and a handler may ask for the load.

    And whoever has it may wait for the interpreter's own behind threads that compute.
    """
    sockets = {}
    server = create_server(app, map=sockets, host="127.0.0.1", port=0, threads=1)
    monitor = Monitor(WaitressAdapter(server))
    dispatcher = server.task_dispatcher
    until(lambda: dispatcher.active_count == 0)
    with dispatcher.lock:
        assert monitor.load == Load(0, 0, 1)
        dispatcher.active_count = 1
        dispatcher.queue.append(object())
        assert monitor.load == Load(1, 1, 1)
        dispatcher.active_count = 0
        dispatcher.queue.clear()
    assert caplog.records == []
    assert monitor.load == Load(0, 0, 1)
    assert "WaitressAdapter of TcpWSGIServer" in repr(monitor)
    server.task_dispatcher.shutdown()
    for channel in list(sockets.values()):
        channel.close()


def test_a_server_of_another_shape_is_unknown_and_said_once(caplog):
    monitor = Monitor(WaitressAdapter(SimpleNamespace(task_dispatcher=object())))
    for _ in range(3):
        assert monitor.check().ready
    assert len(caplog.records) == 1


# Making one


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"app": None}, TypeError, "app must be a WSGI app, not None"),
        ({"app": ASGIHandler}, TypeError, "app must be a WSGI app, .* which is an ASGI app: "),
        ({"threads": 0}, ValueError, "threads must be at least 1, not 0"),
        ({"threads": True}, TypeError, "threads must be a whole number, not True"),
        ({"grace": 0}, ValueError, "grace must be more than 0 seconds, not 0"),
        ({"max_queue": -1}, ValueError, "max_queue must be at least 0, not -1"),
        ({"ready": "often"}, ValueError, "ready must be one of exact, damped, always, not 'often'"),
        ({"no_such": 1}, ValueError, "Unknown adjustment 'no_such'"),
        (
            {"connection_limit": 20},
            ValueError,
            r"connection_limit=20 is too few for threads=4 and max_queue=16: make it 28 at least,"
            " or lower max_queue",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_meant_is_told_at_construction(options, error, words):
    arguments = {"app": app, **options}
    with pytest.raises(error, match=f"^{words}"):
        guarded_server(**arguments)


@pytest.mark.parametrize(
    ("most", "expected"), [(100, 100), (1024, 512), (100_000, 1000), (-1, 1000)]
)
def test_connections_leave_the_app_its_descriptors(monkeypatch, most, expected):
    monkeypatch.setattr("resource.getrlimit", lambda _: (most, most))
    assert module.connections() == expected


def test_a_server_that_cannot_be_made_leaves_nothing_open():
    """A trigger or a socket that is left is a ResourceWarning, and an error here."""
    threads = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="Address already in use"):
            guarded_server(app, listen=where)
    assert threading.active_count() == threads


def test_a_socket_that_is_given_may_be_others_too_and_one_of_its_own_is_not(made):
    assert made().guard.shares
    own = made(listen="127.0.0.1:0")
    assert not own.guard.shares
    assert [sock.getsockname()[1] for sock in own.guard.listeners()] == [int(own.effective_port)]


def test_what_is_said_of_waitress_is_taken_as_it_is(made):
    server = made(connection_limit=77, asyncore_use_poll=False, max_queue=1, ident="us")
    adjusted = server.adj
    assert adjusted.connection_limit == 77
    assert adjusted.asyncore_use_poll is False
    assert adjusted.ident == "us"


def test_this_waitress_is_as_it_is_known(monkeypatch):
    assert module.moved() == []
    monkeypatch.delattr(HTTPChannel, "service")
    assert module.moved() == ["HTTPChannel.service"]
    monkeypatch.setattr(module, "create_server", lambda application: None)
    assert module.moved()[:2] == ["create_server(_dispatcher=)", "create_server(map=)"]


def test_several_sockets_are_served_behind_one_guard(made, start):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    server = made(sockets=sockets, threads=1)
    start(server.run)
    for listener in sockets:
        with socket.create_connection(listener.getsockname(), 10) as line:
            line.sendall(b"OPTIONS / HTTP/1.0\r\n\r\n")
            assert line.makefile("rb").read().endswith(b"free")
    server.guard.drain(1)


# Serving


class Channel:
    """As much of a channel as the dispatcher looks at."""

    def __init__(self, path="/", error=None):
        self.requests = [
            SimpleNamespace(
                command="GET", path=path, query="", headers={}, error=error, close=lambda: None
            )
        ]
        self.requests_lock = threading.Lock()
        self.adj = SimpleNamespace(outbuf_high_watermark=1000)
        self.server = SimpleNamespace(pull_trigger=lambda: None)
        self.total_outbufs_len = 0
        self.close_when_flushed = False
        self.socket, self.other = socket.socketpair()
        self.served = []
        self.cancelled = threading.Event()

    def service(self):
        self.served.append(threading.current_thread().name)
        self.requests = []

    def cancel(self):
        self.cancelled.set()
        self.requests = []

    def close(self):
        self.socket.close()
        self.other.close()


@pytest.fixture
def channel():
    channel = Channel()
    yield channel
    channel.close()


def test_a_guard_that_fails_lets_the_request_in_and_says_so_once(made, until, caplog):
    server = made(threads=1)
    server.guard.match = lambda *_: 1 / 0
    channels = [Channel() for _ in range(3)]
    for channel in channels:
        server.task_dispatcher.add_task(channel)
        until(lambda channel=channel: channel.served)
        channel.close()
    assert [record.message for record in caplog.records] == [
        "could not judge a request; served without the guard"
    ]


def test_who_is_about_to_speak_need_not_make_room_where_that_can_wait(made, monkeypatch):
    front = made(app).guard
    # One came before the clock was set back.
    young, old, ahead = (SimpleNamespace(creation_time=at) for at in (999.95, 1, 2000))
    monkeypatch.setattr("wsgi_busyguard.adapters.waitress.dispatcher.time.time", lambda: 1000.0)
    turns = iter([[young, old], [young, ahead], [young]])
    monkeypatch.setattr(front, "_in_turn", lambda: next(turns))
    gone = []
    front._room._end = gone.append
    for _ in range(3):
        front._make_room_for_one()
    assert gone == [old, ahead]


def test_what_waitress_says_to_an_error_takes_no_slot(made, until):
    server = made(threads=1, max_queue=0)
    server.guard.gate.enter()
    broken = Channel(error=ValueError())
    server.task_dispatcher.add_task(broken)
    until(lambda: broken.served)
    broken.close()


def test_one_who_has_not_read_what_was_said_is_told_no_more(made, channel):
    """waitress would wait for him, on the thread of the checks."""
    server = made(threads=1)
    channel.total_outbufs_len = 501
    AnswerTask(server.guard, channel, app).service()
    assert channel.served == []
    assert channel.requests == []
    assert channel.close_when_flushed


def test_a_shutdown_closes_the_connections_of_those_who_wait(made, until, caplog):
    caplog.set_level(logging.CRITICAL)
    server = made(threads=1, max_wait=1000.0)
    server.guard.gate.enter()
    closed = []
    channel = Channel()
    channel.handle_close = lambda: closed.append(True)
    server.task_dispatcher.add_task(channel)
    assert server.guard.gate.read().queued == 1
    server.task_dispatcher.shutdown(timeout=0.1)
    assert server.guard.gate.read().queued == 0
    channel.close()


def test_an_item_in_waitress_own_queue_is_cancelled_with_its_slot_returned(made, channel):
    server = made(threads=1)
    server.task_dispatcher.set_thread_count(0)
    server.task_dispatcher.add_task(channel)
    assert server.guard.gate.read().active == 1
    server.task_dispatcher.shutdown(timeout=0.1)
    assert channel.cancelled.is_set()
    assert server.guard.gate.empty
