from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time

import pytest

from wsgi_busyguard import State
from wsgi_busyguard._support.notifier import ListenerThread
from wsgi_busyguard.adapters.front import last_connections as lastcall
from wsgi_busyguard.adapters.front.signals import draining_at_signals
from wsgi_busyguard.adapters.front.sockets import (
    disconnected,
    drain,
    peek,
    response_bytes,
    send,
    whole_response,
)
from wsgi_busyguard.adapters.front.threaded import SocketVisit, ThreadedFront, split
from wsgi_busyguard.policy import Reason


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


class Known(SocketVisit):
    """A visit that notes what is done with it."""

    def __init__(self, front, sock, client=None):
        super().__init__(front, sock, front.client({}) if client is None else client)
        self.saw = []

    def run(self):
        self.saw.append("run")

    def refuse(self, reason):
        self.saw.append(reason)

    def drop(self):
        self.saw.append("drop")


class Ending(ThreadedFront):
    ends = 0
    sent_all = True
    silent = stopped_listening = False
    sockets = ()

    def flushed(self):
        return self.sent_all

    def awaited(self):
        return self.silent

    def listeners(self):
        return self.sockets

    def stop_listening(self):
        self.stopped_listening = True

    def end(self):
        self.ends += 1


@pytest.fixture
def front():
    return Ending(1, max_queue=1, max_wait=1000.0)


@pytest.fixture
def visit(front, pair):
    return lambda: Known(front, pair[0])


# A visit, from its beginning to one of its ends


def test_one_gets_in_one_waits_one_is_refused(front, visit):
    first, second, _ = visits = [visit() for _ in range(3)]
    for each in visits:
        each.enter()
    assert [each.saw for each in visits] == [["run"], [], [Reason.QUEUE_FULL]]
    assert list(front.waiting) == [second]
    first.leave()
    assert second.saw == ["run"]
    assert second.waited > 0
    assert not front.waiting
    first.leave()  # the second time does nothing
    assert front.gate.read()[:2] == (0, 1)
    second.leave()
    assert front.gate.empty


def test_one_who_waits_is_refused_when_he_has_waited_too_long(visit):
    front = Ending(1, max_wait=0.001)
    sock, _ = pair = socket.socketpair()
    first, second = Known(front, sock), Known(front, sock)
    first.enter()
    second.enter()
    time.sleep(0.01)  # it has to grow old
    front.beat()
    assert second.saw == [Reason.QUEUE_AGE]
    assert not front.waiting
    for end in pair:
        end.close()


@pytest.mark.parametrize("how", ["close", "half", "ours"])
def test_one_who_waits_and_leaves_is_dropped_at_the_next_beat(front, visit, pair, how):
    ours, theirs = pair
    theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")  # which lies there unread
    first, second = visit(), visit()
    first.enter()
    second.enter()
    front.beat()
    assert second.saw == []
    {"close": theirs.close, "half": lambda: theirs.shutdown(socket.SHUT_WR), "ours": ours.close}[
        how
    ]()
    front.beat()
    assert second.saw == ["drop"]
    assert first.saw == ["run"]  # what has begun is finished
    assert front.gate.read()[:2] == (0, 1)


def test_whoever_has_waited_is_looked_at_again_when_its_turn_comes(front, visit, pair):
    first, second = visit(), visit()
    first.enter()
    second.enter()
    pair[1].close()
    assert first.serve(lambda: "served") == "served"  # it has not waited, so nobody looks
    assert second.saw == ["run"]
    assert second.serve(lambda: "served") is None
    assert second.saw == ["run"]  # to end the connection is up to who called
    assert front.gate.empty
    assert front.gate.counts()[:2] == (2, 1)  # both got in, and one was served


def test_the_slot_is_given_back_whatever_raises(front, visit):
    one = visit()
    one.enter()
    with pytest.raises(ZeroDivisionError):
        one.serve(lambda: 1 / 0)
    one.leave()
    assert front.gate.empty
    assert front.here.visit is None


def test_what_a_request_has_waited_in_the_proxy_counts_if_that_is_trusted(pair):
    old, young = ({"HTTP_X_REQUEST_START": f"t={time.time() - ago:.3f}"} for ago in (20.0, 4.0))
    trusting = Ending(2, max_wait=10.0, trust_queue_header=True)
    visits = [Known(trusting, pair[0], trusting.client(headers)) for headers in (old, young, {})]
    for visit in visits:
        visit.enter()
    assert [visit.saw for visit in visits] == [["run"], ["run"], []]
    assert [visit.waited for visit in visits] == [0.0, pytest.approx(4.0, abs=1.0), 0.0]
    visits.append(Known(trusting, pair[0], trusting.client(old)))
    visits[-1].enter()
    assert visits[-1].saw == [Reason.QUEUE_AGE]  # nobody is idle, so it may have waited
    assert Ending(2).client(old).ago == 0.0


def test_whoever_says_that_it_gives_up_sooner_waits_for_no_longer(pair):
    front = Ending(1, max_queue=2, max_wait=1000.0, client_timeout_header="X-Client-Timeout-Ms")
    hasty = front.client({"HTTP_X_CLIENT_TIMEOUT_MS": "1"})
    assert (hasty.patience, front.client({}).patience) == (0.001, 5.0)
    first, second, third = (Known(front, pair[0], client) for client in (hasty, hasty, None))
    for visit in (first, second, third):
        visit.enter()
    time.sleep(0.01)
    assert not first.is_too_late()  # it has not waited
    first.leave()
    assert second.saw == ["run"]
    assert second.is_too_late()
    assert third.saw == ["run"]  # in its place
    assert not third.is_too_late()
    second.leave()
    assert dict(zip(Reason, front.gate.counts().refused, strict=True))[Reason.QUEUE_AGE] == 1


def test_stopping_lets_go_of_those_who_wait(front, visit):
    first, second = visit(), visit()
    first.enter()
    second.enter()
    front.start()
    front.stop()
    assert second.saw == ["drop"]
    assert not front.waiting


# Draining


def test_a_drain_is_over_when_nobody_is_inside_and_all_is_sent(front, visit, until):
    first = visit()
    first.enter()
    over = front.drain(1000.0)
    front.beat()
    assert not over.is_set()
    assert front.monitor.check().word == "draining"
    late = visit()
    late.enter()
    assert late.saw == [Reason.DRAINING]
    front.sent_all = False
    first.leave()
    front.beat()
    until(lambda: front.stopped_listening)
    assert not over.is_set()
    front.sent_all = True
    until(over.is_set)
    front.beat()
    assert front.ends == 1


def test_a_drain_is_over_when_the_grace_is(front, visit):
    visit().enter()
    over = front.drain(0.0)
    front.beat()
    assert over.wait(10)
    assert front.ends == 1


def test_who_has_connected_is_waited_for_until_he_has_asked_and_nobody_new_is_let_in(
    front, until, monkeypatch
):
    monkeypatch.setattr(lastcall, "_is_alone", lambda _: True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        front.sockets, front.silent = [listener], True
        over = front.drain(1000.0)
        front.beat()
        until(lambda: front.stopped_listening)
        with socket.socket() as late:
            late.settimeout(0.05)
            with pytest.raises(OSError, match="timed out"):
                late.connect(listener.getsockname())
        assert not over.is_set()
        front.silent = False
        until(over.is_set)


def test_who_has_connected_and_says_nothing_is_not_waited_for_longer_than_a_moment(front, until):
    front.silent = True
    until(front_drained(front))


def test_a_socket_that_others_may_have_too_is_left_open_to_them(front, until):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        front.sockets, front.shares = [listener], True
        until(front_drained(front))
        with socket.create_connection(listener.getsockname(), 5):
            pass


def test_a_drain_ends_also_when_the_last_call_fails(front, until, caplog):
    front.sockets = None
    until(front_drained(front))
    assert front.ends == 1
    assert "could not wait for the last ones" in caplog.text


def front_drained(front):
    over = front.drain(1000.0)
    front.beat()
    return over.is_set


# What is told, and answered


def test_what_cannot_be_pushed_to_is_an_error_at_once():
    with pytest.raises(ValueError, match="expected unix:PATH#BACKEND/SERVER"):
        ThreadedFront(1, push="unix:/a")
    assert split({"push": ["a"], "listen": "b"}) == ({"push": ["a"]}, {"listen": "b"})


def test_listeners_are_told_in_a_thread_of_their_own(pair, until):
    told = []
    names = []

    def listener(change):
        told.append(change.state)
        names.append(threading.current_thread().name)

    front = Ending(1, on_busy=listener, on_free=listener)
    front.start()
    first, second = Known(front, pair[0]), Known(front, pair[0])
    first.enter()
    second.enter()
    until(lambda: told == [State.BUSY])
    first.leave()
    second.leave()
    until(lambda: told == [State.BUSY, State.FREE])
    assert set(names) == {"busyguard-teller"}
    front.stop()


def test_behind_the_threads_a_check_is_answered_and_the_rest_is_stamped(ask):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(environ["busyguard.waited"]).encode()]

    front = ThreadedFront(1)
    guarded = front.behind(app)
    assert ask(guarded, "OPTIONS", "/").text == "free"
    assert ask(guarded, path="/readyz", QUERY_STRING="ready=never").status == 400
    assert ask(guarded, path="/page").text == "0.0"


def test_the_options_of_a_guard_are_told_from_those_of_a_server():
    ours, theirs = split({"max_queue": 1, "listen": "*:80", "ready": "exact", "board": None})
    assert ours == {"max_queue": 1, "ready": "exact", "board": None}
    assert theirs == {"listen": "*:80"}
    assert split({"slots": 1}) == ({"slots": 1}, {})  # for the guard to say why it takes none


def test_on_a_board_it_is_counted_from_its_start_to_its_end(tmp_path):
    from wsgi_busyguard import Board

    board = Board(tmp_path / "board")
    front = Ending(3, board=board)
    assert board.read().capacity is None
    front.start()
    assert board.read().capacity == 3
    front.drain(0.0)
    front.beat()
    front.stop()
    assert board.read().capacity is None


# Threads


def test_a_teller_keeps_the_order_and_outlives_what_raises(until, caplog):
    told = []
    listeners = ListenerThread()
    listeners.start()
    listeners.put(lambda: told.append(1))
    listeners.put(lambda: 1 / 0)
    listeners.put(lambda: told.append(2))
    listeners.stop()
    until(lambda: not listeners._thread.is_alive())
    assert told == [1, 2]
    assert len(caplog.records) == 1


# Signals


class Drained:
    def __init__(self):
        self.graces = []

    def drain(self, grace):
        self.graces.append(grace)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_and_the_second_does_what_it_always_did(number):
    usual = signal.getsignal(number)
    front = Drained()
    with draining_at_signals(front, 7.0):
        os.kill(os.getpid(), number)
        assert front.graces == [7.0]
        assert signal.getsignal(number) == usual
    assert signal.getsignal(number) == usual


def test_signals_that_somebody_handles_are_his(until):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with draining_at_signals(Drained(), 7.0):
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_signals_are_let_be(start):
    before = signal.getsignal(signal.SIGTERM)

    def work():
        with draining_at_signals(Drained(), 7.0):
            assert signal.getsignal(signal.SIGTERM) == before

    start(work).join()


# The wire


def test_what_has_come_is_seen_and_left_there(pair):
    ours, theirs = pair
    ours.settimeout(10)  # as cheroot has it: recv() would wait
    assert peek(ours) is None
    theirs.sendall(b"OPTIONS")
    assert peek(ours) == b"OPTIONS"
    assert ours.recv(100) == b"OPTIONS"
    theirs.close()
    assert peek(ours) == b""


def test_those_who_have_left_are_known_though_something_lies_unread(pair):
    ours, theirs = pair
    assert disconnected([ours]) == set()
    theirs.sendall(b"GET")
    assert disconnected([ours]) == set()
    theirs.close()
    assert disconnected([ours]) == {ours}
    ours.close()
    assert disconnected([ours]) == {ours}


def test_a_peer_who_does_not_read_does_not_hold_up_who_speaks(pair):
    ours, _ = pair
    ours.settimeout(10)
    assert send(ours, b"x")
    assert not send(ours, b"x" * 10_000_000)
    assert not send(ours, b"x")


def test_what_is_thrown_away_is_gone_and_the_end_is_seen(pair):
    ours, theirs = pair
    ours.settimeout(10)
    assert not drain(ours)
    theirs.sendall(b"x" * 1000)
    assert not drain(ours)
    assert peek(ours) is None
    theirs.close()
    assert drain(ours)


def answer(status="200 OK", headers=(), body=(b"bo", b"dy")):
    def app(environ, start_response):
        start_response(status, [("Content-Type", "text/plain"), *headers])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else list(body)

    return app


@pytest.mark.parametrize(
    ("method", "version", "last", "expected"),
    [
        ("GET", (1, 1), False, b"\r\nContent-Length: 4\r\n\r\nbody"),
        ("GET", (1, 0), False, b"\r\nContent-Length: 4\r\nConnection: Keep-Alive\r\n\r\nbody"),
        ("GET", (1, 1), True, b"\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody"),
        ("HEAD", (1, 1), False, b"\r\nContent-Length: 4\r\n\r\n"),
    ],
    ids=["GET", "HTTP/1.0", "the last", "HEAD"],
)
def test_what_is_said_has_its_length_and_says_how_it_goes_on(method, version, last, expected):
    data = response_bytes(answer(), method, version, last)
    assert data == b"HTTP/1.1 200 OK\r\nContent-Type: text/plain" + expected


def test_a_length_that_an_app_gives_is_left_alone():
    _, headers, _ = whole_response(
        answer(headers=[("content-length", "4")]), {"REQUEST_METHOD": "GET"}
    )
    assert [name for name, _ in headers] == ["Content-Type", "content-length"]


def test_what_cannot_be_sent_raises_before_a_byte_is_sent(caplog):
    with pytest.raises(UnicodeEncodeError):
        whole_response(answer(headers=[("X-Odd", "\u20ac")]), {"REQUEST_METHOD": "GET"})
    front = ThreadedFront(1, refusal=answer("503 Later", headers=[("X-Odd", "\u20ac")]))
    caplog.set_level(logging.CRITICAL)
    status, _, body = whole_response(front.refusal(Reason.QUEUE_FULL), {"REQUEST_METHOD": "GET"})
    assert (status, body) == ("503 Service Unavailable", b"busy")
