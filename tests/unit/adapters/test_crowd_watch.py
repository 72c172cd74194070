"""How a guard notices that requests queue in the server: by a look now and then, in a call."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from wsgi_busyguard import Board, BusyGuard, Load, Monitor
from wsgi_busyguard._support.switch_interval import SHORT_SECONDS
from wsgi_busyguard.adapters.acceptqueue import AcceptQueueAdapter
from wsgi_busyguard.adapters.crowd_watch import CrowdWatch, own_part
from wsgi_busyguard.adapters.detect import Server
from wsgi_busyguard.adapters.executor import CountingExecutor
from wsgi_busyguard.adapters.next_call import NextCall
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.gate.pickup import PickUp

FULL = Load(100, 4, 4, 0.0, 1.0)
REST = Load(0, 1, 4)


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"app"]


@pytest.fixture
def found(monkeypatch):
    """Have this server be found at the first call."""

    def found(server):
        monkeypatch.setattr("wsgi_busyguard.adapters.first_request.find", lambda _: server)

    return found


class Servers:
    """A guard on each kind of server, and what makes it."""

    def alone(self, found, adapter, **options):
        found(Server("Peanut", 4, lambda: adapter))
        return BusyGuard(app, **options)

    def given(self, found, adapter, **options):
        return BusyGuard(app, monitor=Monitor(adapter), **options)

    def posted(self, found, adapter, **options):
        return BusyGuard(app, monitor=Monitor(Publisher(Board(), adapter)), **options)

    def without_room(self, found, adapter, **options):
        found(Server("Peanut", 4, lambda: adapter, start="peanut --threads={0}"))
        return BusyGuard(app, slots=8, **options)


KINDS = ["alone", "given", "posted", "without_room"]


@pytest.fixture(params=KINDS)
def guarded(request, found, adapter):
    guards = []

    def guarded(**options):
        guards.append(getattr(Servers(), request.param)(found, adapter, **options))
        return guards[-1]

    yield guarded
    for guard in guards:
        guard._crowd.watch(None)


def test_requests_are_refused_while_too_many_wait_and_served_again(ask, guarded, adapter, until):
    guard = guarded()
    assert ask(guard, "GET", "/page").status == 200
    adapter.load = FULL
    until(lambda: ask(guard, "GET", "/page").headers.get("Busyguard-Refused") == "queue-age")
    assert ask(guard, "GET", "/livez").status == 200
    assert ask(guard, "GET", "/readyz", "ready=always").status == 200
    adapter.load = REST
    until(lambda: ask(guard, "GET", "/page").status == 200)
    assert not guard._pick_up.crowded


@pytest.mark.parametrize("slots", [None, 8])
def test_with_no_limit_nobody_is_refused_nor_looked_for(ask, found, adapter, slots):
    guard = Servers().alone(found, adapter, max_wait=math.inf, slots=slots)
    adapter.load = FULL
    assert {ask(guard, "GET", "/page").status for _ in range(9)} == {200}
    assert not guard._crowd.watches
    assert guard.next_call.steps == [] or slots is None


def test_a_request_runs_the_same_path_as_ever_while_nobody_waits(ask, guarded, adapter, until):
    guard = guarded()
    ask(guard, "GET", "/page")
    before = guard._app
    adapter.load = FULL
    until(lambda: ask(guard, "GET", "/page").status == 503)
    assert guard._app is not before
    adapter.load = REST
    until(lambda: ask(guard, "GET", "/page").status == 200)
    assert guard._app is guard._behind


def test_a_dry_run_counts_them_and_refuses_nobody(ask, found, adapter, until):
    guard = Servers().alone(found, adapter, dry_run=True)
    ask(guard, "GET", "/page")
    adapter.load = FULL
    statuses = set()

    def count():
        statuses.add(ask(guard, "GET", "/page").status)
        return guard.dry_run.refused["queue-age"] == 93  # of a hundred, 1.6 s are for six

    until(count)
    assert statuses == {200}
    assert guard.dry_run.requests > 1
    guard._crowd.watch(None)


def test_refusals_are_in_the_counts(ask, found, adapter, until):
    guard = Servers().alone(found, adapter)
    ask(guard, "GET", "/page")
    assert guard.monitor.counts() is None
    adapter.load = FULL
    until(lambda: ask(guard, "GET", "/page").status == 503)
    assert guard.monitor.counts().refused[1] >= 1
    guard._crowd.watch(None)


def test_an_executor_given_as_a_monitor_is_read_as_well(ask, until):
    stop = threading.Event()
    with CountingExecutor(max_workers=1, max_queue=math.inf, max_wait=math.inf) as executor:
        guard = BusyGuard(app, monitor=Monitor(executor), max_wait=0.05)
        jobs = [executor.submit(stop.wait, 20) for _ in range(50)]
        until(lambda: ask(guard, "GET", "/page").status == 503)
        stop.set()
        assert all(job.result(20) for job in jobs)
        until(lambda: ask(guard, "GET", "/page").status == 200)
        guard._crowd.watch(None)


def test_a_reader_that_breaks_refuses_nobody(ask, guarded, adapter, until, caplog):
    guard = guarded()
    ask(guard, "GET", "/page")
    adapter.load = FULL
    until(lambda: ask(guard, "GET", "/page").status == 503)
    adapter.load = OSError("gone")
    until(lambda: ask(guard, "GET", "/page").status == 200)
    assert {ask(guard, "GET", "/page").status for _ in range(9)} == {200}


def test_one_guard_behind_another_leaves_it_to_that(ask, found, adapter, until):
    found(Server("Peanut", 4, lambda: adapter))
    inner = BusyGuard(app)
    outer = BusyGuard(inner)
    ask(outer, "GET", "/page")
    assert (outer._crowd.watches, inner._crowd.watches) == (True, False)
    outer._crowd.watch(None)


def test_a_limit_is_taken_without_slots_and_a_length_is_not():
    assert BusyGuard(app, max_wait=3.0)
    with pytest.raises(ValueError, match=r"^max_queue needs slots: .* max_wait says for how long$"):
        BusyGuard(app, max_queue=3)


# The beat


@pytest.fixture
def watch():
    """A watch whose beats are the test's."""
    pick_up, next_call = PickUp(None), NextCall()
    watch = CrowdWatch(pick_up, next_call)
    watch._beats.pause = 1000.0
    yield watch
    watch.watch(None)


def test_the_thread_ends_when_nobody_calls_and_the_next_call_starts_it_again(watch, adapter):
    watch.watch(adapter)
    assert watch._beats.running
    for _ in range(99):
        watch._beat()
    assert not watch._beats.running
    looks = adapter.looks
    watch._next_call.begin({})
    assert (adapter.looks, watch._beats.running) == (looks + 1, True)
    assert watch._next_call.steps == []
    watch._beat()
    assert len(watch._next_call.steps) == 1


def test_a_call_between_the_look_at_the_calls_and_the_end_of_the_thread_is_not_the_last_seen(
    watch, adapter, monkeypatch
):
    watch.watch(adapter)
    for _ in range(38):
        watch._beat()
    stop = watch._beats.stop

    def called_meanwhile():
        watch._next_call.begin({})
        stop()

    monkeypatch.setattr(watch._beats, "stop", called_meanwhile)
    for _ in range(3):
        watch._beat()
    assert len(watch._next_call.steps) == 1  # so the next call starts it


def test_a_child_goes_on_to_look(watch, adapter):
    watch.watch(adapter)
    pid = os.fork()
    if pid == 0:
        os._exit(not watch._beats.running)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_many_calls_at_once_leave_one_thread_and_one_look_to_come(watch, adapter):
    watch.watch(adapter)
    run = watch._beats._run
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            list(pool.map(lambda _: watch._next_call.begin({}), range(16)))
            watch._beat()
            assert len(watch._next_call.steps) == 1
    assert watch._beats._run is run


# The turns at the interpreter


class Clocks:
    """In place of the module time: what has gone by, and what the process has had of it."""

    def __init__(self):
        self.now = self.had = 0.0

    def monotonic(self):
        return self.now

    def process_time(self):
        return self.had

    def go_on(self, share):
        self.now += 0.25
        self.had += share * 0.25


@pytest.fixture
def clocks(monkeypatch):
    turn, clocks = sys.getswitchinterval(), Clocks()
    sys.setswitchinterval(0.005)
    monkeypatch.setattr("wsgi_busyguard.adapters.crowd_watch.time", clocks)
    yield clocks
    sys.setswitchinterval(turn)


def turns(watch, clocks, *shares):
    """Return whether turns are short after each beat before which the process had such a share."""
    seen = []
    for share in shares:
        clocks.go_on(share)
        watch._beat()
        seen.append(sys.getswitchinterval() == pytest.approx(SHORT_SECONDS))
    return seen


def test_turns_are_short_while_the_interpreter_is_used_up(clocks):
    watch = CrowdWatch(PickUp(None), NextCall(), adaptive=True)
    assert turns(watch, clocks, 0.2, 1.0, 1.9, 0.5, 1.0) == [False, True, True, False, True]
    watch.watch(None)
    assert sys.getswitchinterval() != pytest.approx(SHORT_SECONDS)


def test_turns_are_as_before_where_it_is_ended_in_the_middle_of_shortening_them(
    adapter, monkeypatch, until
):
    watch, before = CrowdWatch(PickUp(None), NextCall(), adaptive=True), sys.getswitchinterval()
    watch._usable = 0.0  # as if all of it were used up
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()
    shorten = watch._interval.shorten

    def slowly():
        begun.set()
        go_on.wait(10)
        shorten()
        done.set()

    monkeypatch.setattr(watch._interval, "shorten", slowly)
    watch.watch(adapter)
    assert begun.wait(10)
    watch.watch(None)
    go_on.set()
    assert done.wait(10)
    until(lambda: sys.getswitchinterval() == before)


def test_turns_are_as_they_are_if_nothing_is_to_adapt(clocks):
    assert turns(CrowdWatch(PickUp(None), NextCall()), clocks, 1.0, 1.0) == [False, False]


# What is this process's own


class Whole:
    def read(self):
        return Load(40, 1, 4)

    def share(self, board):
        return self


class Divided(Whole):
    def portion(self):
        return Load(10, 1, 1)


def test_of_a_queue_that_several_have_this_processs_share_counts(adapter):
    assert own_part(adapter) is adapter
    assert own_part(Publisher(Board(), adapter)) is adapter
    assert own_part(Divided()).read() == Load(10, 1, 1)
    assert own_part(Publisher(Board(), Divided())).read() == Load(10, 1, 1)
    assert own_part(Whole()) is None  # whose share of it is not known


def test_of_what_waits_in_the_kernel_nobody_knows_for_whom_it_is():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert own_part(AcceptQueueAdapter([listener])) is None


def test_the_log_says_what_is_done_until_there_is_room(ask, found, adapter, caplog):
    for options, words in [
        ({}, "requests are refused at pick-up only"),
        ({"max_wait": math.inf}, "the guard refuses nothing and answers checks"),
    ]:
        caplog.clear()
        guard = Servers().without_room(found, adapter, **options)
        ask(guard, "GET", "/page")
        [record] = caplog.records
        assert record.levelno == logging.ERROR
        assert record.getMessage().endswith(f", or leave slots out; until then {words}")
        guard._crowd.watch(None)


def test_what_is_in_force_is_told(ask, found, adapter, until):
    guard = Servers().alone(found, adapter, client_timeout=2.0)
    assert str(guard.limits).startswith("only answers checks: ")
    ask(guard, "GET", "/page")
    said = "refuses at pick-up: max_wait 1.6 s (default), client_timeout 2 s (given), "
    assert str(guard.limits).startswith(said)
    guard._crowd.watch(None)


def test_what_is_in_force_is_told_of_a_limit_that_is_given(ask, found, adapter):
    guard = Servers().alone(found, adapter, max_wait=0.5)
    ask(guard, "GET", "/page")
    assert str(guard.limits).startswith("refuses at pick-up: max_wait 0.5 s (given), ")
    guard._crowd.watch(None)
