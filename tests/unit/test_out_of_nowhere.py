"""An exception that arises between any two steps takes nothing along: no slot, no lock, no count.

Signal handlers raise such (a time limit of the app's by SIGALRM that fires late), and
``PyThreadState_SetAsyncExc``, by which some libraries limit the time of a thread.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import wsgi_busyguard
from wsgi_busyguard import Board, Gate, Load, Monitor
from wsgi_busyguard._support.locks import Turn, tried, under
from wsgi_busyguard.adapters.executor import CountingExecutor
from wsgi_busyguard.board import memory as memory_module
from wsgi_busyguard.board import publisher as poster_module
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.counters import Counters
from wsgi_busyguard.gate import Ticket
from wsgi_busyguard.gate import gate as gate_module
from wsgi_busyguard.gate import gated_app as gated_module
from wsgi_busyguard.gate import queue as queue_module
from wsgi_busyguard.gate import slots as slots_module
from wsgi_busyguard.gate.dry_run import DryRun
from wsgi_busyguard.gate.gated_app import holding
from wsgi_busyguard.policy import Discipline

FILES = {module.__file__ for module in (gate_module, queue_module, slots_module, gated_module)}
PACKAGE = os.path.dirname(wsgi_busyguard.__file__)


class Late(BaseException):
    pass


class Interruption:
    """Raises at the n-th moment at which CPython lets a signal handler run.

    That is at the beginning of a function and after a call, in the gate and in what holds its
    slots, or anywhere in the package. (And at jumps, which are left to the storms below.)
    """

    def __init__(self, n, anywhere=False):
        self.left = n
        self.anywhere = anywhere

    def __enter__(self):
        self.profile = self._profile  # kept: CPython goes on with it after setprofile(None)
        sys.setprofile(self.profile)

    def __exit__(self, *_):
        sys.setprofile(None)

    def _profile(self, frame, event, _):
        code = frame.f_code
        file = code.co_filename
        here = file.startswith(PACKAGE) if self.anywhere else file in FILES
        here = here and code.co_name != "__del__"
        if here and event in {"call", "return", "c_return"}:
            self.left -= 1
            if self.left == -1:
                sys.setprofile(None)
                raise Late


class Body:
    """What may be anything, and has a close()."""

    def __init__(self, raises=False):
        self.raises = raises

    def __iter__(self):
        return iter([b"body"])

    def close(self):
        if self.raises:
            raise ValueError


class Sized(Body):
    def __len__(self):
        return 1


def generator():
    yield b"body"


BODIES = {
    "list": lambda: [b"body"],
    "tuple": lambda: (b"body",),
    "generator": generator,
    "any": Body,
    "sized": Sized,
    "close raises": lambda: Body(raises=True),
}


def serve(guarded):
    """Call it as a server does."""
    body = guarded({}, lambda *_: None)
    try:
        return b"".join(body)
    finally:
        if hasattr(body, "close"):
            body.close()


def whole(gate, slots):
    """Return whether all slots are there, each once."""
    gc.collect(0)  # a body that refers to itself goes by this
    there = {slot.place for slot in gate._free}
    return gate.empty and len(there) == len(gate._places) == slots


@pytest.mark.parametrize("kind", BODIES)
def test_no_slot_is_lost_wherever_an_exception_comes(kind):
    gate = Gate(2)
    guarded = holding(lambda *_: BODIES[kind](), gate, None, lambda _: None, 5.0)
    interrupted = 0
    while True:
        interruption = Interruption(interrupted)
        with contextlib.suppress(Late, ValueError), interruption:
            serve(guarded)
        interrupted += interruption.left < 0
        assert whole(gate, 2), interrupted
        if interruption.left >= 0:  # it has come through
            break
    assert interrupted >= 10
    assert serve_all(gate, guarded, kind) == 2  # and each of them is as good as before


def serve_all(gate, guarded, kind):
    """Return how many are let in at once."""
    slots = []
    while gate._free:
        slots.append(gate.enter())
    assert gate.read().active == len(slots)
    for slot in slots:
        gate.leave(slot)
    return len(slots)


def test_nor_is_one_that_is_handed_to_one_who_waits():
    """Whoever leaves is interrupted while it hands its slot over; the next gets it all the same."""
    interrupted = 0
    while True:
        gate, told = Gate(1), []
        slot = gate.take()
        waits = Ticket(told.append)
        gate.offer(waits)
        interruption = Interruption(interrupted)
        with contextlib.suppress(Late), interruption:
            gate.leave(slot)
        interrupted += interruption.left < 0
        del slot
        gate.expire()  # as a loop does a few times a second, or a check
        assert len(told) == 1, interrupted
        del waits
        gate.leave(told.pop().outcome)
        assert whole(gate, 1), interrupted
        if interruption.left >= 0:
            break
    assert interrupted >= 10


def test_whoever_takes_a_slot_and_forgets_it_gives_it_back(clock):
    gate = Gate(2, clock=clock)
    slot, other = gate.take(), gate.take()
    clock.now += 0.1
    del slot
    assert gate.read()[:3] == (0, 1, 2)
    assert gate.counts().served == 1
    gate.leave(other)
    assert whole(gate, 2)
    assert gate.counts().served == gate.counts().admitted == 2


def test_whoever_enters_has_to_leave():
    gate = Gate(1)
    gate.enter()
    assert gate.read().active == 1
    gate = Gate(1)
    gate.leave(gate.enter())
    gate.take()  # and that is forgotten with the slot
    assert whole(gate, 1)


def test_a_slot_of_before_a_fork_does_not_come_back():
    gate = Gate(2)
    slot = gate.enter()
    gate._after_fork()
    gate.leave(slot)
    del slot
    assert whole(gate, 2)


def test_a_gate_goes_with_all_its_slots():
    gate = Gate(1000)
    slot = gate.enter()
    del gate
    gc.collect()
    del slot


def test_a_late_exception_does_not_free_the_slot_of_the_next_who_has_it():
    """It comes when the slot is left, and somebody else in it."""
    gate, others = Gate(1), []

    class Late(Exception):
        pass

    def leave(slot):
        Gate.leave(gate, slot)
        others.append(gate.enter())
        raise Late

    gate.leave = leave
    guarded = holding(lambda *_: [b""], gate, None, lambda _: None, 5.0)
    with pytest.raises(Late):
        guarded({}, lambda *_: None)
    assert len(others) == 1
    assert others[0].since is not None
    assert not gate._free


# Locks. From Python 3.14 on there is such a moment between __enter__() and the block of a "with".


def of_a_monitor(work):
    def made():
        monitor = Monitor(CountingExecutor(1))
        monitor.quiet = True
        return lambda: work(monitor), monitor._lock

    return made


def of_a_gate(work):
    def made():
        gate = Gate(1)
        gate.enter()
        return lambda: work(gate), gate._lock

    return made


def of_a_poster(work, lock=None):
    def made():
        publisher = Publisher(Board(slots=2), Gate(1))
        publisher.join()
        return lambda: work(publisher), lock or publisher._lock

    return made


def of_a_dry_run(work):
    def made():
        report = DryRun(Discipline(1, 0, 1.0))
        return lambda: work(report), report._lock

    return made


def join_again(publisher):
    publisher.leave()
    publisher.join()


LOCKED = {
    "a look": of_a_monitor(Monitor.refresh),
    "a check": of_a_monitor(Monitor.check),
    "changes": of_a_monitor(Monitor.changes),
    "a listener": of_a_monitor(lambda monitor: monitor.on_busy(print)),
    "another adapter": of_a_monitor(lambda monitor: monitor.read_from(Gate(1))),
    "counts": of_a_gate(Gate.counts),
    "an offer": of_a_gate(lambda gate: gate.offer(Ticket(bool))),
    "a post": of_a_poster(Publisher.post),
    "a claim": of_a_poster(join_again, memory_module._lock),
    "joining": of_a_poster(join_again, poster_module._joining),
    "a row that is given away": of_a_poster(lambda p: p.board.free(1), memory_module._lock),
    "a board": of_a_poster(lambda _: Board(slots=2), memory_module._lock),
    "a request in a dry run": of_a_dry_run(lambda report: report.arrive("request")),
    "the end of one": of_a_dry_run(lambda report: report.leave("request")),
}


# A finalizer that it interrupts is nobody's to hear of.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", LOCKED)
def test_no_lock_stays_taken_wherever_an_exception_comes(what):
    interrupted = 0
    with ThreadPoolExecutor(1) as other:
        while True:
            work, lock = LOCKED[what]()
            interruption = Interruption(interrupted, anywhere=True)
            with contextlib.suppress(Late), interruption:
                work()
            assert other.submit(tried, lock, bool, 1).result(20), interrupted
            if interruption.left >= 0:  # it has come through
                break
            interrupted += 1
    assert interrupted >= 4


# Real signals, in a process of their own

STORM = """
import random, signal, sys, threading

class Late(BaseException):
    pass

def late(*_):
    raise Late

signal.signal(signal.SIGALRM, late)
sys.unraisablehook = lambda _: None  # a finalizer that it interrupts is nobody's to hear of

def storm(work, many, longest):
    '''Do it so often, with a signal at some moment of each; return how often that raised.'''
    done = raised = 0
    while done < many:
        try:
            while done < many:
                done += 1
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, longest))
                work()
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Late:
            raised += 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Late:
        pass
    return raised
"""


@pytest.mark.slow
def test_a_storm_of_signals_takes_no_slot(python):
    python(
        STORM
        + """
from wsgi_busyguard import BusyGuard
bodies = [lambda: [b""], lambda: (b"" for _ in range(2))]
def app(environ, start_response):
    return random.choice(bodies)()
guard = BusyGuard(app, slots=3)
guard.monitor.quiet = True
gate = guard.monitor.adapter
import logging
logging.disable()
list(guard({"REQUEST_METHOD": "GET"}, print))
def request():
    body = guard({"PATH_INFO": "/", "REQUEST_METHOD": "GET"}, print)
    for _ in body:
        pass
    if hasattr(body, "close"):
        body.close()
raised = storm(request, 60_000, 15e-6)
assert raised > 2000, raised
assert gate.empty, gate
"""
    )


def test_one_while_checks_wait_for_the_lock_takes_none_and_says_what_was_raised(python):
    python(
        STORM
        + """
from wsgi_busyguard import Load, Monitor
class Adapter:
    def read(self):
        return Load(0, 0, 1)
monitor = Monitor(Adapter())
over = threading.Event()
def hold():
    while not over.is_set():
        with monitor._lock:
            over.wait(0.0005)
threading.Thread(target=hold, daemon=True).start()
raised = 0
while raised < 50:  # a RuntimeError would end this
    raised += storm(lambda: monitor.check("damped", 2.0), 500, 1e-3)
over.set()
def free():
    assert monitor._lock.acquire(timeout=20)
thread = threading.Thread(target=free)
thread.start()
thread.join()
"""
    )


@pytest.mark.slow
def test_one_while_listeners_are_told_leaves_somebody_to_tell_the_next(python):
    python(
        STORM
        + """
from wsgi_busyguard import Load, Monitor
class Adapter:
    load = Load(0, 0, 1)
    def read(self):
        return self.load
adapter, heard = Adapter(), []
monitor = Monitor(adapter, on_busy=heard.append, interval=3600)
monitor.quiet = True
loads = [Load(9, 1, 1), Load(0, 0, 1)]
def change():
    adapter.load = random.choice(loads)
    monitor.refresh()
raised = storm(change, 40_000, 20e-6)
assert raised > 1000, raised
adapter.load = loads[1]
monitor.refresh()
heard.clear()
adapter.load = loads[0]
def look():
    monitor.refresh()
thread = threading.Thread(target=look)
thread.start()
thread.join()
assert heard, "nobody tells any more"
"""
    )


@pytest.mark.slow
def test_one_while_counts_are_posted_leaves_somebody_to_post_the_next(python):
    python(
        STORM
        + """
from wsgi_busyguard import Board, Gate
from wsgi_busyguard.board.publisher import Publisher
board, gate = Board(slots=2), Gate(1)
publisher = Publisher(board, gate)
publisher.join()
raised = storm(publisher.post_counts, 20_000, 60e-6)
assert raised > 1000, raised
gate.leave(gate.enter())
thread = threading.Thread(target=publisher.post_counts)
thread.start()
thread.join()
assert board.counts().served == 1
"""
    )


@pytest.mark.slow
def test_one_while_rows_are_claimed_leaves_them_to_other_processes(python, tmp_path):
    python(
        STORM
        + """
import fcntl, os, time
from wsgi_busyguard import Board, Gate
from wsgi_busyguard.board.publisher import Publisher
board = Board(sys.argv[1], slots=4)
publisher = Publisher(board, Gate(1))
def join():
    publisher.join()
    publisher.leave()
raised = storm(join, 10_000, 200e-6)
assert raised > 500, raised
child = os.fork()
if not child:
    with open(sys.argv[1], "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0, "the file is locked for ever"
publisher.join()
assert [row.pid for row in board.rows()] == [os.getpid()]
""",
        str(tmp_path / "board"),
    )


@pytest.mark.slow
def test_checks_that_were_interrupted_are_not_taken_for_being_answered(python):
    python(
        STORM
        + """
from wsgi_busyguard import BusyGuard
guard = BusyGuard(lambda environ, start_response: [])
in_flight = guard.count_checks()
raised = storm(lambda: guard._check("damped", 2.0), 40_000, 10e-6)
assert raised > 1000, raised
assert not len(in_flight)
"""
    )


# Turn


def test_a_turn_is_taken_again_by_whoever_has_it_only_afterwards():
    turn, left, told = Turn(), ["first"], []

    def work():
        told.append(left.pop())
        if told == ["first"]:
            left.append("next")
            turn.take(lambda: left, work)
            assert told == ["first"]

    turn.take(lambda: left, work)
    assert told == ["first", "next"]


def test_nobody_waits_for_a_turn(start):
    turn, begun, end, done = Turn(), threading.Event(), threading.Event(), []

    def work():
        done.append(threading.current_thread())
        begun.set()
        end.wait(20)

    left = [1, 2]
    first = start(turn.take, lambda: left, lambda: (work(), left.pop()))
    begun.wait(20)
    turn.take(lambda: left, work)  # comes back at once
    end.set()
    first.join(20)
    assert done == [first, first]


def test_a_turn_that_was_interrupted_is_free(start):
    turn, done = Turn(), []

    def raises():
        raise Late

    with pytest.raises(Late):
        turn.take(lambda: True, raises)
    start(turn.take, lambda: not done, lambda: done.append(1)).join(20)
    assert done == [1]


# Under a lock


def test_what_is_done_under_a_lock_is_done_alone_and_may_come_again(start):
    lock = threading.RLock()

    def other():
        return start(lambda: seen.append(tried(lock, int, "7"))).join(20)

    seen = []
    assert under(lock, lambda: under(lock, lambda n: (other(), n), 1)) == (None, 1)
    assert seen == [None]
    other()
    assert seen == [None, 7]


def test_one_who_is_interrupted_while_it_waits_releases_nobody_elses_lock(start):
    class Lock:
        def __init__(self):
            self.lock = threading.RLock()
            self.release = self.lock.release

        def acquire(self):
            raise Late

    lock = Lock()
    begun, end = threading.Event(), threading.Event()
    holder = start(under, lock.lock, lambda: (begun.set(), end.wait(20)))
    begun.wait(20)
    with pytest.raises(Late):
        under(lock, print)
    assert not lock.lock.acquire(blocking=False)
    end.set()
    holder.join(20)


# An executor's job


def test_a_time_limit_that_fires_when_the_job_is_done_costs_neither_slot_nor_result(until):
    """It comes while the slot is left, and the future is kept."""
    executor = CountingExecutor(1)
    gate = executor.gate
    leave = gate.leave

    def interrupted(slot):
        gate.leave = leave
        raise Late

    gate.leave = interrupted
    future = executor.submit(int, "7")
    assert future.result(20) == 7
    until(lambda: gate.empty)
    assert executor.submit(int, "8").result(20) == 8
    executor.shutdown()


def test_a_job_that_is_done_keeps_no_slot():
    with CountingExecutor(1) as executor:
        future = executor.submit(int)
        future.result(20)
        assert future.outcome is None


def test_a_poster_and_a_monitor_count_on_after_such(adapter):
    """The very steps that signals reached are in the storms above; here, that all still counts."""
    adapter.load = Load(0, 0, 4)
    publisher = Publisher(Board(), adapter)
    publisher.join()
    publisher.ready()
    adapter.counts = lambda: Counters(served=1)
    publisher.post_counts()
    assert Monitor(publisher).counts().served == 1
