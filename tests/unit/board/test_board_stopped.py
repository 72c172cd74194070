"""Boards of which a process is stopped in the middle of a step, or whose file is made anew."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import time
from types import SimpleNamespace

import pytest

from unit.board.test_board import CROWD, FREE, Fixed, child, count, posters, serve
from wsgi_busyguard import Board, Gate, Load, Monitor, State
from wsgi_busyguard.board import BoardFull, memory
from wsgi_busyguard.board.layout import BEAT, COUNTS
from wsgi_busyguard.board.membership import Member
from wsgi_busyguard.board.memory import LockHeld
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.board.table import Table
from wsgi_busyguard.board.watcher import Watcher
from wsgi_busyguard.counters import Counters

DEADLINE = 20.0

# A fork in a process that has threads is what this is about.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

__all__ = ["child"]  # a fixture


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "board"


@pytest.fixture
def board(path):
    path.parent.mkdir()
    return Board(path)


@pytest.fixture
def stopped(child):
    """Fork; the child runs a function that stops it. Returns its process id."""

    def stopped(work, *args):
        pid = child(work, *args)
        _, status = os.waitpid(pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        return pid

    return stopped


def stop_here(*_):
    os.kill(os.getpid(), signal.SIGSTOP)


def goes_on(pid):
    """Have a stopped child go on, and return whether it ends well."""
    os.kill(pid, signal.SIGCONT)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# A process that is stopped while it has the lock


def claims_and_stops(path):
    """Stop in the middle of a claim, in a child."""
    board = Board(path)
    board.is_vacant = lambda *_: stop_here()  # asked for the first row, which has an owner
    Publisher(board, Fixed()).join()


@pytest.fixture
def held(board, path, stopped):
    """A child that is stopped while it claims a row."""
    kept = Publisher(board, Fixed())
    kept.join()
    pid = stopped(claims_and_stops, path)
    yield pid
    kept.leave()


@pytest.fixture
def pauses(monkeypatch):
    """How long each pause is that somebody makes while it waits for the lock of a board."""
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    return pauses


def test_nobody_waits_for_who_is_stopped_while_it_claims(board, held, pauses):
    """For gunicorn's master that would be the end: no new worker, no SIGTERM."""
    board.free(2**22 + 1)
    board.table.turn(os.getpid(), 1, 2, unless=0)
    assert board.judge(CROWD) is State.BUSY
    assert board.judge(FREE) is State.FREE
    board.expect()
    again = Board(board.path)
    assert len(again.rows()) == 1
    assert pauses == []
    other = Publisher(board, Fixed())
    with pytest.raises(LockHeld, match="another process holds the board's lock"):
        other.join()
    assert 0 < sum(pauses) <= memory.LOCK_PATIENCE_SECONDS + memory.LOCK_PAUSE_SECONDS


def test_who_finds_the_lock_held_gets_a_slot_when_it_is_not_any_more(board, held, caplog):
    member = Member(board, Fixed())
    member.enter()
    assert not member.joined
    assert "serves on" in caplog.text
    os.kill(held, signal.SIGKILL)
    os.waitpid(held, 0)
    member._due = 0
    member.beat()
    assert member.joined
    assert len(caplog.records) == 1
    member.leave()


def test_a_board_that_is_just_being_made_by_one_who_is_stopped_is_not_waited_for(
    path, stopped, monkeypatch
):
    path.parent.mkdir()

    def make():
        monkeypatch.setattr(os, "ftruncate", stop_here)
        Board(path)

    stopped(make)
    began = time.monotonic()
    with pytest.raises(LockHeld):
        Board(path)
    assert time.monotonic() - began < 5


def test_a_signal_handler_in_the_middle_of_a_claim_waits_for_nobody(board):
    """Up to gunicorn 21 the master frees the rows of the dead in one."""
    publisher = Publisher(board, Fixed())
    done = []

    def handler(*_):
        board.free(2**22 + 1)
        assert board.judge(CROWD) is State.BUSY
        done.append(board.changes().to_busy)  # it is for the next look to note

    before = signal.signal(signal.SIGUSR1, handler)
    board.is_vacant = lambda *_: signal.raise_signal(signal.SIGUSR1) or True
    other = Publisher(board, Fixed())
    try:
        publisher.join()
        other.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert done == [0]
    assert board.judge(CROWD) is State.BUSY
    assert board.changes().to_busy == 1


# A process that is stopped between reading and writing


class StopsWhenRead(Load):
    """Stops the process that judges it."""

    def __iter__(self):
        stop_here()
        return super().__iter__()


@pytest.mark.parametrize("where", ["before the lock", "under the lock"])
def test_the_number_of_changes_never_goes_down(board, path, stopped, where):
    """It is a counter for Prometheus; and what was noted meanwhile would be undone."""

    def note():
        mine = Board(path)
        if where == "before the lock":
            mine.judge(StopsWhenRead(*CROWD))
        else:
            mine._change_once = lambda *args: stop_here() or Board._change_once(mine, *args)
            mine.judge(CROWD)

    pid = stopped(note)
    seen = []
    for n in range(50):
        assert board.judge(FREE if n % 2 else CROWD) is (State.FREE if n % 2 else State.BUSY)
        seen.append((board.changes().to_busy, board.changes().to_free))
    assert goes_on(pid)
    seen.append((board.changes().to_busy, board.changes().to_free))
    assert seen == sorted(seen)
    if where == "before the lock":
        assert seen[-1] == (25, 25)
        assert not board.table.words[5] & 1  # free, as it was judged last
    else:
        assert seen[-1] == (1, 0)
        assert board.judge(FREE) is State.FREE
    assert board.changes().to_free == seen[-1][0]


def test_seconds_of_being_busy_never_go_down_for_who_reads_them(clock):
    board = Board(clock=clock)
    board.judge(CROWD)
    clock.now += 10
    assert board.changes().busy_seconds == pytest.approx(10)
    clock.now -= 5  # the moment at which another had read the clock that notes it now
    board.judge(FREE)
    clock.now += 5
    assert board.changes().busy_seconds == pytest.approx(10)


def test_a_count_never_goes_down_for_who_reads_it(board):
    [publisher] = posters(board, [FREE])
    count(publisher, 7)
    assert board.counts().served == 7
    publisher._place.put(COUNTS + 1, 3)  # by a thread that has been stopped in between
    assert board.counts().served == 7
    count(publisher, 1)
    assert board.counts().served == 8
    publisher.leave()


def test_an_adapter_that_cannot_count_for_a_while_takes_nothing_back(board):
    class Counting(Fixed):
        served = 5

        def counts(self):
            if self.served is None:
                raise RuntimeError("not now")
            return Counters(self.served, self.served)

    adapter = Counting()
    publisher = Publisher(board, adapter)
    publisher.join()
    for adapter.served in (9, None, 10):
        publisher.beat()
        assert board.rows()[0].served == (adapter.served or 9) - 5
    publisher.leave()


def test_two_monitors_of_one_poster_both_have_their_checks_counted(board):
    [publisher] = posters(board, [FREE])
    Monitor(publisher).check()
    publisher.beat()
    assert sum(board.asked()) == 1
    Monitor(publisher).check()
    publisher.beat()
    assert sum(board.asked()) == 2
    publisher.leave()


# A file that is made anew


def made_anew(path):
    """Remove the folder of the board, as systemd does, and make another board there."""
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    return Board(path)


def test_who_watches_finds_a_board_that_was_made_anew(board, path, child, until):
    watcher = Watcher(board)
    old = child(serve, board)
    until(lambda: watcher.check()[0] == "free")
    os.kill(old, signal.SIGKILL)
    os.waitpid(old, 0)
    new = made_anew(path)
    child(serve, new, Load(0, 0, 7))
    until(lambda: watcher.load.capacity == 7)
    assert watcher.check()[:2] == ("free", True)
    assert watcher.board.table.shares(new.table)


def test_who_posts_goes_to_the_board_that_was_made_anew(board, path, until):
    """A server that goes on, while whatever watches it is started anew and makes the file."""
    gate = Gate(4)
    publisher = Publisher(board, gate)
    monitor = Monitor(publisher)
    publisher.join()
    publisher.ready()
    slot = gate.enter()
    gate.leave(slot)
    publisher.beat()
    assert board.counts().served == 1
    publisher.start()
    new = made_anew(path)
    until(lambda: new.read().capacity == 4)
    assert monitor.check()[:2] == ("free", True)
    gate.leave(gate.enter())
    until(lambda: new.counts().served == 1)
    publisher.stopping()
    assert new.stopping()
    publisher.stop()
    publisher.leave()
    assert new.rows() == []


def test_while_the_file_is_missing_or_no_board_the_old_one_is_read(tmp_path, clock):
    path = tmp_path / "board"
    board = Board(path, clock=clock)
    [publisher] = posters(board, [FREE])

    def look():
        clock.now += 1
        publisher.beat()
        return board.read()

    path.unlink()
    assert look() == FREE
    for rubbish in (b"", b"my diary" * 200):
        path.write_bytes(rubbish)
        assert look() == FREE
    path.unlink()
    path.mkdir()
    assert look() == FREE
    path.rmdir()
    os.mkfifo(path)
    assert look() == FREE
    path.unlink()
    new = Board(path, 7)
    assert look() == FREE
    assert new.read() == FREE
    assert board.slots == 7
    publisher.leave()


def test_the_path_is_looked_at_once_a_second(path, clock, monkeypatch):
    path.parent.mkdir()
    board, looked = Board(path, clock=clock), []
    monkeypatch.setattr(Table, "successor", lambda *_: looked.append(1))
    for _ in range(100):
        clock.now += 0.05
        board.read()
    assert len(looked) in (4, 5)


def test_who_goes_to_another_folder_still_knows_its_board(tmp_path, monkeypatch, clock):
    monkeypatch.chdir(tmp_path)
    board = Board("board", clock=clock)
    monkeypatch.chdir("/")
    (tmp_path / "board").unlink()
    new = Board(tmp_path / "board")
    clock.now += 1
    board.read()
    assert board.table.shares(new.table)


def test_a_board_that_nobody_has_any_more_lets_go_of_its_file(path, clock):
    path.parent.mkdir()
    board = Board(path, clock=clock)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        made_anew(path)
        clock.now += 1
        board.read()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


# A process that finds no slot


def test_while_somebody_serves_without_a_slot_nobody_is_absent(board, clock, caplog):
    """As long as it beats; and it takes a slot as soon as there is one."""
    board = Board(slots=1, clock=clock)
    [other] = posters(board, [FREE])
    publisher = Publisher(board, Fixed())
    with pytest.raises(BoardFull):
        publisher.join()
    publisher.ready()
    other.stopping()
    watcher = Watcher(board, draining=lambda: False)
    for _ in range(20):
        clock.now += 0.5
        publisher.beat()
        assert watcher.check("damped", 2.0)[:2] == ("free", True)
    clock.now += 2.1
    assert watcher.check("damped", 2.0)[:2] == ("absent", False)
    other.leave()
    publisher.beat()
    assert [row.state for row in board.rows()] == ["ready"]
    assert len(caplog.records) == 1


def test_a_process_that_cannot_be_looked_at_joins_later(board, clock, monkeypatch):
    """No descriptor is left for /proc/self/stat, say."""
    board = Board(clock=clock)
    publisher = Publisher(board, Fixed())

    def none_left(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("wsgi_busyguard.board.publisher.born", none_left)
    publisher.seek()
    publisher.ready()
    publisher.beat()
    assert not publisher.joined
    monkeypatch.undo()
    clock.now += 1
    publisher.beat()
    assert board.read() == FREE


# Processes none of which gets on


def test_where_something_waits_and_nobody_has_beaten_for_patience_damped_says_no(clock):
    """Though all threads are idle by what was posted last, nobody takes it in."""
    board = Board(clock=clock)
    kept = posters(board, [Load(0, 0, 4), Load(0, 0, 4)])
    waiting = 3
    watcher = Watcher(board, queued=lambda: waiting)
    clock.now += 1.9
    assert watcher.check("damped", 2.0)[:2] == ("free", True)
    clock.now += 0.2
    assert watcher.check("damped", 2.0)[:2] == ("busy", False)
    assert watcher.check("damped", 3.0)[:2] == ("free", True)
    assert watcher.load.lag == pytest.approx(2.1)
    kept[0].beat()  # one of them gets on
    assert watcher.check("damped", 2.0)[:2] == ("free", True)
    clock.now += 5
    waiting = 0
    assert watcher.check("damped", 2.0)[:2] == ("free", True)
    assert kept[1]._place.get(BEAT)
