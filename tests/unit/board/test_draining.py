"""What tells the processes on a board to drain, and what ends it."""

from __future__ import annotations

import fcntl
import logging
import os

import pytest

from wsgi_busyguard import Board, BusyGuard, Load, Monitor
from wsgi_busyguard.board import draining
from wsgi_busyguard.board.layout import SERVER
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.board.table import OWNER
from wsgi_busyguard.board.watcher import Watcher
from wsgi_busyguard.haproxy import Agent
from wsgi_busyguard.load import FREE

SOME = Load(0, 1, 4)


class Fixed:
    def read(self):
        return SOME


@pytest.fixture
def board(clock):
    return Board(clock=clock)


def process(board):
    """Return what posts for a process that is ready, until it is let go of."""
    publisher = Publisher(board, Fixed())
    publisher.join()
    publisher.ready()
    return publisher


@pytest.fixture
def publisher(board):
    return process(board)


def test_whoever_is_asked_says_draining_and_serves_on(board, publisher):
    monitor, watcher = Monitor(publisher), Watcher(board)
    assert board.drain() == [os.getpid()]
    for policy in ("exact", "damped", "always"):
        assert monitor.check(policy) == ("draining", False, SOME)
        assert watcher.check(policy) == ("draining", False, SOME)
    assert monitor.draining
    assert not monitor.stopping
    assert watcher.draining
    assert monitor.state is FREE
    assert board.read() == SOME  # it is counted as before: it serves
    assert Agent(monitor).line_for("lb1") == b"up maxconn:1\n"


def test_what_was_said_can_be_taken_back(board, publisher):
    monitor = Monitor(publisher)
    assert board.undrain() == []
    board.drain()
    board.drain()
    assert board.undrain() == [os.getpid()]
    assert monitor.check() == ("free", True, SOME)
    assert not monitor.draining
    assert Agent(monitor).line_for("lb1") == b"up maxconn:4\n"


def test_nobody_is_told_on_an_empty_board(board, publisher):
    publisher.leave()
    assert board.drain() == []
    assert not board.draining


def test_another_process_with_the_file_says_so(tmp_path, clock):
    path = tmp_path / "board"
    monitor = Monitor(process(Board(path, clock=clock)))
    pid = os.fork()
    if not pid:
        os._exit(0 if Board(path).drain() == [os.getppid()] else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert monitor.check().word == "draining"


def test_one_that_is_told_is_told_of_all(board, publisher):
    """As others may join who were not there: a balancer asks any of them, and means the host."""
    board.drain()
    publisher._place.put(SERVER, publisher._place.get(SERVER) + 2)  # of another server
    monitor = Monitor(process(board))
    assert monitor.check().word == "draining"


def test_a_worker_in_the_place_of_one_that_was_told_is_told(board, publisher):
    board.drain()
    publisher.leave()
    assert not board.draining  # nobody is there
    worker = process(board)
    assert board.draining
    assert board.undrain() == [os.getpid()]
    worker.leave()
    worker = process(board)
    assert not board.draining


def test_a_worker_of_a_killed_one_is_told(board, publisher):
    """Its row still has its owner, which is gone."""
    board.drain()
    board.table.words[board.table.at(OWNER, publisher._place.row)] = 2**30 << 8 | 2
    publisher._place = None
    worker = process(board)
    assert worker.joined
    assert board.draining


def test_a_server_that_is_started_anew_is_not_born_draining(board, publisher, monkeypatch):
    board.drain()
    publisher.leave()
    monkeypatch.setattr(draining, "SERVER_ID", draining.SERVER_ID + 2)
    new = process(board)
    assert not board.draining
    assert Monitor(new).check().word == "free"
    assert board.drain() == [os.getpid()]
    assert board.draining


def test_a_new_server_serves_once_the_old_one_stops(board, publisher, monkeypatch):
    """As at gunicorn's USR2: both are there for a while, and the old one was told to drain."""
    board.drain()
    monkeypatch.setattr(draining, "SERVER_ID", draining.SERVER_ID + 2)
    monitor = Monitor(process(board))
    assert monitor.check().word == "draining"
    publisher.stopping()
    assert monitor.check().word == "free"


def test_those_that_stop_are_told_of_nobody(board, publisher):
    board.drain()
    publisher.stopping()
    assert not board.draining
    assert Watcher(board).check().word == "draining"  # for another reason: all are stopping


def test_the_guard_goes_on_to_count_its_process(tmp_path):
    """Its own ``drain()`` takes it out of the sum; being told from outside must not."""
    guard = BusyGuard(lambda *_: [], slots=4, board=tmp_path / "board")
    publisher = guard.monitor.adapter
    publisher.call()
    publisher.board.drain()
    publisher.beat()
    assert [row.state for row in publisher.board.rows()] == ["ready"]
    assert guard.monitor.load.capacity == 4
    assert guard.monitor.check().word == "draining"
    publisher.leave()


def test_a_process_without_a_slot_says_what_the_host_says(board, publisher):
    homeless = Monitor(Publisher(board, Fixed()))
    board.drain()
    assert homeless.check().word == "draining"


def test_the_log_has_a_line_for_each_change(board, publisher, caplog):
    with caplog.at_level(logging.WARNING, "wsgi_busyguard"):
        publisher.beat()
        assert caplog.messages == []
        board.drain()
        publisher.beat()
        publisher.beat()
        board.undrain()
        publisher.beat()
        publisher.beat()
    assert [line.partition(" by way")[0] for line in caplog.messages] == [
        "told to drain",
        "no longer told to drain",
    ]


def test_another_one_writes_no_line(board, publisher, caplog, monkeypatch):
    monkeypatch.setattr(board, "is_leader", lambda: False)
    board.drain()
    publisher.beat()
    assert caplog.messages == []


def test_it_is_not_said_while_another_process_holds_the_board(tmp_path, clock):
    """One that is stopped in the middle of a claim; else a word could be lost."""
    path = tmp_path / "board"
    board = Board(path, clock=clock)
    publisher = process(board)
    assert publisher.joined
    holds, held = os.pipe()
    pid = os.fork()
    if not pid:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(held, b".")
            os.read(os.pipe()[0], 1)
        os._exit(0)
    try:
        os.read(holds, 1)
        with pytest.raises(OSError, match="another process holds the board's lock"):
            board.drain()
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert board.drain() == [os.getpid()]


def test_a_row_that_has_changed_hands_since_the_look_is_left_alone(board, publisher):
    """It belongs to a process that was not there when this was said."""
    owners = board.table.column(OWNER)
    rows = [publisher._place.row]
    assert draining.start_draining(board.table, rows, [word + (1 << 8) for word in owners]) == []
    assert not board.draining
    assert draining.start_draining(board.table, rows, owners) == [os.getpid()]
