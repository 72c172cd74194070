"""Threads that cannot be started now, and are started later."""

from __future__ import annotations

import logging
import os
import threading

import pytest

from wsgi_busyguard import Board, BusyGuard, Load, Monitor
from wsgi_busyguard._support import launcher
from wsgi_busyguard._support.launcher import launch, relaunch
from wsgi_busyguard.adapters.front.threaded import ThreadedFront
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.haproxy import Push
from wsgi_busyguard.metrics.graphite import StatsD


@pytest.fixture
def scarce(monkeypatch):
    """No thread can be started until ``scarce.clear()``; every attempt is one at once."""
    scarce = threading.Event()
    scarce.set()
    for name in ("_start_new_thread", "_start_joinable_thread"):
        start = getattr(threading, name, None)

        def limited(*arguments, start=start, **named):
            if scarce.is_set():
                raise RuntimeError("can't start new thread")
            return start(*arguments, **named)

        if start is not None:
            monkeypatch.setattr(threading, name, limited)
    monkeypatch.setattr(launcher, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(launcher, "_due_at", 0.0)
    return scarce


class Thing:
    def __init__(self):
        self.begun = 0

    def begin(self):
        threading.Thread(target=lambda: None).start()
        self.begun += 1


def test_what_cannot_be_started_is_started_later(scarce, caplog):
    one, two = Thing(), Thing()
    for thing in (one, two, one):  # asked for twice, and wanted once
        launch(thing.begin)
    relaunch()
    assert (one.begun, two.begun) == (0, 0)
    scarce.clear()
    relaunch()
    relaunch()
    assert (one.begun, two.begun) == (1, 1)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_what_can_be_started_is_started_at_once(scarce, caplog):
    scarce.clear()
    thing = Thing()
    launch(thing.begin)
    assert (thing.begun, caplog.records) == (1, [])


def test_what_nobody_has_any_more_is_forgotten(scarce):
    thing = Thing()
    launch(thing.begin)
    del thing
    scarce.clear()
    relaunch()
    assert not launcher._postponed


def test_what_was_started_meanwhile_is_not_started_once_more(scarce):
    """Whoever is stopped and started anew, a sender say, would go on twice."""
    thing = Thing()
    launch(thing.begin)
    scarce.clear()
    launch(thing.begin)
    relaunch()
    assert thing.begun == 1


def test_a_sender_that_was_stopped_and_started_anew_sends_once(scarce, adapter):
    sender = StatsD(Monitor(adapter), "127.0.0.1:1", every=1000.0).start()
    sender.stop()
    scarce.clear()
    sender.start()
    relaunch()
    names = [thread.name for thread in threading.enumerate()]
    sender.stop()
    assert names.count("busyguard-sender") == 1


def test_attempts_have_a_pause_between_them(scarce, monkeypatch):
    monkeypatch.setattr(launcher, "RETRY_SECONDS", 1000.0)
    thing = Thing()
    launch(thing.begin)
    relaunch()
    scarce.clear()
    relaunch()
    assert thing.begun == 0
    monkeypatch.setattr(launcher, "_due_at", 0.0)
    relaunch()
    assert thing.begun == 1


def test_a_log_that_raises_is_nobodys_outage(scarce):
    def raises(record):
        raise ValueError("outside of a request")

    logger = logging.getLogger("wsgi_busyguard")
    logger.addFilter(raises)
    try:
        thing = Thing()
        launch(thing.begin)
        scarce.clear()
        relaunch()
    finally:
        logger.removeFilter(raises)
    assert thing.begun == 1


def test_a_child_begins_anew(scarce):
    thing = Thing()
    launch(thing.begin)
    pid = os.fork()
    if pid == 0:
        os._exit(len(launcher._postponed))
    assert os.waitpid(pid, 0)[1] == 0
    assert len(launcher._postponed) == 1


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path / "board")


def test_a_publisher_beats_in_a_loop_until_there_is_a_thread(scarce, board, adapter, until):
    publisher, worked = Publisher(board, adapter), []
    publisher.join()
    publisher.ready()
    publisher.start(lambda: worked.append(threading.current_thread()))
    publisher.beat_if_due()
    until(lambda: publisher.beat_if_due() or worked)  # when a beat is due, and not before
    assert set(worked) == {threading.current_thread()}
    scarce.clear()
    publisher.post()
    worked.clear()
    until(lambda: worked)
    assert threading.current_thread() not in worked
    publisher.stop()
    worked.clear()
    publisher.beat_if_due()
    assert not worked


def test_a_publisher_that_is_stopped_does_not_begin_later(scarce, board, adapter):
    publisher = Publisher(board, adapter)
    publisher.join()
    publisher.start()
    publisher.stop()
    scarce.clear()
    publisher.post()
    assert not publisher._beats.running


def test_a_guard_that_wants_threads_serves_without(scarce, ask, adapter, tmp_path, until):
    """The first call would raise, and so would every other one."""
    heard = []

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"served"]

    push = "tcp:127.0.0.1:1#app/web1"
    guard = BusyGuard(app, board=tmp_path / "board", push=push, on_busy=heard.append)
    for _ in range(3):
        assert ask(guard, path="/x").text == "served"
        assert ask(guard, "OPTIONS", "/").status == 200
    assert not guard.monitor.adapter._beats.running
    scarce.clear()
    assert ask(guard, path="/x").text == "served"
    until(lambda: guard.monitor.adapter._beats.running)
    until(lambda: guard._pushes._watching.running)
    guard._pushes.stop()
    guard.monitor.adapter.stop()


def test_calls_at_once_leave_no_more_to_do_than_one(scarce, environ, tmp_path):
    """Each would do what all of them left, and leave as much again, until nothing else is done."""
    guard = BusyGuard(lambda environ, start_response: [], board=tmp_path / "board")
    publisher, meanwhile = guard.monitor.adapter, [None] * 5
    call = publisher.call

    def beside_another():
        if meanwhile:
            meanwhile.pop()
            guard(environ(path="/x"), print)
        return call()

    publisher.call = beside_another
    guard(environ(path="/x"), print)
    assert len(guard._first) == 1
    scarce.clear()
    guard(environ(path="/x"), print)
    assert guard._first == []
    assert publisher._beats.running
    publisher.stop()


def test_no_slot_is_looked_for_at_each_call(scarce, environ, tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(Publisher, "_claimed", lambda *_: looks.append(1) or 1 / 0)
    guard = BusyGuard(lambda environ, start_response: [], board=tmp_path / "board")
    for _ in range(5):
        guard(environ(path="/x"), print)
    assert len(looks) == 1


def test_a_front_serves_without_its_threads_and_has_them_later(scarce, until):
    front, heard = ThreadedFront(1, on_busy=print), []
    front.start()
    front._listener_thread.put(lambda: heard.append("news"))
    assert not front._beats.running
    scarce.clear()
    assert front.match("OPTIONS", "/", "", {}) is not None
    assert front._beats.running
    until(lambda: heard)
    front.stop()


def test_a_monitor_that_has_to_look_looks_later(scarce, adapter, until):
    heard = []
    monitor = Monitor(adapter, interval=0.01)
    monitor.on_busy(heard.append)
    scarce.clear()
    relaunch()
    adapter.load = Load(5, 4, 4)
    until(lambda: heard)


def test_of_a_push_each_thread_begins_once_however_few_are_to_be_had(scarce, adapter, until):
    """Else each attempt would leave some, until there are far too many."""
    push = Push(Monitor(adapter), ["tcp:127.0.0.1:1#app/a", "tcp:127.0.0.2:1#app/b"])
    push.start()
    push.start()

    def names():
        return sorted(one.name for one in threading.enumerate() if "push" in one.name)

    assert names() == []
    scarce.clear()
    relaunch()
    relaunch()
    assert names() == ["busyguard-push", "busyguard-push-line", "busyguard-push-line"]
    push.stop()
    until(lambda: names() == [])
