"""Guards that post on a board, in processes that fork: who is counted, and when."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from multiprocessing import Pipe

import pytest

from wsgi_busyguard import Board, BusyGuard, Load, Monitor
from wsgi_busyguard._support.listening_sockets import is_socket
from wsgi_busyguard.board.layout import BEAT, READY, STARTING
from wsgi_busyguard.board.membership import Member
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.board.table import OWNER
from wsgi_busyguard.board.watcher import Watcher
from wsgi_busyguard.checkport import CheckPort
from wsgi_busyguard.load import UNKNOWN

DEADLINE = 20.0

# A fork in a process that has threads is what this is about.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

CROWD = Load(9, 4, 4, 3.0, 0.1)


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"app"]


class Fixed:
    def __init__(self, load):
        self.load = load

    def read(self):
        return self.load


def forget_listeners():
    """Have this child of the tests listen at nothing, whatever a test before has left open."""
    with open(os.devnull) as nothing:
        for number in map(int, os.listdir("/dev/fd")):
            if not is_socket(number):
                continue
            with socket.socket(fileno=os.dup(number)) as one:
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    os.dup2(nothing.fileno(), number)


class Family:
    """A process that makes a guard, and those that it forks; each does what it is told.

    The first one is number 0. As a server's they listen, all at the same socket.
    """

    def __init__(self, make, listens):
        self.pipes = [Pipe() for _ in range(5)]
        self.logged = []
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            forget_listeners()
            keep = logging.Handler()
            keep.emit = lambda record: self.logged.append(record.getMessage())
            logging.getLogger("wsgi_busyguard").addHandler(keep)
            if listens:
                self.listener = socket.create_server(("127.0.0.1", 0))
            self.obey(0, make())

    def tell(self, number, *what):
        pipe = self.pipes[number][0]
        pipe.send(what)
        assert pipe.poll(DEADLINE), f"{number} does not answer to {what}"
        return pipe.recv()

    def obey(self, number, guard):
        pipe = self.pipes[number][1]
        while True:
            what, *with_ = pipe.recv()
            pipe.send(getattr(self, "do_" + what)(guard, *with_))

    def do_listen(self, guard):
        self.listener = socket.create_server(("127.0.0.1", 0))

    def do_listen_for_checks(self, guard):
        self.port = CheckPort(guard.monitor, "127.0.0.1:0")

    def do_look(self, guard):
        """Do what is done at a beat, as often as it takes to be sure."""
        for _ in range(3):
            guard.monitor.adapter.beat()
        return guard.monitor.adapter.joined

    def do_pid(self, guard):
        return os.getpid()

    def do_call(self, guard, path="/"):
        said = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "SCRIPT_NAME": ""}
        body = guard(environ, lambda status, headers, exc_info=None: said.append(status[:3]))
        return said[0], b"".join(body)

    def do_fork(self, guard, number, fork=os.fork):
        pid = fork()
        if not pid:
            self.logged.clear()
            self.obey(number, guard)
        return pid

    def do_fork_in_c(self, guard, number):
        """As uWSGI does: Python hears nothing of it."""
        return self.do_fork(guard, number, ctypes.PyDLL(None).fork)

    def do_fork_twice(self, guard, number):
        """As a daemon does: the one in the middle goes at once."""
        pid = os.fork()
        if not pid:
            if os.fork():
                os._exit(0)
            self.obey(number, guard)
        return os.waitpid(pid, 0)[1]

    def do_fork_and_execute(self, guard):
        pid = os.fork()
        if not pid:
            os.execvp("sleep", ["sleep", "60"])
        return pid

    def do_drain(self, guard):
        guard.monitor.drain()

    def do_wants_to_join(self, guard):
        return guard.monitor.adapter.joined or guard.monitor.adapter._beats.running

    def do_logged(self, guard):
        return self.logged


@pytest.fixture
def path(tmp_path):
    return tmp_path / "board"


@pytest.fixture
def board(path):
    return Board(path)


@pytest.fixture
def family(path):
    """Starts a family; all of it is gone in the end."""
    families = []

    def family(make=lambda: BusyGuard(app, slots=4, board=path), listens=True):
        families.append(Family(make, listens))
        families[-1].tell(0, "pid")
        return families[-1]

    yield family
    for started in families:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        os.waitpid(started.pid, 0)


@pytest.fixture
def python_started():
    """Start a script in a fresh interpreter; it and its children are gone in the end."""
    processes = []

    def python_started(script, *args):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield python_started
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def states(board):
    """Says how each process is, by its id."""
    return lambda: {row.pid: row.state for row in board.rows()}


# Forks


def test_a_process_that_listens_is_counted_before_it_is_called(family, board, states, until):
    """Else no request would come to a server whose balancer asks the board first."""
    first = family()
    until(lambda: states() == {first.pid: "ready"})
    assert board.read() == Load(0, 0, 4)


def test_a_process_is_counted_when_it_begins_to_listen(family, board, states, until):
    first = family(listens=False)
    assert not first.tell(0, "look")
    first.tell(0, "listen")
    until(lambda: states() == {first.pid: "ready"})


def test_a_process_that_only_imports_the_app_is_not_counted(family, board, states, until):
    """A shell, a queue worker, a test run."""
    server, shell = family(), family(listens=False)
    until(lambda: states() == {server.pid: "ready"})
    assert not shell.tell(0, "look")
    assert states() == {server.pid: "ready"}
    assert board.read() == Load(0, 0, 4)
    assert Watcher(board).check()[:2] == ("free", True)
    os.killpg(server.pid, signal.SIGKILL)
    until(lambda: Watcher(board).check("damped", 0.1)[:2] == ("absent", False))
    assert not shell.tell(0, "look")
    assert Watcher(board).check("damped", 0.1)[:2] == ("absent", False)


def test_a_queue_worker_s_children_are_not_counted_either(family, board, states):
    first = family(listens=False)
    first.tell(0, "fork", 1)
    assert not first.tell(1, "look")
    assert states() == {}


def test_a_check_port_is_no_sign_that_the_app_is_served(family, states):
    first = family(listens=False)
    first.tell(0, "listen_for_checks")
    assert not first.tell(0, "look")
    assert states() == {}


def test_a_process_that_does_not_listen_is_counted_when_it_is_called(family, board, states):
    """One that is given its connections, say."""
    first = family(listens=False)
    assert first.tell(0, "call") == ("200", b"app")
    assert states() == {first.pid: "ready"}


def test_a_parent_that_was_executed_by_and_not_forked_from_is_not_counted(
    path, board, family, states, until, python_started
):
    """That of a reloader, which has the listener and gives it to its child."""
    script = """
        import socket, subprocess, sys
        from wsgi_busyguard import BusyGuard

        listener = socket.create_server(("127.0.0.1", 0))
        listener.set_inheritable(True)
        guard = BusyGuard(lambda environ, start_response: [], slots=4, board=sys.argv[1])
        if len(sys.argv) > 2:
            print(flush=True)
            sys.stdin.read()
        else:
            subprocess.run([*sys.orig_argv, "child"], close_fds=False)
    """
    parent = python_started(script, path)
    until(
        lambda: (
            sorted(states().values()) == ["ready", "starting"]
            and states()[parent.pid] == "starting"
        )
    )
    assert board.read() == Load(0, 0, 4)


def test_where_the_app_is_made_before_the_fork_the_children_are_counted(
    family, board, states, until
):
    """Also those that no request has reached yet."""
    first = family()
    one, two = first.tell(0, "fork", 1), first.tell(0, "fork", 2)
    expected = {first.pid: "starting", one: "ready", two: "ready"}
    until(lambda: states() == expected)
    assert board.read() == Load(0, 0, 8)
    assert first.tell(1, "call") == ("200", b"app")
    assert states() == expected


def test_a_parent_that_listens_later_than_its_child_is_not_counted(family, board, states, until):
    """It forks within a beat, and finds only then that it listens."""
    first = family(listens=False)
    one = first.tell(0, "fork", 1)
    first.tell(1, "listen")
    until(lambda: states() == {one: "ready"})
    first.tell(0, "listen")
    # Its row is "starting" for a moment as it is taken, too; then it is ready, and at last not.
    counted = {one: "ready", first.pid: "starting"}
    until(lambda: states() == counted and board.read() == Load(0, 0, 4))


def test_the_parent_is_counted_again_when_it_serves(family, board, states, until):
    first = family()
    child = first.tell(0, "fork", 1)
    until(lambda: states() == {first.pid: "starting", child: "ready"})
    assert first.tell(0, "call") == ("200", b"app")
    assert states() == {first.pid: "ready", child: "ready"}
    assert board.read() == Load(0, 0, 8)


def test_a_parent_that_serves_before_its_child_is_there_stays_counted(family, board, states, until):
    first = family()
    until(lambda: states() == {first.pid: "ready"})
    child = first.tell(0, "fork", 1)
    first.tell(0, "call")
    until(lambda: child in states())
    assert first.tell(1, "call") == ("200", b"app")
    assert states() == {first.pid: "ready", child: "ready"}


def test_who_is_counted_has_posted_its_figures(board):
    """Else its capacity would be 0 for a moment, and balancers be told to send one at a time."""

    class Looks(Fixed):
        def read(self):
            seen.append(board.read())
            return self.load

    seen = []
    member = Member(board, Looks(Load(0, 1, 4)))
    member.enter()
    assert seen == [UNKNOWN]
    assert board.read() == Load(0, 1, 4)
    member.leave()


def test_a_child_of_a_process_that_serves_is_no_server(family, states):
    """An app that uses multiprocessing; until the guard is called there."""
    first = family()
    first.tell(0, "call")
    child = first.tell(0, "fork", 1)
    assert not first.tell(1, "wants_to_join")
    assert states() == {first.pid: "ready"}
    assert first.tell(1, "call") == ("200", b"app")
    assert states() == {first.pid: "ready", child: "ready"}


def test_a_check_is_a_call(family, states):
    first = family()
    assert first.tell(0, "call", "/readyz") == ("200", b"free")
    first.tell(0, "fork", 1)
    assert not first.tell(1, "wants_to_join")


def test_a_grandchild_is_counted_and_who_forked_it_is_not(family, states, until):
    first = family()
    child = first.tell(0, "fork", 1)
    until(lambda: states() == {first.pid: "starting", child: "ready"})
    grandchild = first.tell(1, "fork", 2)
    until(lambda: states() == {first.pid: "starting", child: "starting", grandchild: "ready"})


def test_a_daemon_is_counted_and_not_the_process_that_made_it(family, board, states, until):
    """The one in the middle never had a slot, so the one before it is the parent."""
    first = family()
    until(lambda: states() == {first.pid: "ready"})
    assert first.tell(0, "fork_twice", 1) == 0
    daemon = first.tell(1, "pid")
    until(lambda: states() == {first.pid: "starting", daemon: "ready"})


def test_a_child_that_executes_another_program_is_no_server(family, board, states, until):
    """It would stay for as long as that program runs."""
    first = family()
    until(lambda: states() == {first.pid: "ready"})
    executed = first.tell(0, "fork_and_execute")
    child = first.tell(0, "fork", 1)
    until(lambda: states().get(child) == "ready")
    assert executed not in states()


def test_where_python_is_not_told_of_the_fork_a_child_joins_when_it_is_called(
    family, board, states, until
):
    first = family()
    until(lambda: states() == {first.pid: "ready"})
    child = first.tell(0, "fork_in_c", 1)
    assert states() == {first.pid: "ready"}
    assert first.tell(1, "call") == ("200", b"app")
    assert states() == {first.pid: "starting", child: "ready"}
    assert board.read()[:3] == (0, 0, 4)


def test_a_child_is_on_the_board_by_its_own_beats(family, board, states, until):
    first = family()
    child = first.tell(0, "fork", 1)
    until(lambda: states().get(child) == "ready")
    seen = set()
    rows = lambda: {row.pid: row for row in board.rows()}  # noqa: E731
    until(lambda: seen.add(round(rows()[child].beat, 2)) or {0.0, 0.2} <= seen)


def test_nobody_is_counted_without_its_figures_whichever_thread_says_so_first():
    class Slow(Fixed):
        looking, may_go = threading.Event(), threading.Event()

        def read(self):
            self.looking.set()
            assert self.may_go.wait(DEADLINE)
            return self.load

    board, adapter = Board(), Slow(Load(0, 1, 4))
    member = Member(board, adapter)
    threads = [threading.Thread(target=member.enter, name=name) for name in ("first", "second")]
    threads[0].start()
    assert adapter.looking.wait(DEADLINE)  # it has taken the slot, and has posted nothing
    threads[1].start()
    threads[1].join(0.2)
    assert [row.state for row in board.rows()] == ["starting"]
    adapter.may_go.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert [(row.state, row.load) for row in board.rows()] == [("ready", Load(0, 1, 4))]
    member.leave()


def test_a_child_that_finds_no_slot_serves_on_and_says_so_once(family, path):
    board = Board(path, slots=1)
    first = family()
    first.tell(0, "call")
    first.tell(0, "fork", 1)
    for _ in range(3):
        assert first.tell(1, "call") == ("200", b"app")
        assert first.tell(1, "call", "/readyz") == ("200", b"free")
    lines = [line for line in first.tell(1, "logged") if "how many threads" not in line]
    assert len(lines) == 1, lines
    [line] = lines
    assert "and serves on" in line
    assert "the board has 1 slots" in line
    assert [row.pid for row in board.rows()] == [first.pid]


def test_a_child_that_finds_no_slot_gets_one_later(clock, caplog):
    board = Board(slots=1, clock=clock)
    other, late = Member(board, Fixed(CROWD)), Member(board, Fixed(Load(0, 0, 4)))
    other.enter()
    late.enter()
    other.leave()
    clock.now += 0.9
    late.beat()
    assert not late.joined
    clock.now += 0.2
    late.beat()
    assert board.read() == Load(0, 0, 4)
    late.beat()
    assert len(caplog.records) == 1


def test_one_that_was_declared_dead_by_mistake_comes_back(clock):
    board = Board(clock=clock)
    member = Member(board, Fixed(CROWD))
    member.enter()
    board.free(os.getpid())
    member.beat()
    assert board.rows()[0].state == "ready"
    member.go()
    board.free(os.getpid())
    member.beat()
    assert board.rows()[0].state == "stopping"
    member.leave()
    member.beat()
    assert board.rows() == []


def test_draining_is_told_at_the_next_beat(family, states, until):
    first = family()
    until(lambda: states() == {first.pid: "ready"})
    first.tell(0, "drain")
    until(lambda: states() == {first.pid: "stopping"})


# The guard


@pytest.fixture
def guard(path):
    """A guard of this process, which serves."""
    guard = BusyGuard(app, slots=4, board=path)
    guard.monitor.adapter.enter()
    yield guard
    guard.monitor.adapter.stop()
    guard.monitor.adapter.leave()


@pytest.fixture
def other(board):
    """Another process, as it were: posts what it is told to."""
    publisher = Publisher(board, Fixed(Load(0, 0, 4)))
    publisher.join()
    publisher.ready()
    yield publisher
    publisher.leave()


def test_a_check_tells_the_load_of_the_host(guard, other, ask):
    assert ask(guard, path="/readyz").text == "free"
    assert guard.monitor.load == Load(0, 0, 8)
    other.adapter.load = CROWD._replace(queued=20)
    other.post()
    other._place.put(BEAT, other.board.now())
    assert ask(guard, path="/readyz").text == "busy"
    assert ask(guard, path="/readyz").status == 503


def test_its_own_share_is_told_as_it_is_at_that_moment(guard, board):
    slot = guard.monitor.adapter.adapter.enter()
    assert guard.monitor.load.active == 1
    assert board.read().active == 1
    guard.monitor.adapter.adapter.leave(slot)
    assert guard.monitor.load.active == 0


def test_listeners_hear_of_what_others_do(path, other, until):
    told = []
    guard = BusyGuard(app, slots=4, board=path, on_busy=told.append, on_free=told.append)
    guard.monitor.adapter.enter()
    other.adapter.load = CROWD._replace(queued=20)
    other.start()
    until(lambda: [change.state.value for change in told] == ["busy"])
    other.adapter.load = Load(0, 0, 4)
    until(lambda: [change.state.value for change in told] == ["busy", "free"])
    other.stop()
    guard.monitor.adapter.stop()
    guard.monitor.adapter.leave()


def test_after_the_first_call_there_is_nothing_more_in_a_requests_way(guard, ask):
    assert guard._first
    assert ask(guard).text == "app"
    assert not guard._first


def test_a_guard_without_slots_posts_that_its_capacity_is_unknown(path, board, ask, caplog):
    guard = BusyGuard(app, board=path)
    assert ask(guard, path="/readyz").text == "free"
    assert len(board.rows()) == 1
    assert board.read() == UNKNOWN
    assert ask(guard).text == "app"
    assert not guard._first
    assert "the queue of this server" in caplog.text
    guard.monitor.adapter.stop()
    guard.monitor.adapter.leave()


def test_a_guard_that_nobody_has_leaves_the_board(path, board):
    guard = BusyGuard(app, slots=4, board=path)
    guard.monitor.adapter.enter()
    assert len(board.rows()) == 1
    guard.monitor.adapter.stop()
    del guard
    gc.collect()
    assert board.rows() == []


def test_a_parent_that_is_marked_at_the_moment_of_its_first_call_finds_out(
    guard, board, ask, until
):
    """Its child looked before, and stored after."""
    ask(guard)
    table = board.table
    table.words[table.at(OWNER, 0)] ^= READY | STARTING
    assert board.rows()[0].state == "starting"
    until(lambda: board.rows()[0].state == "ready")


def test_many_first_calls_at_once_are_one(path, board, start, ask, hurry):
    for _ in range(10):
        guard = BusyGuard(app, slots=4, board=path)
        together = threading.Barrier(4)

        def call(guard=guard, together=together):
            together.wait(DEADLINE)
            assert ask(guard).text == "app"

        for thread in [start(call) for _ in range(4)]:
            thread.join(DEADLINE)
        assert len(board.rows()) == 1
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("busyguard-beat") == 1
        guard.monitor.adapter.stop()
        guard.monitor.adapter.leave()


def test_a_board_that_cannot_be_used_is_told_at_construction(path, tmp_path):
    path.write_text("my diary")
    with pytest.raises(ValueError, match="expected a board in"):
        BusyGuard(app, board=path)
    with pytest.raises(OSError, match="not the folder"):
        BusyGuard(app, board=tmp_path)
    full = Board(slots=1)
    with pytest.raises(ValueError, match="give monitor or board, not both"):
        BusyGuard(app, board=full, monitor=Monitor(full))


@pytest.mark.parametrize("board", [False, True], ids=["alone", "on a board"])
def test_who_has_only_imported_the_app_speaks_for_nobody(path, ask, board):
    """Neither to balancers nor to whoever keeps figures."""
    guard = BusyGuard(app, slots=4, board=path if board else None)
    assert not guard.monitor.is_leader()
    assert ask(guard).text == "app"
    assert guard.monitor.is_leader()
    if board:
        guard.monitor.adapter.stop()
        guard.monitor.adapter.leave()
