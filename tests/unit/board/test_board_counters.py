from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import pytest

from wsgi_busyguard import Board, Load, Monitor
from wsgi_busyguard.board.layout import BEAT, COUNTS, READY, STARTING, STOPPING
from wsgi_busyguard.board.processes import born
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.board.table import BORN, FLAG_BITS
from wsgi_busyguard.board.watcher import Watcher
from wsgi_busyguard.counters import CHECKS
from wsgi_busyguard.gate import Gate
from wsgi_busyguard.load import BUSY, FREE

CALM, CROWDED = Load(0, 1, 4, service=0.5), Load(9, 4, 4, waited=0.25, service=0.5)


@pytest.fixture
def board(clock):
    return Board(clock=clock)


def serve(gate, times):
    for _ in range(times):
        gate.leave(gate.enter())


def joined(board, gate):
    publisher = Publisher(board, gate)
    publisher.join()
    publisher.ready()
    return publisher


def test_what_is_counted_is_on_the_board_after_a_beat(board):
    gate = Gate(4)
    publisher = joined(board, gate)
    serve(gate, 3)
    assert board.counts().served == 0
    publisher.beat()
    assert board.counts().served == board.rows()[0].served == 3
    assert board.counts() == gate.counts()


def test_what_was_counted_before_it_had_a_slot_is_not_on_the_board(board):
    gate = Gate(4)
    serve(gate, 5)
    publisher = joined(board, gate)
    serve(gate, 2)
    publisher.beat()
    assert board.counts().served == 2


def test_what_a_process_counted_stays_when_it_has_gone(board):
    gate = Gate(4)
    publisher = joined(board, gate)
    serve(gate, 3)
    publisher.leave()  # also what it has counted since its last beat
    assert board.rows() == []
    assert board.counts().served == 3
    publisher.join()
    serve(gate, 2)
    publisher.beat()
    assert board.counts().served == 5
    [row] = board.rows()
    assert (row.served, row.slot) == (2, 0)


def test_an_adapter_whose_counts_raise_posts_its_load(board):
    class Broken(Gate):
        def counts(self):
            raise RuntimeError("broken")

    publisher = joined(board, Broken(4))
    publisher.beat()
    assert board.read().capacity == 4
    assert board.counts().served == 0


@pytest.mark.slow
def test_counts_of_the_host_never_go_down_while_processes_are_killed():
    """Each serves as fast as it can until it is shot; others take their rows."""
    board, over, looks = Board(slots=3), threading.Event(), []

    def look():
        while not over.is_set():
            looks.append((board.counts().flat(), board.asked()))

    looker = threading.Thread(target=look)
    looker.start()
    ends = []
    try:
        for _ in range(8):
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                gate = Gate(4)
                publisher = joined(board, gate)
                monitor = Monitor(publisher)
                os.write(write, b"x")
                while True:
                    serve(gate, 10)
                    monitor.check()
                    publisher.beat()
            assert os.read(read, 1) == b"x"
            until = time.monotonic() + 20
            before = board.counts().served
            while board.counts().served < before + 200:
                assert time.monotonic() < until
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(read)
            os.close(write)
            ends.append(board.counts().served)
    finally:
        over.set()
        looker.join(20)
    assert ends == sorted(ends)
    assert len(board.table.column(0)) < 8  # rows were taken again
    for (counts, checks), (more_counts, more_checks) in itertools.pairwise(looks):
        assert all(map(int.__le__, counts, more_counts))
        assert all(map(int.__le__, checks, more_checks))
    # One that is shot between two stores leaves its last ten requests in some of the words only.
    counts = board.counts()
    assert counts.served - 8 * 10 <= sum(counts.service) <= counts.served + 8 * 10
    assert counts.admitted - 8 * 10 <= sum(counts.waits) <= counts.admitted + 8 * 10


def test_checks_of_all_processes_are_counted_together_with_the_watchers(board):
    monitor = Monitor(joined(board, Gate(4)))
    monitor.check()
    monitor.check("exact")
    monitor.check("exact", count=False)
    monitor.adapter.beat()
    watcher = Watcher(board)
    watcher.check("exact")
    watcher.check("exact", count=False)
    asked = dict(zip(CHECKS, watcher.asked(), strict=True))
    assert {key: n for key, n in asked.items() if n} == {
        ("damped", "free", True): 1,
        ("exact", "free", True): 2,
    }


def test_an_absent_host_is_an_answer(board):
    watcher = Watcher(board)
    watcher.check()
    asked = dict(zip(CHECKS, watcher.asked(), strict=True))
    assert asked["damped", "absent", False] == 1


# changes of state


def test_a_change_counts_once_whoever_sees_it(board, clock):
    for load in (CROWDED, CROWDED, CALM, CALM, CROWDED):
        assert board.judge(load) is (BUSY if load is CROWDED else FREE)
        clock.now += 2
    changes = board.changes()
    assert (changes.to_busy, changes.to_free) == (2, 1)
    assert changes.busy_seconds == pytest.approx(4 + 2)
    assert [(change.state, change.load) for change in changes.recent] == [
        (BUSY, CROWDED),
        (FREE, CALM),
        (BUSY, CROWDED),
    ]
    assert [change.lasted for change in changes.recent] == [None, 4, 4]


def test_a_change_that_two_see_at_once_counts_once(board, clock):
    board.judge(CROWDED)
    clock.now += 1
    others = [CALM]

    def middle():
        while others:
            board.judge(others.pop())
        return clock.now

    board._clock = middle
    assert board.judge(CALM) is FREE  # both have read 1
    changes = board.changes()
    assert (changes.to_busy, changes.to_free, changes.busy_seconds) == (1, 1, pytest.approx(1))


def test_the_last_changes_are_kept(board, clock):
    for n in range(50):
        board.judge(CALM if n % 2 else CROWDED)
        clock.now += 1
    recent = board.changes().recent
    assert len(recent) == 16
    assert recent[-1].state is FREE
    assert {change.lasted for change in recent[1:]} == {1.0}
    assert board.changes().busy_seconds == pytest.approx(25)


def test_while_nobody_is_there_nobody_is_busy(board, clock):
    publisher = joined(board, Gate(4))
    board.judge(CROWDED)
    clock.now += 3
    publisher.beat()
    publisher.leave()
    clock.now += 600
    changes = board.changes()
    assert (changes.to_busy, changes.to_free) == (1, 0)  # nobody has seen the end
    assert changes.busy_seconds == pytest.approx(4)
    publisher = joined(board, Gate(4))
    changes = board.changes()
    assert (changes.to_busy, changes.to_free) == (1, 1)
    assert changes.busy_seconds == pytest.approx(4)
    assert [change.lasted for change in changes.recent] == [None, pytest.approx(4)]
    board.judge(CROWDED)
    clock.now += 2
    publisher.beat()
    assert board.changes().busy_seconds == pytest.approx(6)


def test_who_comes_at_once_in_the_place_of_the_last_finds_the_state_as_it_was(board, clock):
    publisher = joined(board, Gate(4))
    board.judge(CROWDED)
    clock.now += 3
    publisher.beat()
    publisher.leave()
    clock.now += 0.5
    joined(board, Gate(4))
    assert board.changes().to_free == 0


def test_a_board_that_is_older_than_the_host_is_no_reason_to_fail(board, clock):
    """The file may outlive a boot, which sets the clock back."""
    for load in (CROWDED, CALM, CROWDED):
        board.judge(load)
        clock.now += 100
    clock.now = 5.0
    assert board.changes().busy_seconds >= 0
    board.judge(CALM)
    board.judge(CROWDED)
    assert board.changes().to_busy == 3


@pytest.mark.parametrize(
    ("others", "leads"),
    [
        ([], True),
        ([(READY, 0.1)], False),
        ([(STARTING, 0.1)], True),
        ([(STOPPING, 0.1)], True),
        ([(READY, 5.0)], True),
    ],
    ids=["alone", "another", "it is not ready", "it stops", "it is silent"],
)
def test_of_several_processes_the_first_that_is_ready_and_not_silent_leads(
    board, clock, others, leads
):
    pid = os.getppid()  # which is there
    clock.now += 100
    for state, silent in others:
        beat = int((clock() - silent) * 1e9)
        owner, first = pid << FLAG_BITS | state, {BORN: born(pid, 0), BEAT: beat}
        board.table.claim(
            owner, set(), lambda row, young: False, lambda first=first: first, {}, COUNTS
        )
    publisher = joined(board, Gate(1))
    publisher.beat()
    assert (board.is_leader(), board.leader() == os.getpid()) == (leads, leads)
    publisher.leave()
    clock.now += 10
    assert board.leader() == (pid if others and others[0][0] == READY else None)


def test_one_process_speaks_for_all(board):
    assert not board.is_leader()
    publisher = joined(board, Gate(1))
    assert board.is_leader()
    publisher.stopping()
    assert not board.is_leader()
