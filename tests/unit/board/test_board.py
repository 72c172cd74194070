from __future__ import annotations

import fcntl
import gc
import math
import mmap
import os
import signal
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from wsgi_busyguard import Board, Load, Monitor, State
from wsgi_busyguard.board import BoardFull
from wsgi_busyguard.board import publisher as publisher_module
from wsgi_busyguard.board.layout import BEAT, MOST_REQUESTS, READY, THERE, packed
from wsgi_busyguard.board.processes import is_gone
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.board.table import FLAG_BITS, OWNER
from wsgi_busyguard.board.watcher import Watcher
from wsgi_busyguard.counters import Counters
from wsgi_busyguard.load import UNKNOWN

DEADLINE = 20.0

# A fork in a process that has threads is what this is about.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

FREE = Load(0, 1, 4)
FULL = Load(0, 4, 4)
CROWD = Load(9, 4, 4, service=0.1)


class Fixed:
    """Reads and counts what it is told to; an exception is raised."""

    def __init__(self, load=FREE):
        self.load = load
        self.counted = Counters()

    def counts(self):
        return self.counted

    def read(self):
        if isinstance(self.load, BaseException):
            raise self.load
        return self.load


def count(publisher, served):
    """Have a publisher's adapter count so many requests more, and have that posted."""
    counted = publisher.adapter.counted
    publisher.adapter.counted = counted._replace(served=counted.served + served)
    publisher.post_counts()


@pytest.fixture
def board(clock):
    return Board(clock=clock)


@pytest.fixture
def publisher(board):
    """Posts for this process, which is ready."""
    publisher = Publisher(board, Fixed())
    publisher.join()
    publisher.ready()
    return publisher


@pytest.fixture
def child():
    """Fork; the child runs a function, and dies with the test. Returns its process id."""
    pids = []

    def child(work, *args):
        pid = os.fork()
        if not pid:
            try:
                work(*args)
            except BaseException:
                os._exit(1)
            os._exit(0)
        pids.append(pid)
        return pid

    yield child
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def ended_well(pid):
    """Whether a child says that all it was to do is done; it is reaped."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def serve(board, load=FREE):
    """Post for ever, in a child."""
    publisher = Publisher(board, Fixed(load))
    publisher.join()
    publisher.ready()
    publisher.start()
    signal.pause()


def posters(board, loads, **kind):
    """Return a publisher for each load, all of this process and ready."""
    made = [Publisher(board, Fixed(load), **kind) for load in loads]
    for publisher in made:
        publisher.join()
        publisher.ready()
    return made


# What it reads: the sum


def test_a_service_time_outlives_those_who_knew_it(adapter):
    """After a reload the accept queue is full before any new worker has served a request."""
    board = Board()
    adapter.load = Load(2, 4, 4, service=0.5)
    old = Publisher(board, adapter)
    old.join()
    old.ready()
    assert board.read().service == 0.5
    old.leave()
    adapter.load = Load(6, 0, 4)
    new = Publisher(board, adapter)
    new.join()
    new.ready()
    assert board.read().delay == 6 * 0.5 / 4
    adapter.load = Load(6, 4, 4, service=0.1)
    new.post()
    assert board.read().service == 0.1


def test_a_new_board_knows_nothing(board):
    assert board.read() == UNKNOWN
    assert board.rows() == []
    assert board.slots == 256
    assert board.path is None


def test_a_load_is_read_as_it_was_posted(board, publisher):
    publisher.adapter.load = Load(3, 4, 4, 1.5, 0.25)
    publisher.post()
    assert board.read() == Load(3, 4, 4, 1.5, 0.25)


@pytest.mark.parametrize(
    ("other", "longest"),
    [(Load(1, 4, 4, longest=2.5), 2.5), (Load(1, 4, 4), math.inf), (Load(0, 3, 4), 1.5)],
    ids=["the longer of two", "one has no limit", "nobody waits in one"],
)
def test_the_limit_of_age_is_that_of_the_processes_in_which_one_waits(board, other, longest):
    kept = posters(board, [Load(3, 4, 4, longest=1.5), other])
    assert board.read().longest == longest
    del kept


def test_the_loads_are_summed_up(board):
    kept = posters(board, [Load(1, 2, 3), Load(4, 5, 6), Load(7, 8, 9)])
    assert board.read() == Load(12, 15, 18)
    assert len(board.rows()) == len(kept)


def test_the_oldest_who_waits_anywhere_is_the_oldest_of_the_host(board):
    kept = posters(board, [Load(1, 1, 1, 0.5), Load(1, 1, 1, 2.5), Load(0, 0, 1)])
    assert board.read().waited == pytest.approx(2.5)
    del kept


def test_who_waits_goes_on_waiting_while_his_process_posts_nothing(board, clock):
    kept = posters(board, [Load(1, 1, 1, 0.5)])
    clock.now += 7
    assert board.read().waited == pytest.approx(7.5)
    del kept


def test_one_unknown_capacity_makes_the_sum_unknown(board):
    kept = posters(board, [Load(1, 2, 3), Load(0, 2, None)])
    assert board.read() == Load(1, 4, None)
    del kept


def test_the_service_time_is_what_the_throughputs_come_to(board):
    """Ten a second here and one a second there are eleven a second on two slots."""
    kept = posters(board, [Load(0, 0, 1, service=0.1), Load(0, 0, 1, service=1.0), Load(0, 0, 5)])
    assert board.read().service == pytest.approx(2 / 11)
    del kept


def test_the_lag_is_that_of_the_loop_that_is_least_late(board):
    kept = posters(board, [Load(0, 0, 1, lag=0.5), Load(0, 0, 1, lag=2.0)], loop=True)
    assert board.read().lag == pytest.approx(0.5)
    del kept


def test_there_is_no_lag_while_one_process_needs_no_loop(board, clock):
    kept = [*posters(board, [Load(0, 0, 1, lag=9.0)], loop=True), *posters(board, [FREE])]
    clock.now += 5  # and though it has not beaten for long
    assert board.read().lag == 0.0
    del kept


def test_nor_do_processes_without_a_loop_lose_the_age_of_who_cannot_get_in(board, clock):
    """A server that accepts nobody posts it, though its beats come on time from a thread."""
    kept = posters(board, [Load(3, 0, 2, lag=2.5), Load(0, 0, 2, lag=9.0)])
    clock.now += 5  # it has not beaten for long, which says nothing
    assert board.read() == Load(3, 0, 4, lag=2.5)
    kept += posters(board, [FREE])
    assert board.read().lag == 0.0  # somebody else lets everybody in
    del kept


def test_a_loop_that_does_not_beat_is_late(board, clock):
    """Its process posts nothing of it, for it cannot."""
    kept = posters(board, [Load(0, 0, 1)], loop=True)
    clock.now += 1.25
    assert board.read().lag == pytest.approx(1.0)
    kept[0].beat()
    assert board.read().lag == 0.0


def test_only_those_that_are_ready_are_counted(board):
    kept = [Publisher(board, Fixed(Load(0, 0, n))) for n in (1, 10, 100)]
    for publisher in kept:
        publisher.join()
    assert board.read() == UNKNOWN
    kept[1].ready()
    kept[2].ready()
    kept[2].stopping()
    assert board.read() == Load(0, 0, 10)
    assert [row.state for row in board.rows()] == ["starting", "ready", "stopping"]


@pytest.mark.parametrize("flags", range(THERE + 1))
def test_a_row_in_several_states_at_once_is_there_all_the_same(board, publisher, flags):
    """Nobody posts such a word; whoever may write to the file can."""
    table = board.table
    table.words[table.at(OWNER, 0)] = os.getpid() << FLAG_BITS | flags
    named = [row.state for row in board.rows()]
    assert len(named) == (flags > 0)
    assert ("ready" in named) == (board.read() != UNKNOWN) == bool(flags & READY)


def test_those_are_awake_that_are_ready_and_beat(board, child, until):
    board = Board()
    kept = posters(board, [CROWD])
    alive, stopped = (child(serve, board, load) for load in (FREE, FULL))
    until(lambda: sorted(board.awake().values()) == [FREE, FULL, CROWD])
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: list(board.awake()) == [alive])  # nor does this one beat
    assert board.read().capacity == 12  # it is there, all the same
    assert kept


def test_a_row_tells_all_of_one_process(board, clock):
    publisher = Publisher(board, Fixed(Load(2, 3, 4, 0.5, 0.25)))
    publisher.join()
    publisher.adapter.counted = Counters(5, 3, (0, 1, 0), 2)
    publisher.post_counts()
    clock.now += 0.25
    [row] = board.rows()
    assert row[:2] == (os.getpid(), "starting")
    assert row.load == Load(2, 3, 4, 0.75, 0.25)
    assert row.beat == pytest.approx(0.25)
    assert (row.served, row.refused, row.dropped) == (3, 1, 2)


def test_many_threads_post_counts_exactly(board, publisher, start, hurry):
    served = []
    publisher.adapter.counts = lambda: Counters(served=len(served))

    def serve():
        for _ in range(1000):
            served.append(None)
            publisher.post_counts()

    threads = [start(serve) for _ in range(8)]
    for thread in threads:
        thread.join(DEADLINE)
    assert board.rows()[0].served == 8000


sizes = st.integers(0, MOST_REQUESTS + 5)
times = st.floats(0, 1e6)


def test_figures_that_no_word_can_hold_are_cut(board):
    [publisher] = posters(board, [Load(1, 1, 1, 1e30, 1e30, 1e30)], loop=True)
    load = board.read()
    assert load.waited == pytest.approx(1000.0)  # since the clock began
    assert load.service == load.lag == pytest.approx(2**63 / 1e9)
    publisher.leave()


@given(sizes, sizes, st.none() | sizes, times, st.none() | times)
def test_any_load_comes_back_as_it_was_up_to_two_million_of_each(
    queued, active, capacity, waited, service
):
    board = Board(clock=lambda: 1e7)
    [publisher] = posters(board, [Load(queued, active, capacity, waited, service)])
    load = board.read()
    room = None if capacity is None else min(capacity, MOST_REQUESTS - 1)
    assert load[:3] == (min(queued, MOST_REQUESTS), min(active, MOST_REQUESTS), room)
    assert load.waited == pytest.approx(waited, abs=1e-6)
    if service is None or not capacity:
        assert load.service is None
    else:
        assert load.service == pytest.approx(service, rel=1e-6, abs=2e-9)
    publisher.leave()


@pytest.mark.parametrize(
    "load",
    [Load(-1, 0, 1), Load(0, 0, 1, -0.5), Load(0, 0, -1), Load(0, -1, 1), Load(0, 0, 1, 0, -1)],
)
def test_a_figure_below_zero_is_no_figure(load):
    with pytest.raises(ValueError, match="expected no figure below 0"):
        packed(load, 0)


# What it posts


RUBBISH = [RuntimeError("broken"), None, "many", Load("a", 0, 1), Load(0, 0, 1, math.nan)]


@pytest.mark.parametrize("rubbish", [*RUBBISH, Load(-1, 0, 1), Load(0, 0, 1, math.inf)], ids=repr)
def test_an_adapter_that_fails_is_logged_once_a_streak_and_posted_as_unknown(
    board, publisher, caplog, rubbish
):
    for _ in range(2):
        publisher.adapter.load = rubbish
        for _ in range(3):
            publisher.beat()
        assert board.read() == UNKNOWN
        publisher.adapter.load = FREE
        publisher.beat()
        assert board.read() == FREE
    assert len(caplog.records) == 2
    assert "posted as unknown" in caplog.text


def test_reading_a_publisher_posts_first_so_that_its_own_share_is_never_old(publisher):
    publisher.adapter.load = CROWD
    assert publisher.read() == CROWD


def test_a_finalizer_that_posts_in_the_middle_of_a_look_waits_for_nobody(board):
    """And the look is taken once more: what it interrupted may be older than what it knows."""
    looks = []

    class Interrupted:
        def read(self):
            looks.append(1)
            look = len(looks)
            if look == 3:
                publisher.post()
            return Load(0, look, 9)

    publisher = Publisher(board, Interrupted())
    publisher.join()
    publisher.ready()
    publisher.post()
    publisher.post()
    assert len(looks) == 4
    assert board.read() == Load(0, 4, 9)


def test_the_last_figures_stored_are_those_of_the_last_look(board, start, until):
    """A look that takes long cannot undo one that was taken after it."""
    slow, go = threading.Event(), threading.Event()
    loads = iter([FREE, FULL, CROWD])

    class Slow:
        def read(self):
            load = next(loads)
            if load is FULL:
                slow.set()
                go.wait(DEADLINE)
            return load

    publisher = Publisher(board, Slow())
    publisher.join()
    publisher.ready()
    first = start(publisher.post)
    assert slow.wait(DEADLINE)
    second = start(publisher.post)
    go.set()
    first.join(DEADLINE)
    second.join(DEADLINE)
    assert board.read() == CROWD


def test_whoever_subscribes_is_called_at_each_beat(publisher):
    told = []
    publisher.subscribe(lambda: told.append(1))
    publisher.beat()
    publisher.beat()
    publisher.post()
    assert told == [1, 1]


def test_the_thread_beats_and_does_the_work_that_it_is_given(publisher, clock, until):
    done = []
    publisher.start(lambda: done.append(threading.current_thread().name))
    until(lambda: len(done) >= 2)
    publisher.stop()
    assert set(done) == {"busyguard-beat"}
    assert "busyguard-beat" not in [thread.name for thread in threading.enumerate()]


def test_work_that_raises_is_logged_once_a_streak_and_the_next_is_done(publisher, caplog, until):
    done = []

    def fails():
        raise RuntimeError("broken")

    publisher.start(fails, lambda: done.append(1))
    until(lambda: len(done) >= 3)
    publisher.stop()
    assert len(caplog.records) == 1
    assert "raised at a beat" in caplog.text


def test_a_beat_that_raises_is_logged_and_not_the_last(
    publisher, board, caplog, until, monkeypatch
):
    wrong = threading.Event()
    wrong.set()
    current = board.current
    monkeypatch.setattr(board, "current", lambda: 1 / 0 if wrong.is_set() else current())
    beats = []
    publisher.subscribe(lambda: beats.append(1))
    publisher.start()
    until(lambda: caplog.records)
    publisher.beat_if_due()
    wrong.clear()
    until(lambda: beats)
    publisher.stop()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("rubbish", ["counts", 7, {"served": 1}])
def test_counts_that_are_none_are_not_posted(board, publisher, rubbish):
    count(publisher, 1)
    publisher.adapter.counts = lambda: rubbish
    publisher.beat()
    assert board.counts().served == 1


def test_a_daemon_that_closes_all_descriptors_is_still_on_its_board(tmp_path, clock, monkeypatch):
    board = Board(tmp_path / "board", clock=clock)
    publisher = Publisher(board, Fixed(Load(0, 1, 4)))
    publisher.join()
    publisher.ready()
    memory = board.table._memory
    monkeypatch.setattr(memory, "_descriptor", 1 << 20)  # none that is open
    for _ in range(2):
        clock.now += 2.0
        publisher.beat()
        assert board.read() == Load(0, 1, 4)
    assert board.judge(Load(9, 4, 4)) is State.BUSY
    publisher.leave()
    monkeypatch.undo()


def test_a_publisher_that_nobody_has_gives_its_slot_back_and_its_thread_ends(board, until):
    publisher = Publisher(board, Fixed())
    publisher.join()
    publisher.start()
    thread = publisher._beats._run.thread
    assert len(board.rows()) == 1
    del publisher
    until(lambda: gc.collect() is not None and not thread.is_alive())
    assert board.rows() == []


def test_ready_and_stopping_may_be_called_in_a_signal_handler_in_the_middle_of_anything(board):
    """Also while this very thread holds every lock that there is here."""

    class Signalled:
        def read(self):
            signal.raise_signal(signal.SIGUSR1)
            return FREE

    publisher = Publisher(board, Signalled())
    before = signal.signal(signal.SIGUSR1, lambda *_: publisher.stopping())
    try:
        publisher.join()
        publisher.ready()
        assert board.rows()[0].state == "ready"
        publisher.post()
        assert board.rows()[0].state == "stopping"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_has_no_slot_posts_nothing_and_fails_at_nothing(board):
    publisher = Publisher(board, Fixed(CROWD))
    publisher.ready()
    publisher.post()
    publisher.beat()
    count(publisher, 1)
    publisher.stopping()
    publisher.leave()
    assert not publisher.joined
    assert publisher.read() == UNKNOWN


def test_joining_twice_takes_one_slot(board, publisher):
    publisher.join()
    assert len(board.rows()) == 1
    assert board.rows()[0].state == "ready"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Publisher("here", Fixed()), "board must be a Board, not 'here'"),
        (
            lambda: Publisher(Board(), 7),
            "adapter must have a read\\(\\) that returns a Load, not 7",
        ),
        (lambda: Board(slots="many"), "slots must be a whole number, not 'many'"),
    ],
)
def test_what_cannot_be_meant_is_told_at_once(make, words):
    with pytest.raises(TypeError, match=words):
        make()


@pytest.mark.parametrize("slots", [0, -1, 2**20 + 1])
def test_there_is_a_sensible_number_of_slots(slots):
    with pytest.raises(ValueError, match="slots must be at"):
        Board(slots=slots)


def test_a_board_and_a_publisher_say_what_they_are(tmp_path, publisher):
    assert repr(publisher.board) == "<Board in memory, 1/256 slots>"
    assert "slot 0 of <Board in memory, 1/256 slots>" in repr(publisher)
    assert repr(Board(tmp_path / "b", 3)) == f"<Board in {str(tmp_path / 'b')!r}, 0/3 slots>"


# Slots


def test_a_full_board_says_what_to_do(clock):
    board = Board(slots=2, clock=clock)
    kept = posters(board, [FREE, FREE])
    with pytest.raises(BoardFull, match=r"the board has 2 slots .*: make it with more slots"):
        Publisher(board, Fixed()).join()
    kept[0].leave()
    Publisher(board, Fixed()).join()


def test_a_slot_that_was_left_is_used_again_and_nothing_of_before_is_in_it(board, clock):
    [publisher] = posters(board, [CROWD])
    count(publisher, 7)
    publisher.leave()
    assert board.rows() == []
    another = Publisher(board, Fixed(FREE))
    another.join()
    [row] = board.rows()
    assert (row.load, row.served, row.state) == (FREE, 0, "starting")
    assert board.table.words[4] == 1  # no other slot was ever used


def test_free_gives_away_the_slots_of_one_process(board, publisher):
    board.free(os.getpid() + 1)
    assert len(board.rows()) == 1
    board.free(os.getpid())
    assert board.rows() == []
    assert not publisher.joined
    publisher.ready()
    publisher.post()
    assert board.rows() == []  # somebody else's by now, perhaps
    publisher.beat()  # by which it shows that it lives
    assert board.read() == FREE
    publisher.leave()
    publisher.beat()
    assert board.rows() == []


def test_a_process_that_executes_itself_anew_does_not_count_twice(tmp_path, python):
    """It keeps its id and the time at which it started."""
    script = """
        import os, sys
        from wsgi_busyguard import Board, Load
        from wsgi_busyguard.board.publisher import Publisher

        class Fixed:
            def read(self):
                return Load(0, 0, 4)

        board = Board(sys.argv[1])
        publisher = Publisher(board, Fixed())
        publisher.join()
        publisher.ready()
        if len(sys.argv) == 2:
            os.execv(sys.executable, [*sys.orig_argv, "again"])
        print(board.read().capacity, len(board.rows()))
    """
    assert python(script, tmp_path / "board") == "4 1\n"


def test_threads_that_join_at_once_never_share_a_slot(start, hurry):
    board = Board(slots=64)
    kept = [Publisher(board, Fixed(Load(0, 0, 1))) for _ in range(64)]
    together = threading.Barrier(8)

    def join(mine):
        together.wait(DEADLINE)
        for publisher in mine:
            publisher.join()
            publisher.ready()

    threads = [start(join, kept[number::8]) for number in range(8)]
    for thread in threads:
        thread.join(DEADLINE)
    assert board.read() == Load(0, 0, 64)
    assert len({publisher._place.row for publisher in kept}) == 64


@pytest.mark.slow
@pytest.mark.parametrize("anonymous", [True, False], ids=["in memory", "in a file"])
def test_processes_that_join_at_once_never_share_a_slot(tmp_path, child, anonymous, until):
    path = None if anonymous else tmp_path / "board"
    board = Board(path, slots=40)
    go, let_go = os.pipe()

    def work():
        os.close(let_go)
        mine = board if anonymous else Board(path)
        os.read(go, 1)  # nothing: the end of the pipe, for all at once
        serve(mine, Load(0, 0, 1))

    pids = [child(work) for _ in range(40)]
    os.close(let_go)
    os.close(go)
    until(lambda: board.read().capacity == 40)
    assert {row.pid for row in board.rows()} == set(pids)


# The dead


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_killed_process_is_out_of_the_sum_within_a_second(child, until, reaped):
    board = Board()
    pids = [child(serve, board, Load(0, 1, 4)) for _ in range(3)]
    until(lambda: board.read() == Load(0, 3, 12))
    os.kill(pids[1], signal.SIGKILL)
    killed = time.monotonic()
    if reaped:
        os.waitpid(pids[1], 0)
    until(lambda: board.read() == Load(0, 2, 8))
    took = time.monotonic() - killed
    print(f"out of the sum after {took:.2f} s")
    assert took < 1.0
    assert {row.pid for row in board.rows()} == {pids[0], pids[2]}


def test_the_slot_of_a_dead_process_is_used_again_at_once_when_the_board_is_full(child, until):
    board = Board(slots=2)
    pids = [child(serve, board, Load(0, 0, 4)) for _ in range(2)]
    until(lambda: board.read().capacity == 8)
    with pytest.raises(BoardFull):
        Publisher(board, Fixed()).join()
    os.kill(pids[0], signal.SIGKILL)
    os.waitpid(pids[0], 0)
    publisher = Publisher(board, Fixed(Load(0, 0, 100)))
    publisher.join()  # though it beat just now
    publisher.ready()
    assert board.read().capacity == 104


@pytest.mark.slow
def test_a_process_that_is_stopped_is_silent_and_stays(child, until):
    board = Board()
    pid = child(serve, board, Load(0, 1, 4))
    until(lambda: board.read().capacity == 4)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: board.rows()[0].beat > 1.0)
    assert board.read() == Load(0, 1, 4)
    assert board.stalled(1.0)
    os.kill(pid, signal.SIGCONT)
    until(lambda: not board.stalled(1.0))


def test_another_process_that_got_the_same_id_is_not_taken_for_it(board, publisher, clock):
    """As if the one that posted had started at another moment than the one that is there."""
    assert board.read() == FREE
    board.table.words[board.table.at(1, 0)] += 1
    clock.now += 0.4
    assert board.read() == FREE  # it beat just now, so it is not looked for
    clock.now += 0.2
    assert board.read() == UNKNOWN
    assert board.rows() == []
    board.table.words[board.table.at(1, 0)] -= 1  # one more that got it, and that is there
    assert board.read() == FREE


def test_what_is_known_of_a_silent_process_is_believed_for_a_quarter_of_a_second(
    board, publisher, clock, monkeypatch
):
    looked = []
    monkeypatch.setattr(
        "wsgi_busyguard.board.board.is_gone", lambda *who: looked.append(who) or len(looked) > 1
    )
    clock.now += 1
    for _ in range(5):
        assert board.read() == FREE
    assert len(looked) == 1
    clock.now += 0.3
    for _ in range(5):
        assert board.read() == UNKNOWN
    clock.now += 100
    assert board.read() == UNKNOWN  # the dead stay dead
    assert len(looked) == 2


def test_a_beat_from_before_the_host_was_booted_is_no_sign_of_life(board, publisher, clock):
    """The clock begins at 0 then, and the file may have outlived it."""
    assert board.read() == FREE
    board.table.words[board.table.at(1, 0)] += 1
    clock.now -= 500
    assert board.read() == UNKNOWN
    assert board.absent(2.0)


def test_without_proc_a_process_is_gone_when_no_signal_reaches_it(monkeypatch, child):
    monkeypatch.setattr("wsgi_busyguard.board.processes._PROC", False)
    assert not is_gone(os.getpid(), 0)
    assert not is_gone(1, 0)  # somebody else's, perhaps
    pid = child(lambda: None)
    assert ended_well(pid)
    assert is_gone(pid, 0)


@pytest.mark.parametrize("pid", [0, -1, 1 << 22, (1 << 61) - 1])
def test_no_process_has_an_id_that_only_a_broken_board_can_hold(pid):
    assert is_gone(pid, 0)


def test_nobody_is_declared_dead_when_the_system_does_not_tell(monkeypatch):
    def none_left(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", none_left)
    assert not is_gone(os.getpid(), 12345)


def test_a_process_hidden_from_this_user_is_asked_for_by_a_signal(monkeypatch):
    def hidden(*_):
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", hidden)
    assert not is_gone(os.getpid(), 12345)


# Forks


def test_a_child_never_writes_into_its_parents_slot(board, publisher, child):
    def work():
        assert not publisher.joined
        publisher.adapter.load = CROWD
        publisher.beat()
        publisher.stopping()
        count(publisher, 1)
        publisher.leave()

    assert ended_well(child(work))
    [row] = board.rows()
    assert (row.pid, row.state, row.load, row.served) == (os.getpid(), "ready", FREE, 0)


def test_a_child_that_joins_has_a_slot_of_its_own(board, publisher, child):
    def work():
        publisher.join()
        publisher.ready()
        count(publisher, 2)
        assert [row.pid for row in board.rows()] == [os.getppid(), os.getpid()]
        assert board.read() == Load(0, 2, 8)
        publisher.leave()

    assert ended_well(child(work))
    assert [row.pid for row in board.rows()] == [os.getpid()]


def test_a_child_of_a_fork_that_python_was_not_told_of_leaves_its_parents_slot_alone(
    board, publisher, monkeypatch
):
    """As under uWSGI, which forks without a word."""
    here = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)
    publisher.adapter.load = CROWD
    publisher.beat()
    publisher.stopping()
    assert not publisher.joined
    monkeypatch.undo()
    assert os.getpid() == here
    assert board.rows()[0].load == FREE


@pytest.mark.slow
def test_a_child_forked_while_another_thread_joins_can_join(child, start, hurry):
    board = Board(slots=100)
    stop = threading.Event()
    other = Publisher(board, Fixed())

    def come_and_go():
        while not stop.is_set():
            other.join()
            other.leave()

    thread = start(come_and_go)

    def work():
        signal.alarm(10)
        mine = Publisher(board, Fixed())
        mine.join()
        mine.post()

    try:
        for _ in range(20):
            assert ended_well(child(work))
    finally:
        stop.set()
        thread.join(DEADLINE)


# Torn reads


@pytest.mark.slow
def test_nobody_ever_sees_a_part_of_what_another_process_writes(tmp_path, child, until):
    """Four processes write figures that agree as fast as they can, and every look adds up."""
    board = Board(tmp_path / "board", slots=8)

    def write(number):
        publisher = Publisher(Board(tmp_path / "board"), Fixed(Load(0, 0, 0)))
        publisher.join()
        publisher.ready()
        while True:
            for size in (1, 1000, MOST_REQUESTS - 1, 77, 65536):
                publisher.adapter.load = Load(size, size, size, 0.0, 0.5)
                publisher.post()
                publisher._place.put(BEAT, board.now())

    for number in range(4):
        child(write, number)
    until(lambda: len(board.rows()) == 4)
    seen = set()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        for row in board.rows():
            queued, active, capacity = row.load[:3]
            assert queued == active == capacity
            seen.add(queued)
        queued, active, capacity = board.read()[:3]
        assert queued == active == capacity
    assert seen >= {1, 1000, MOST_REQUESTS - 1, 77, 65536}


# One answer


def test_all_processes_have_the_same_state_at_equality(child):
    """A hundred checks each, on either side of a fork: busy stays busy, and free free."""
    board = Board()
    [publisher] = posters(board, [FREE])
    for before, word in ((CROWD, "busy"), (FREE, "free"), (CROWD, "busy")):
        publisher.adapter.load = before
        Monitor(publisher).check()
        publisher.adapter.load = FULL
        publisher.post()

        def ask(word=word):
            monitor = Monitor(board)
            assert {monitor.check()[:1] for _ in range(100)} == {(word,)}

        pids = [child(ask), child(ask)]
        ask()
        assert all(map(ended_well, pids))


def test_a_monitor_tells_its_listeners_of_what_another_process_made_of_the_load(board, publisher):
    here, there = Monitor(publisher), Monitor(board)
    told = []
    here.on_busy(told.append)
    here.on_free(told.append)
    publisher.adapter.load = CROWD
    publisher.post()
    assert there.state is State.BUSY
    assert told == []
    publisher.adapter.load = FULL  # at equality it takes over what the other one has found
    publisher.beat()
    assert [change.state for change in told] == [State.BUSY]
    publisher.adapter.load = FREE
    publisher.beat()
    publisher.beat()
    assert [change.state for change in told] == [State.BUSY, State.FREE]


def test_a_publisher_needs_no_thread_of_the_monitor(publisher):
    before = threading.active_count()
    Monitor(publisher).on_busy(print)
    assert threading.active_count() == before


def test_damped_remembers_for_all_processes_what_it_said_last(board, publisher):
    """Between half the patience and the whole of it, the answer stays what it was."""
    one, other = Monitor(publisher), Monitor(board)
    publisher.adapter.load = CROWD._replace(waited=1.5)
    assert one.check("damped", 2.0).ready
    assert other.check("damped", 2.0).ready
    publisher.adapter.load = CROWD._replace(waited=2.5)
    assert not one.check("damped", 2.0).ready
    publisher.adapter.load = CROWD._replace(waited=1.5)
    publisher.post()
    assert not other.check("damped", 2.0).ready
    assert not board.was_ready
    publisher.adapter.load = CROWD._replace(waited=0.5)
    publisher.post()
    assert other.check("damped", 2.0).ready
    assert one.check("damped", 2.0).ready


def test_another_patience_has_a_memory_of_its_own(board, publisher):
    monitor = Monitor(publisher)
    publisher.adapter.load = CROWD._replace(waited=2.5)
    assert not monitor.check("damped", 2.0).ready
    assert monitor.check("damped", 4.0).ready
    assert not board.was_ready


# Who watches


def test_a_watcher_says_what_the_sum_says(board, publisher):
    watcher = Watcher(board)
    assert watcher.check() == ("free", True, FREE)
    publisher.adapter.load = CROWD._replace(waited=2.5)
    publisher.post()
    assert watcher.check()[:2] == ("busy", False)
    assert watcher.check("exact")[:2] == ("busy", False)
    assert watcher.check("always")[:2] == ("busy", True)
    publisher.adapter.load = CROWD._replace(waited=1.5)
    publisher.post()
    assert watcher.check()[:2] == ("busy", False)
    publisher.adapter.load = CROWD._replace(waited=0.5)
    publisher.post()
    assert watcher.check()[:2] == ("busy", True)
    assert [row.pid for row in watcher.rows()] == [os.getpid()]
    with pytest.raises(ValueError, match="ready must be one of"):
        watcher.check("odd")


@pytest.mark.parametrize(("waiting", "queued"), [(None, 0), (0, 0), (5, 5)])
def test_a_watcher_adds_what_waits_in_the_kernel(board, publisher, waiting, queued):
    watcher = Watcher(board, queued=lambda: waiting)
    assert watcher.load == FREE._replace(queued=queued)
    assert watcher.check().word == ("busy" if queued else "free")


def test_nobody_has_ever_been_there(board):
    watcher = Watcher(board)
    assert board.absent(1e9)
    for policy in ("exact", "damped", "always"):
        assert watcher.check(policy) == ("absent", False, UNKNOWN)
    assert watcher.alive()
    assert not watcher.draining


def test_who_goes_is_absent_after_a_patience(board, publisher, clock):
    watcher = Watcher(board)
    publisher.beat()
    clock.now += 0.25
    publisher.leave()
    assert watcher.check("damped", 2.0)[:2] == ("free", True)
    clock.now += 1.5
    assert watcher.check("damped", 2.0)[:2] == ("free", True)
    clock.now += 0.5
    assert watcher.check("damped", 2.0)[:2] == ("absent", False)
    publisher.join()
    assert watcher.check()[:2] == ("absent", False)  # it only starts
    publisher.ready()
    assert watcher.check()[:2] == ("free", True)


def test_a_look_remembers_that_somebody_was_there(board, publisher, clock):
    """One that has gone silent, and is then killed, was there until it was killed."""
    clock.now += 100
    board.read()
    publisher.leave()
    clock.now += 1.5
    assert not board.absent(2.0)


def test_all_are_stopping_is_draining(board, publisher, clock):
    another = Publisher(board, Fixed())
    another.join()
    watcher = Watcher(board)
    publisher.stopping()
    assert not watcher.draining
    another.stopping()
    assert watcher.draining
    another.adapter.load = Load(0, 2, 8)
    another.post()
    assert watcher.check("always") == ("draining", False, Load(0, 3, 12))  # what is left to do
    assert board.read() == UNKNOWN
    clock.now += 100
    assert watcher.check("always")[:2] == ("draining", False)


def test_a_watcher_may_be_told_that_the_host_drains(board, publisher):
    watcher = Watcher(board, draining=lambda: True)
    assert watcher.draining
    assert watcher.check("always") == ("draining", False, FREE)


def test_while_another_is_expected_all_may_stop_and_nobody_drains(board, publisher, clock):
    watcher = Watcher(board)
    publisher.ready()
    publisher.beat()
    board.expect()
    publisher.stopping()
    assert watcher.check("always")[:2] == ("free", True)
    clock.now += 2.1  # it does not come
    assert watcher.check("always")[:2] == ("draining", False)


def test_a_host_that_is_known_not_to_drain_only_exchanges_its_processes(board, publisher):
    watcher = Watcher(board, draining=lambda: False)
    publisher.ready()
    publisher.beat()
    publisher.stopping()
    assert board.stopping()
    assert watcher.check("always")[:2] == ("free", True)


def test_stalled_is_when_none_gets_on(board, clock):
    kept = posters(board, [FREE, FREE])
    watcher = Watcher(board, stall_after=30.0)
    clock.now += 29
    assert watcher.alive()
    kept[0].beat()
    clock.now += 29
    assert watcher.alive()  # one of them has
    clock.now += 2
    assert not watcher.alive()
    kept[1].beat()
    assert watcher.alive()
    clock.now += 100
    for publisher in kept:
        publisher.stopping()
    assert watcher.alive()


# Files


def test_an_existing_file_decides_its_own_number_of_slots(tmp_path):
    assert Board(tmp_path / "board", slots=7).slots == 7
    assert Board(str(tmp_path / "board"), slots=500).slots == 7


def test_a_file_survives_those_who_post(tmp_path):
    board = Board(tmp_path / "board")
    [publisher] = posters(board, [CROWD])
    again = Board(tmp_path / "board")
    assert again.read() == CROWD
    publisher.leave()
    del board, publisher, again
    gc.collect()
    assert Board(tmp_path / "board").rows() == []


@pytest.mark.parametrize(
    "content",
    [b"x", b"\0", b"PNG" * 1000, b"\0" * 20000, os.urandom(100), b"#!/bin/sh\n" + b"\0" * 9000],
    ids=["a byte", "a zero", "a picture", "zeros", "noise", "a script"],
)
def test_a_file_that_is_no_board_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a board in .*file"):
        Board(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("size", [1024, 5000, -8, 8])
def test_a_board_that_lacks_something_is_not_used(tmp_path, size):
    """Touching what is not there would kill the process."""
    path = tmp_path / "board"
    Board(path)
    gc.collect()
    with path.open("r+b") as file:
        file.truncate(size if size > 100 else path.stat().st_size + size)
    with pytest.raises(
        ValueError, match="is damaged: expected 338944 bytes for its 256 slots, not"
    ):
        Board(path)


@pytest.mark.parametrize("word", [1, 3], ids=["version", "columns"])
def test_a_board_of_another_version_is_not_used(tmp_path, word):
    path = tmp_path / "board"
    Board(path).table.words[word] += 1
    gc.collect()
    with pytest.raises(ValueError, match="one of another version of wsgi_busyguard: remove it"):
        Board(path)


@pytest.mark.parametrize("word", [2, 4], ids=["slots", "used"])
def test_a_board_whose_numbers_cannot_be_is_not_used(tmp_path, word):
    path = tmp_path / "board"
    Board(path).table.words[word] = 2**40
    gc.collect()
    with pytest.raises(ValueError, match="is damaged"):
        Board(path)


def test_what_is_no_file_is_no_board(tmp_path):
    with pytest.raises(OSError, match=r"not the folder .*: name a file in it"):
        Board(tmp_path)
    with pytest.raises(OSError, match=r"the folder .*nowhere. for the board is missing"):
        Board(tmp_path / "nowhere" / "board")
    with pytest.raises(ValueError, match="expected a file for a board, not '/dev/null'"):
        Board("/dev/null")


@pytest.mark.slow
def test_two_processes_that_make_a_file_at_once_make_one_board(tmp_path, child, until):
    for number in range(10):
        path = tmp_path / str(number)
        go, let_go = os.pipe()

        def work(path=path, go=go, let_go=let_go):
            os.close(let_go)
            os.read(go, 1)
            serve(Board(path), Load(0, 0, 1))

        pids = [child(work) for _ in range(4)]
        os.close(let_go)
        os.close(go)
        until(lambda path=path: path.exists() and path.stat().st_size == 338944)
        board = Board(path)
        until(lambda board=board: board.read().capacity == 4)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def test_a_file_without_a_place_on_the_disk_is_not_begun(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space, raising=False)
    with pytest.raises(OSError, match="No space"):
        Board(tmp_path / "board")
    monkeypatch.undo()
    assert Board(tmp_path / "board").slots == 256


def test_a_second_board_on_the_same_file_does_not_lose_the_first_ones_lock(tmp_path, child):
    """A process loses its record locks with any descriptor of the file that it closes."""
    path = tmp_path / "board"
    board = Board(path)

    def locked():
        Board(path)
        gc.collect()

        def try_it():
            with path.open("r+b") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os._exit(0)
            os._exit(1)

        assert ended_well(child(try_it))

    assert board.table.tried(locked)


def test_without_memfd_the_nameless_file_is_one_of_the_disk(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    [publisher] = posters(Board(), [CROWD])
    assert publisher.read() == CROWD


def test_a_descriptor_is_given_back_with_the_board(tmp_path):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        board = Board(tmp_path / "board")
        board.read()
        Board().read()
    del board
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_words_are_aligned():
    """That is what makes a store one store."""
    assert mmap.PAGESIZE % 8 == 0
    assert Board().table.words.itemsize == 8


# Any order of anything


class BoardMachine(RuleBasedStateMachine):
    """A board with three slots against a dict: who posts what, and in which state."""

    def __init__(self):
        super().__init__()
        self.took = None
        self.now = 1000.0
        self.board = Board(slots=3, clock=lambda: self.now)
        self.posters = [Publisher(self.board, Fixed(FREE)) for _ in range(5)]
        self.model = {}
        self.wanted = {}  # the state of those that have a row, or have found none and try again
        self.due = dict.fromkeys(range(5), 0)  # when they do, at a beat
        self.last_ready = None
        self.has_forked = False
        self.served = 0  # by all that ever had a slot
        self.counted = self.board.counts().flat()

    who = st.integers(0, 4)

    @rule(who=who)
    def join(self, who):
        self.wanted.setdefault(who, "starting")
        if who in self.model or len(self.model) < 3:
            self.posters[who].join()
            self.has_joined(who)
        else:
            with pytest.raises(BoardFull):
                self.posters[who].join()

    def has_joined(self, who):
        self.model.setdefault(who, [self.wanted[who], self.posters[who].adapter.load, 0])

    @rule(who=who, beat=st.booleans())
    def leave(self, who, beat):
        """The others may beat just then: one that has found no place looks for it again, later."""
        self.posters[who].leave()
        self.model.pop(who, None)
        self.wanted.pop(who, None)
        if beat:
            self.all_post(FREE, beat=True)

    @rule(who=who, state=st.sampled_from(["ready", "stopping"]))
    def turn(self, who, state):
        getattr(self.posters[who], state)()
        if who in self.wanted:
            self.wanted[who] = state
        if who in self.model:
            self.model[who][0] = state

    loads = st.builds(
        Load,
        st.integers(0, 50),
        st.integers(0, 50),
        st.none() | st.integers(0, 50),
        waited=st.just(0.0),
        service=st.none() | st.sampled_from([0.5, 2.0]),
        lag=st.just(0.0),
        longest=st.just(math.inf),
    )

    @rule(who=who, load=loads, beat=st.booleans())
    def post(self, who, load, beat):
        publisher = self.posters[who]
        publisher.adapter.load = load
        publisher.beat() if beat else publisher.post()
        if beat and who in self.wanted:
            self.has_beaten(who)
        if who in self.model:
            self.model[who][1] = load

    @initialize(many=st.sampled_from([0, 5]), ready=st.sampled_from([0, 2, 5]), load=loads)
    def begin(self, many, ready, load):
        """A full board hardly ever comes about step by step."""
        for who in range(many):
            self.join(who)
        for who in range(5 - ready, 5):  # the last first: they are those without a row
            self.turn(who, "ready")
        self.all_post(load, beat=True)

    @rule(load=st.just(FREE) | loads, beat=st.booleans())
    def all_post(self, load, beat):
        """After a reload none of them knows a service time as yet."""
        for who in range(5):
            self.post(who, load, beat)

    def has_beaten(self, who):
        now = self.board.now()
        if who not in self.model and now >= self.due[who]:
            full = len(self.model) == 3
            self.due[who] = now + 10**9 if full else 0
            if not full:
                self.has_joined(who)
        if self.wanted[who] == "ready":
            self.last_ready = self.now

    @rule(who=who, n=st.integers(1, 5))
    def count(self, who, n):
        count(self.posters[who], n)
        if who in self.model:
            self.model[who][2] += n
            self.served += n

    @rule(seconds=st.sampled_from([0.1, 0.6, 3.0]))
    def wait(self, seconds):
        self.now += seconds

    @precondition(lambda self: not self.has_forked)
    @rule(who=who, n=st.integers(1, 5))
    def fork(self, who, n):
        """A child has no row of the parent's; it takes its own, counts, and is gone.

        Another thread of the parent has its locks just then.
        """
        self.has_forked = True
        self.count(who, 1)  # which is no business of the child's
        has_them, over = threading.Event(), threading.Event()

        def hold():
            with self.posters[who]._lock, publisher_module._joining:
                has_them.set()
                over.wait(DEADLINE)

        thread = threading.Thread(target=hold)
        thread.start()
        assert has_them.wait(DEADLINE)
        room = len(self.model) < 3
        pid = os.fork()
        if not pid:
            signal.alarm(int(DEADLINE))
            try:
                self.be_a_child(self.posters[who], room, n)
                os._exit(0)
            except BaseException:
                os._exit(1)
        try:
            assert ended_well(pid)
        finally:
            over.set()
            thread.join()
        self.board.free(pid)
        self.served += n if room else 0

    def be_a_child(self, publisher, room, n):
        before = self.board.counts().served
        publisher.beat()
        assert not publisher.joined
        try:
            publisher.join()
        except BoardFull:
            assert not room
            return
        assert room
        publisher.ready()
        count(publisher, n)
        publisher.post()
        assert self.board.counts().served == before + n

    @precondition(lambda self: self.model)
    @rule()
    def free(self):
        self.board.free(os.getpid())
        for publisher in self.posters:
            publisher.leave()  # else each comes back at its next beat
        self.model.clear()
        self.wanted.clear()

    @invariant()
    def the_sum_is_that_of_the_model(self):
        ready = [load for state, load, _ in self.model.values() if state == "ready"]
        found = self.board.read()
        if not ready:
            assert found == UNKNOWN
            return
        self.last_ready = self.now
        capacities = [load.capacity for load in ready]
        assert found[:3] == (
            sum(load.queued for load in ready),
            sum(load.active for load in ready),
            None if None in capacities else sum(capacities),
        )
        rates = [(c.capacity, c.capacity / c.service) for c in ready if c.service and c.capacity]
        if rates:
            both = sum(c for c, _ in rates) / sum(rate for _, rate in rates)
            assert found.service == pytest.approx(both)
            self.took = both
        else:  # the last one that was known goes on to hold
            assert found.service == (None if self.took is None else pytest.approx(self.took))

    @invariant()
    def the_rows_are_those_of_the_model(self):
        rows = [(row.state, row.load[:3], row.served) for row in self.board.rows()]
        model = [(state, load[:3], served) for state, load, served in self.model.values()]
        assert sorted(rows, key=repr) == sorted(model, key=repr)

    @invariant()
    def no_count_ever_goes_down(self):
        """Whoever leaves: what it has counted stays in the sum."""
        before, self.counted = self.counted, self.board.counts().flat()
        assert all(is_ >= was for is_, was in zip(self.counted, before, strict=True))
        assert self.board.counts().served >= self.served

    @invariant()
    def absent_is_when_nobody_was_ready_for_two_seconds(self):
        is_ready = any(state == "ready" for state, _, _ in self.model.values())
        gone = self.last_ready is None or self.now - self.last_ready > 2.0 + 1e-6
        assert self.board.absent(2.0) == (not is_ready and gone)

    def teardown(self):
        for publisher in self.posters:
            publisher.leave()


TestAnyOrder = pytest.mark.slow(BoardMachine.TestCase)
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
