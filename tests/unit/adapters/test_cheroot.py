from __future__ import annotations

import math
import socket
import threading
from types import SimpleNamespace

import pytest
from cheroot.wsgi import Server
from django.core.handlers.asgi import ASGIHandler

from wsgi_busyguard import Load, Monitor
from wsgi_busyguard._support.request_head import read_head
from wsgi_busyguard.adapters.cheroot import CherootAdapter, guarded_server
from wsgi_busyguard.adapters.cheroot import server as module
from wsgi_busyguard.adapters.cheroot.reply_thread import ReplyThread
from wsgi_busyguard.adapters.cheroot.request import PeekedRequest
from wsgi_busyguard.adapters.front import waiting_sockets


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"app"]


# The reader


def test_a_reader_wants_a_server():
    with pytest.raises(
        TypeError, match=r"^server must be a cheroot\.wsgi\.Server or cherrypy\.server"
    ):
        CherootAdapter(app)


def pool(queued, idle, threads):
    return SimpleNamespace(qsize=queued, idle=idle, min=7, _threads=[None] * threads)


@pytest.mark.parametrize(
    ("requests", "load"),
    [
        (pool(0, 4, 4), Load(0, 0, 4)),
        (pool(0, 1, 4), Load(0, 3, 4)),
        (pool(5, 0, 4), Load(5, 4, 4)),
        (pool(2, 2, 4), Load(0, 4, 4)),  # which the idle are about to take
        (pool(0, 0, 0), Load(0, 0, 7)),  # not started
        (pool(2, 0, 0), Load(0, 2, 7)),
    ],
)
def test_what_idle_threads_are_about_to_take_is_not_queued(requests, load):
    assert CherootAdapter(SimpleNamespace(requests=requests)).read() == load


def test_cherrypys_server_is_read_once_it_has_started(caplog):
    """``cherrypy.server`` makes its ``httpserver`` when it starts."""
    cherrypy_server = SimpleNamespace(httpserver=None)
    monitor = Monitor(CherootAdapter(cherrypy_server))
    for _ in range(3):
        assert monitor.check().ready
    assert len(caplog.records) == 1
    cherrypy_server.httpserver = SimpleNamespace(requests=pool(5, 0, 4))
    assert monitor.load == Load(5, 4, 4)


# A cheroot of another day


def test_a_cheroot_whose_names_moved_is_guarded_from_behind_and_it_is_said_once(
    monkeypatch, caplog
):
    assert module.moved() == []
    monkeypatch.setitem(module.KNOWN_NAMES, Server, ("a_name_of_tomorrow",))
    server = guarded_server(app, ("127.0.0.1", 0), threads=2)
    server.expiration_interval = 0.02
    server.prepare()
    serving = threading.Thread(target=server.serve)
    serving.start()
    try:
        for asked, said in [(b"GET /page", b"app"), (b"OPTIONS /", b"free")] * 2:
            with socket.create_connection(server.bind_addr, 20) as line:
                line.sendall(asked + b" HTTP/1.0\r\n\r\n")
                assert line.makefile("rb").read().endswith(said)
        assert server.guard.monitor.load.capacity == 2
    finally:
        server.guard.drain(1.0)
        serving.join(20)
    assert not serving.is_alive()
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("this cheroot has no Server.a_name_of_tomorrow as it was known: ")


def test_what_is_not_as_it_is_known_is_named(monkeypatch):
    monkeypatch.delattr(module.HTTPRequest, "parse_request")
    assert module.moved() == ["HTTPRequest.parse_request"]


# Making one


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"app": None}, TypeError, "app must be a WSGI app, not None"),
        ({"app": ASGIHandler}, TypeError, "app must be a WSGI app, .* which is an ASGI app: "),
        ({"threads": 0}, ValueError, "threads must be at least 1, not 0"),
        ({"grace": -1}, ValueError, "grace must be more than 0 seconds, not -1"),
        ({"max_wait": 0}, ValueError, "max_wait must be more than 0 seconds, not 0"),
        ({"numthreads": 3}, TypeError, "give threads and max_queue, not numthreads"),
        ({"accepted_queue_size": 3}, TypeError, "give threads and max_queue, not accepted_queue_s"),
        ({"no_such": 1}, TypeError, ".*unexpected keyword argument 'no_such'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_meant_is_told_at_construction(options, error, words):
    arguments = {"app": app, **options}
    with pytest.raises(error, match=f"^{words}"):
        guarded_server(**arguments)


def test_what_is_said_of_cheroot_is_taken_as_it_is():
    server = guarded_server(app, ("127.0.0.1", 0), threads=3, request_queue_size=9, timeout=4)
    assert (server.request_queue_size, server.timeout, server.numthreads) == (9, 4, 3)
    assert guarded_server(app).request_queue_size == 1024


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # cheroot's own
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_port_that_is_taken_is_told_by_the_one_who_prepares():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = guarded_server(app, taken.getsockname())
        with pytest.raises(OSError, match="Address already in use"):
            server.prepare()


def test_threads_that_are_stuck_do_not_keep_the_process(start):
    server = guarded_server(app, ("127.0.0.1", 0), threads=3)
    server.prepare()
    workers = [t for t in threading.enumerate() if t.name.startswith("CP Server")]
    assert [worker.daemon for worker in workers] == [True] * 3
    serving = start(server.serve)
    server.stop()
    serving.join(20)
    assert not any(worker.is_alive() for worker in workers)


def test_a_drain_ends_the_server_though_no_thread_can_be_started_for_it(start, monkeypatch):
    server = guarded_server(app, ("127.0.0.1", 0), threads=1)
    server.prepare()
    serving = start(server.serve)
    begin = threading.Thread.start

    def scarce(thread):
        if thread.name == "busyguard-stop":
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    try:
        assert server.guard.drain(0.1).wait(20)
        serving.join(20)
        assert not serving.is_alive()
    finally:
        server.stop()


def test_room_is_made_though_a_thread_has_just_closed_the_one_who_is_looked_at():
    server = guarded_server(app, ("127.0.0.1", 0))
    ours, theirs = socket.socketpair()
    closed = socket.socket()
    closed.close()
    with ours, theirs:
        for sock in (closed, ours):
            conn = type("Connection", (), {"socket": sock, "seen": 0, "used": False, "accepted": 1})
            server.guard.idle[conn] = None
        server.guard.make_room(2)
        assert theirs.recv(1) == b""


def test_who_is_about_to_speak_need_not_make_room_where_that_can_wait():
    server = guarded_server(app, ("127.0.0.1", 0))
    pairs = [socket.socketpair() for _ in "ab"]
    for (ours, theirs), accepted in zip(pairs, (1, math.inf), strict=True):
        theirs.setblocking(False)
        conn = {"socket": ours, "seen": 0, "used": False, "accepted": accepted}
        server.guard.idle[type("Connection", (), conn)] = None
    server.guard.make_room(2, 0.1)
    old, young = (theirs for _, theirs in pairs)
    assert old.recv(1) == b""
    with pytest.raises(BlockingIOError):
        young.recv(1)
    for sock in (sock for pair in pairs for sock in pair):
        sock.close()


@pytest.mark.slow
@pytest.mark.parametrize("says", [b"", b"GET / HTTP/1.1\r\nHo"], ids=["silent", "half a head"])
def test_who_does_not_ask_in_time_is_told_so(start, says):
    server = guarded_server(app, ("127.0.0.1", 0), threads=1, timeout=0.5)
    server.prepare()
    start(server.serve)
    with socket.create_connection(server.bind_addr, 20) as line:
        line.sendall(says)
        answer = line.makefile("rb").read()
    server.stop()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.slow
def test_who_has_its_answer_and_asks_for_nothing_more_is_told_nothing(start):
    server = guarded_server(app, ("127.0.0.1", 0), threads=1, timeout=0.5)
    server.prepare()
    start(server.serve)
    with socket.create_connection(server.bind_addr, 20) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert line.makefile("rb").read().endswith(b"app")
    server.stop()


def test_what_can_be_no_request_is_told_so_in_cheroots_words(start):
    server = guarded_server(app, ("127.0.0.1", 0), threads=1)
    server.prepare()
    start(server.serve)
    for says in (b"GET / HTTP/1.1\n\n", b"\x16\x03\x01"):
        with socket.create_connection(server.bind_addr, 20) as line:
            line.sendall(says)
            answer = line.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"\r\nConnection: close\r\n" in answer
        assert answer.endswith(b"\r\n\r\nHTTP requires CRLF terminators")
    server.stop()


def test_a_guard_that_fails_lets_the_request_in_and_says_so_once(start, caplog):
    server = guarded_server(app, ("127.0.0.1", 0), threads=1)
    server.guard._read = lambda *_: 1 / 0
    server.prepare()
    start(server.serve)
    for _ in range(3):
        with socket.create_connection(server.bind_addr, 10) as line:
            line.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert line.makefile("rb").read().endswith(b"app")
    server.stop()
    assert [record.message for record in caplog.records] == [
        "could not judge a request; served without the guard"
    ]


@pytest.mark.parametrize(
    ("head", "persists", "has_body"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", False, False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True, False),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", True, False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", False, False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", True, False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n", True, True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", True, True),
    ],
)
def test_a_head_tells_whether_a_body_follows_and_the_connection_is_kept(head, persists, has_body):
    request = PeekedRequest(read_head(head), False)
    assert (request.persists, request.has_body) == (persists, has_body)


# The thread that replies


@pytest.fixture
def replies():
    replies = ReplyThread("replies")
    replies.start()
    yield replies
    replies.stop()
    replies._thread.join(20)
    assert not replies._thread.is_alive()
    replies._bell.close()


@pytest.fixture
def pairs():
    pairs = [socket.socketpair() for _ in range(4)]
    yield pairs
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_jobs_are_done_in_their_order_and_outlive_one_that_raises(replies, until, caplog):
    done = []
    replies.put(lambda: done.append(1))
    replies.put(lambda: 1 / 0)
    replies.put(lambda: done.append(2))
    until(lambda: done == [1, 2])
    until(lambda: replies.empty)
    assert len(caplog.records) == 1


def test_a_connection_is_closed_when_its_peer_has_closed_and_not_before(replies, pairs, until):
    (ours, theirs), *_ = pairs
    closed = []
    theirs.sendall(b"x" * 1000)
    replies.put(lambda: replies.linger(ours, lambda: closed.append(True)))
    assert theirs.recv(1) == b""  # we have said all
    theirs.sendall(b"x" * 1000)
    assert not closed
    assert not replies.empty
    theirs.close()
    until(lambda: closed)
    until(lambda: replies.empty)


def test_a_peer_who_never_closes_is_closed_after_a_while(replies, pairs, until, monkeypatch):
    monkeypatch.setattr(waiting_sockets, "CLOSE_LINGER_SECONDS", 0.05)
    closed = []
    for number, (ours, _) in enumerate(pairs):
        replies.put(lambda n=number, s=ours: replies.linger(s, lambda: closed.append(n)))
    until(lambda: closed == [0, 1, 2, 3])
    assert replies.empty


def test_the_oldest_goes_when_too_many_linger(replies, pairs, until, monkeypatch):
    monkeypatch.setattr(replies._lingering._waiting, "_limit", 2)
    closed = []
    for number, (ours, _) in enumerate(pairs):
        replies.put(lambda n=number, s=ours: replies.linger(s, lambda: closed.append(n)))
    until(lambda: closed == [0, 1])


def test_a_stop_closes_those_who_linger(pairs, until):
    replies = ReplyThread("replies")
    replies.start()
    closed = []
    replies.put(lambda: replies.linger(pairs[0][0], lambda: closed.append(True)))
    until(lambda: not replies.empty)
    replies.stop()
    until(lambda: closed)
    replies._thread.join(20)
    replies.stop()  # the second time does nothing
    replies._bell.close()
