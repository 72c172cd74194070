"""Bulkheads: a limit and a breaker for calls to one outside service."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import heapq
import itertools
import os
import random
import subprocess
import sys
import textwrap
import threading
import weakref
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from wsgiref.util import setup_testing_defaults

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wsgi_busyguard import BusyGuard, Gate, Load, Monitor, bulkhead
from wsgi_busyguard._support import context_decorator, frames, locks
from wsgi_busyguard.bulkhead import Bulkhead, BulkheadFull, configure
from wsgi_busyguard.deadlines import (
    NotMade,
    TooLate,
    carrying,
    current_guard,
    deadline,
    slowness,
)
from wsgi_busyguard.gate.gated_app import holding

from . import test_out_of_nowhere
from .test_out_of_nowhere import Interruption, Late


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Fixed:
    """Reads a server of so many threads."""

    def __init__(self, capacity):
        self.capacity = capacity

    def read(self):
        return Load(0, 0, self.capacity)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No bulkhead of another test, and no pause of chance."""
    monkeypatch.setattr(bulkhead, "_jitter", lambda: 1.0)
    monkeypatch.setattr(bulkhead, "_settings", {})
    monkeypatch.setattr(bulkhead, "_known", weakref.WeakValueDictionary())


@pytest.fixture
def clock():
    return Clock()


def requested(work, slots=10):
    """Do ``work`` as a request of a guard with so many slots does; return what it returns."""
    said = []

    def app(environ, start_response):
        said.append(work())
        return []

    gate = slots if isinstance(slots, Gate) else Gate(slots)
    holding(app, gate, Monitor(gate), lambda reason: None, 5.0)({}, lambda *_: None)
    return said[0]


def called(app):
    """Call an app as a server does, but for the body."""
    environ = {"PATH_INFO": "/"}
    setup_testing_defaults(environ)
    return app(environ, lambda *_: None)


def many(one, most=100):
    """Take places until there is none."""
    places = []
    with contextlib.suppress(BulkheadFull):
        while len(places) < most:
            places.append(one.take())
    return places


@pytest.mark.parametrize(("slots", "places"), [(1, 1), (2, 1), (3, 2), (4, 2), (9, 5), (10, 5)])
def test_half_of_the_slots_may_be_in_calls(slots, places):
    rates = Bulkhead("rates")
    taken = requested(lambda: many(rates), slots)
    assert len(taken) == places
    with pytest.raises(BulkheadFull, match=rf"rates: {places} of {places} in calls for up to"):
        requested(rates.take, slots)


def test_a_number_or_a_share_may_be_given():
    assert len(requested(lambda: many(Bulkhead("rates", at_most=3)))) == 3
    assert len(requested(lambda: many(Bulkhead("rates", share=0.3)))) == 3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"at_most": 0}, "at_most must be at least 1, not 0"),
        ({"share": 2}, "share must be more than 0 and at most 1, not 2"),
        ({"share": float("nan")}, "share must be more than 0 and at most 1, not nan"),
        ({"at_most": 3, "share": 0.5}, "give at_most or share, not both"),
        ({"slow": 0}, "slow must be more than 0 seconds"),
    ],
)
def test_what_cannot_be_meant_is_told(wrong, words):
    with pytest.raises(ValueError, match=words):
        Bulkhead("rates", **wrong)


@pytest.mark.parametrize(
    ("kind", "wrong", "words"),
    [
        (TypeError, lambda: Bulkhead(3), "name must be a string, not 3"),
        (ValueError, lambda: Bulkhead(" "), "name must say which service it is, not ' '"),
        (TypeError, lambda: Bulkhead("r", share="x"), "share must be a part of the slots, as 0.5"),
        (TypeError, lambda: Bulkhead("r").take("2"), "at_most must be a number of seconds"),
        (ValueError, lambda: Bulkhead("r").timeout(0), "at_most must be more than 0 seconds"),
        (TypeError, lambda: Bulkhead("r")(3), "what is decorated must be a function, not 3"),
    ],
)
def test_what_is_no_name_no_time_and_no_function_is_told_at_once(kind, wrong, words):
    with pytest.raises(kind, match=words):
        wrong()


def test_outside_of_a_request_it_is_free_or_counts_against_the_number():
    rates = Bulkhead("rates")
    kept = many(rates, 50)
    assert (len(kept), rates.figures()["inside"]) == (50, 0)
    three = many(Bulkhead("rates", at_most=3))
    assert len(three) == 3


def test_the_slots_in_force_count_and_not_those_of_the_beginning(monkeypatch):
    rates, adapter = Bulkhead("rates"), Fixed(10)
    monkeypatch.setattr("wsgi_busyguard.deadlines.current_guard.FRESH_SECONDS", 0.0)
    seen = []

    def app(environ, start_response):
        seen.append(len(many(rates)))
        return []

    guard = BusyGuard(app, monitor=Monitor(adapter))
    for adapter.capacity in (10, 4, 6):
        called(guard)
    assert seen == [5, 2, 3]


def test_of_a_guard_that_stamps_nothing_the_server_is_read():
    taken, rates = [], Bulkhead("rates")

    def app(environ, start_response):
        taken.extend(many(rates))
        return []

    called(BusyGuard(app, monitor=Monitor(Fixed(4))))
    assert len(taken) == 2


def test_a_body_that_is_iterated_is_part_of_its_request():
    rates, taken = Bulkhead("rates"), []

    def app(environ, start_response):
        def body():
            taken.append(len(many(rates)))
            yield b""

        return body()

    gate = Gate(10)
    list(holding(app, gate, Monitor(gate), lambda reason: None, 5.0)({}, lambda *_: None))
    list(called(BusyGuard(app, monitor=Monitor(Fixed(6)), client_timeout=1.0)))
    list(holding(carrying(app), gate, Monitor(gate), lambda reason: None, 5.0)({}, print))
    assert taken == [5, 3, 5]


def test_a_thread_that_has_the_context_of_a_request_is_part_of_it():
    rates, taken = Bulkhead("rates"), []

    def app(environ, start_response):
        with ThreadPoolExecutor(1) as there:
            taken.extend(there.submit(contextvars.copy_context().run, many, rates).result())
        return []

    gate = Gate(10)
    holding(carrying(app), gate, Monitor(gate), lambda reason: None, 5.0)({}, print)
    assert len(taken) == 5


@pytest.mark.parametrize("adapter", [Fixed(None), Fixed("x")])
def test_where_the_slots_are_not_known_there_is_no_limit(adapter):
    taken, rates = [], Bulkhead("rates")

    def app(environ, start_response):
        taken.extend(many(rates, 30))
        return []

    called(BusyGuard(app, monitor=Monitor(adapter)))
    assert len(taken) == 30


def test_a_place_is_given_back_whatever_the_block_raises():
    rates = Bulkhead("rates", at_most=1)
    for error in (ValueError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error), rates:
            raise error
    with rates, pytest.raises(BulkheadFull):
        rates.take()


def test_one_function_that_comes_in_twice_has_one_place():
    rates = Bulkhead("rates", at_most=1)
    with rates:
        with rates:
            assert rates.figures()["inside"] == 1
        assert rates.figures()["inside"] == 1
    assert rates.figures()["inside"] == 0


def test_the_decorator_holds_a_place_for_each_call():
    rates = Bulkhead("rates", at_most=1)

    @rates
    def today(currency):
        """Return a rate."""
        assert rates.figures()["inside"] == 1
        return currency

    assert today("SEK") == "SEK"
    assert today.__doc__ == "Return a rate."
    assert rates.figures()["inside"] == 0
    with rates, pytest.raises(BulkheadFull):
        today("SEK")


def test_a_generator_has_its_place_while_it_is_iterated_in_whichever_threads():
    rates = Bulkhead("rates", at_most=1)

    @rates
    def lines():
        yield 1
        yield 2

    stream = lines()
    assert rates.figures()["inside"] == 0
    with ThreadPoolExecutor(1) as there:
        assert there.submit(next, stream).result() == 1
        assert rates.figures()["inside"] == 1
        assert next(stream) == 2
        there.submit(stream.close).result()
    assert rates.figures()["inside"] == 0


def test_a_generator_that_nobody_has_any_more_gives_its_place_back():
    rates = Bulkhead("rates", at_most=1)
    stream = rates(lambda: (yield 1))()
    next(stream)
    del stream
    gc.collect()
    assert rates.figures()["inside"] == 0


def test_an_async_function_has_its_place_until_it_is_done():
    rates = Bulkhead("rates", at_most=1)

    @rates
    async def today():
        await asyncio.sleep(0)
        return rates.figures()["inside"]

    async def both():
        return await asyncio.gather(today(), today(), return_exceptions=True)

    first, second = asyncio.run(both())
    assert first == 1
    assert isinstance(second, BulkheadFull)


def test_an_async_generator_has_its_place_while_it_is_iterated():
    rates, seen = Bulkhead("rates", at_most=1), []

    @rates
    async def items():
        try:
            yield rates.figures()["inside"]
            yield "never"
        finally:
            seen.append(rates.figures()["inside"])

    async def first():
        async with contextlib.aclosing(items()) as each:
            return await anext(each)

    assert asyncio.run(first()) == 1
    assert seen == [1]  # and it is closed before its place is given back
    assert rates.figures()["inside"] == 0


def test_an_exit_stack_gives_it_back():
    rates = Bulkhead("rates", at_most=1)

    def view():
        with contextlib.ExitStack() as stack:
            stack.enter_context(rates)
            stack.enter_context(Bulkhead("stock", at_most=1))

    view()
    view()


def test_a_place_taken_by_hand_is_given_back_once():
    rates = Bulkhead("rates", at_most=2)
    first, second = rates.take(), rates.take()
    first.give()
    first.give()
    assert rates.figures()["inside"] == 1
    del second
    assert rates.figures()["inside"] == 0


def test_both_ways_of_not_making_a_call_are_caught_in_one_word():
    assert issubclass(BulkheadFull, NotMade)
    assert issubclass(TooLate, NotMade)


def test_the_limit_is_exact_with_many_threads():
    rates, most, seen, refused = Bulkhead("rates", at_most=3), 3, [], []
    begin = threading.Barrier(8)

    def call():
        begin.wait()
        for _ in range(500):
            try:
                with rates:
                    seen.append(len(rates._held))
            except BulkheadFull:
                refused.append(1)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(call) for _ in range(8)]:
                done.result()
    finally:
        sys.setswitchinterval(before)
    assert len(seen) + len(refused) == 4000
    assert rates.figures()["inside"] == 0
    assert rates.figures()["refused"] == len(refused)
    assert len(many(rates)) == most


def test_no_more_are_inside_than_may_be(clock):
    """Counted by those who are inside, for one on its way out again is in the table, too."""
    rates, inside, most = Bulkhead("rates", at_most=2), [], []
    begin = threading.Barrier(6)

    def call():
        begin.wait()
        for _ in range(400):
            with contextlib.suppress(BulkheadFull), rates:
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(call) for _ in range(6)]:
                done.result()
    finally:
        sys.setswitchinterval(before)
    assert max(most) <= 2


def test_in_a_child_process_every_place_is_free():
    rates = Bulkhead("rates", at_most=2)
    place = rates.take()
    with rates:
        pid = os.fork()
        if not pid:
            free = len(many(rates)) == 2
            os._exit(0 if free else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert rates.figures()["inside"] == 1
    place.give()


def test_a_child_that_was_forked_inside_leaves_quietly():
    rates = Bulkhead("rates", at_most=2)
    pid = None
    with rates:
        pid = os.fork()
    if not pid:
        os._exit(rates.figures()["inside"])
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a generator
@pytest.mark.parametrize("decorated", [False, True], ids=["with", "decorated"])
def test_no_place_is_lost_wherever_an_exception_comes(monkeypatch, decorated):
    """By the names of the files in which it may: see test_out_of_nowhere.py."""
    modules = (bulkhead, context_decorator, deadline, frames, locks, slowness)
    monkeypatch.setattr(test_out_of_nowhere, "FILES", {module.__file__ for module in modules})
    for usual in (True, False):
        rates, interrupted = Bulkhead("rates", at_most=2), 0

        def quick():
            pass

        def long(rates=rates):
            rates._service.good.clear()
            raise TimeoutError

        def view(call, rates=rates):
            with rates:
                call()

        call = quick if usual else long
        call = rates(call) if decorated else functools.partial(view, call)
        while True:
            interruption = Interruption(interrupted)
            with contextlib.suppress(Late, TimeoutError), interruption:
                call()
            rates._service.shut = None
            rates._service.bad.clear()
            assert len(many(rates)) == 2, interrupted
            if interruption.left >= 0:
                break
            interrupted += 1
        assert interrupted >= 5


def test_it_is_exact_for_greenlets():
    """Also where nothing is patched, so that all of them are one thread."""
    code = """
        import gevent
        from wsgi_busyguard.bulkhead import Bulkhead, BulkheadFull
        rates = Bulkhead("rates", at_most=3)
        refused = []
        def call(n):
            try:
                with rates:
                    gevent.sleep(0.01 * (n % 3))
            except BulkheadFull:
                refused.append(n)
        jobs = [gevent.spawn(call, n) for n in range(10)]
        gevent.sleep(0)
        assert rates.figures()["inside"] == 3, rates
        jobs[0].kill()
        gevent.joinall(jobs)
        assert rates.figures()["inside"] == 0, rates
        assert len(refused) == 7, refused
    """
    pytest.importorskip("gevent")
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


# When it shuts


def calls(rates, clock, *seconds, error=None):
    """Make calls, one after the other, that take so long."""
    for each in seconds:
        with contextlib.suppress(Exception), rates:
            clock.now += each
            if error is not None:
                raise error


def test_slow_calls_shut_it_and_fast_errors_do_not(clock):
    rates = Bulkhead("rates", at_most=5, slow=1.0, clock=clock)
    calls(rates, clock, *[0.1] * 20, error=ConnectionRefusedError())
    assert rates.figures()["shut_for"] is None
    calls(rates, clock, *[2.0] * 3)
    assert rates.figures()["shut_for"] is None  # the window has the quick ones, too
    calls(rates, clock, *[2.0] * 3)
    assert rates.figures()["shut_for"] is not None
    with pytest.raises(BulkheadFull, match=r"rates: 0 of 5 in calls, shut for 0 s"):
        rates.take()


def test_calls_that_were_cut_by_their_deadline_shut_it(clock):
    rates = Bulkhead("rates", at_most=5, slow=10.0, clock=clock)
    calls(rates, clock, *[0.1] * 3, error=TimeoutError())
    assert rates.figures()["shut_for"] is not None


def test_a_call_that_was_not_made_is_no_failure(clock):
    rates = Bulkhead("rates", at_most=1, slow=1.0, clock=clock)
    with rates:
        for _ in range(10):
            with pytest.raises(BulkheadFull):
                rates.take()
    calls(rates, clock, *[0.1] * 9, error=TooLate())
    assert (rates.figures()["shut_for"], rates.figures()["made"]) == (None, 1)


def test_a_place_that_is_lost_after_a_slow_call_counts_as_one(clock):
    rates = Bulkhead("rates", at_most=5, slow=1.0, clock=clock)
    for took in (2.0, 2.0, 0.5, 2.0):
        place = rates.take()
        clock.now += took
        del place
    assert (rates.figures()["slow"], rates.figures()["inside"]) == (3, 0)
    assert rates.figures()["shut_for"] is not None


def test_calls_that_hang_shut_it_before_any_of_them_has_ended(clock):
    rates = Bulkhead("rates", at_most=5, slow=1.0, clock=clock)
    calls(rates, clock, *[0.01] * 1000)
    hanging = many(rates)
    clock.now += 1.0
    with pytest.raises(BulkheadFull, match="shut for 0 s"):
        rates.take()
    del hanging


def test_one_probe_at_a_time_and_two_good_ones_open_it(clock):
    rates = Bulkhead("rates", at_most=5, slow=1.0, clock=clock)
    calls(rates, clock, 2.0, 2.0, 2.0)
    clock.now += 0.9
    assert many(rates) == []
    clock.now += 0.1
    (probe,) = many(rates)
    clock.now += 0.2
    probe.give()
    (probe,) = many(rates)
    probe.give()
    assert rates.figures()["shut_for"] is None
    assert len(many(rates)) == 5


def test_after_a_bad_probe_it_waits_twice_as_long(clock):
    rates = Bulkhead("rates", at_most=5, slow=1.0, clock=clock)
    calls(rates, clock, 2.0, 2.0, 2.0)
    for pause in (1.0, 2.0, 4.0):
        clock.now += pause - 0.01
        assert many(rates) == []
        clock.now += 0.01
        (probe,) = many(rates)
        clock.now += 1.5
        probe.give()


def test_a_probe_that_nobody_has_any_more_does_not_keep_it_shut(clock):
    rates = Bulkhead("rates", at_most=5, slow=1.0, clock=clock)
    calls(rates, clock, 2.0, 2.0, 2.0)
    clock.now += 1.0
    many(rates)
    assert len(many(rates)) == 1


def test_services_that_hang_together_never_hold_more_than_half_of_the_slots(clock):
    gate = Gate(10)
    rates, stock = (Bulkhead(name, slow=1.0, clock=clock) for name in ("rates", "stock"))
    held = []
    requested(lambda: calls(rates, clock, 0.1, 0.1) or calls(stock, clock, 0.1, 0.1), gate)
    for _ in range(20):
        clock.now += 0.1
        for one in (rates, stock):
            with contextlib.suppress(BulkheadFull):
                held.append(requested(one.take, gate))
    assert len(held) <= 6  # what they held before it was seen that they hang
    assert rates.figures()["shut_for"] is not None
    assert stock.figures()["shut_for"] is not None
    held.clear()
    clock.now += 30
    for name in "abcdefgh":
        one = Bulkhead(name, slow=1.0, clock=clock)
        one._service.shut = slowness.shut(clock.now - 60, 1.0)
        with contextlib.suppress(BulkheadFull):
            held.append((one, requested(one.take, gate)))
    assert len(held) == 5


def test_it_says_when_it_is_full_when_it_shuts_and_when_it_opens(clock, caplog):
    rates = Bulkhead("rates", at_most=2, slow=1.0, clock=clock)
    taken = many(rates)
    many(rates)
    clock.now += 4.8
    many(rates)
    taken.clear()
    clock.now += 1.0
    for _ in range(2):
        with rates:
            clock.now += 0.1
    assert [record.message for record in caplog.records] == [
        "bulkhead rates: 2 of 2 in calls for up to 0.0 s; further calls fail at once",
        "bulkhead rates: 2 of 2 in calls for up to 4.8 s, shut for 0 s;"
        " 0 of 0 calls of the last 10 s and 2 that still run are slow",
        "bulkhead rates: 0 of 2 in calls; open again",
    ]


def test_the_timeout_is_what_the_client_has_left_and_half_of_it_is_slow():
    rates = Bulkhead("rates")
    assert rates.timeout(2.0) == 2.0
    assert rates._service.slow == 1.0
    left = requested(functools.partial(rates.timeout, 60.0))
    assert 4.0 < left <= 5.0


def test_settings_go_before_what_the_code_says():
    rates = Bulkhead("rates", at_most=5)
    configure({"rates": {"at_most": 2}, "stock": {"share": 0.1, "slow": 0.3}})
    assert len(many(rates)) == 2
    stock = Bulkhead("stock", at_most=9, slow=9.0)
    assert len(requested(lambda: many(stock), 20)) == 2
    assert stock._service.slow == 0.3


def test_what_the_settings_do_not_say_stays_as_the_code_says():
    rates = Bulkhead("rates", at_most=5, slow=0.7)
    configure({"rates": {"share": 0.1}})
    assert rates._service.slow == 0.7
    assert len(requested(lambda: many(rates), 20)) == 2


@pytest.mark.parametrize("wrong", [{"at_most": 0}, {"most": 3}, {"share": "x"}])
def test_settings_that_cannot_be_meant_change_nothing(wrong):
    rates = Bulkhead("rates", at_most=5)
    with pytest.raises((ValueError, TypeError)):
        configure({"rates": wrong})
    assert len(many(rates)) == 5


class BulkheadMachine(RuleBasedStateMachine):
    """Comes and goes in any order, by hand and in generators; a list knows who is inside."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.one = Bulkhead("machine", at_most=3, slow=1.0, clock=self.clock)
        self.inside = []  # each with since when, and whether it is there twice
        self.before_fork = []
        self.at_most = 3
        self.made = self.refused = self.forks = 0
        self.probe = None

    def stream(self, twice):
        with self.one:
            if twice:
                with self.one:
                    yield
            else:
                yield

    @rule(how=st.sampled_from(["by hand", "once", "twice"]))
    def comes(self, how):
        shut, now = self.one._service.shut, self.clock.now
        probes = shut and now >= shut.probe_at and self.probe not in self.inside
        full = len(self.inside) >= self.at_most
        try:
            if how == "by hand":
                call = self.one.take()
            else:
                call = self.stream(how == "twice")
                next(call)
        except BulkheadFull:
            assert not probes
            assert full or self.one._service.shut is not None
            self.refused += 1
            return
        assert probes if shut else not full
        self.inside.append((call, now, how == "twice"))
        self.probe = self.inside[-1] if shut else None

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), lost=st.booleans())
    def goes(self, data, lost):
        one = self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1)))
        if one is self.probe:
            self.probe = None
        call, since, _ = one
        by_hand, took = hasattr(call, "give"), self.clock.now - since
        if lost:
            del call, one
            gc.collect(0)
            self.made += not by_hand or took >= 1.0  # of one that is lost only what is slow counts
        else:
            call.give() if by_hand else call.close()
            self.made += 1

    @precondition(lambda self: self.forks < 2)
    @rule()
    def forks(self):
        """Go on in a child: those inside are in the parent, of which a thread has the lock."""
        self.forks += 1
        thread = threading.Thread(target=bulkhead._lock.acquire)
        thread.start()
        thread.join()
        bulkhead._after_fork_in_child()
        self.one._begin()
        assert bulkhead._lock.acquire(blocking=False), "nobody is there to give it back"
        bulkhead._lock.release()
        self.before_fork += self.inside
        self.inside, self.made, self.refused, self.probe = [], 0, 0, None

    @precondition(lambda self: self.before_fork)
    @rule()
    def goes_after_the_fork(self):
        call, *_ = self.before_fork.pop()
        call.give() if hasattr(call, "give") else call.close()

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.5, 40.0]))
    def passes(self, seconds):
        self.clock.now += seconds

    @rule(at_most=st.integers(1, 6))
    def is_resized(self, at_most):
        """As when the slots in force are more or fewer: nobody inside is sent out."""
        self.one.set(at_most=at_most, slow=1.0)
        self.at_most = at_most

    @invariant()
    def knows_who_is_inside(self):
        figures = self.one.figures()
        assert figures["inside"] == len(self.inside) <= 7  # the most of any size, and a probe
        assert (figures["made"], figures["refused"]) == (self.made, self.refused)
        assert len(self.one._deeper) == sum(twice for *_, twice in self.inside)


TestBulkhead = pytest.mark.slow(BulkheadMachine.TestCase)


class SharedSlotsMachine(RuleBasedStateMachine):
    """Two bulkheads of one guard whose slots become more and fewer; calls come and go in both."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        bulkhead._known.clear()  # of those of the run before, which may not be collected yet
        self.two = [Bulkhead(name, slow=1.0, clock=self.clock) for name in ("rates", "stock")]
        self.inside = [[], []]
        self.is_resized(10)

    def stream(self, one):
        with one:
            yield

    def call(self, one, by_hand):
        if by_hand:
            return one.take()
        call = self.stream(one)
        next(call)
        return call

    @rule(which=st.integers(0, 1), by_hand=st.booleans())
    def comes(self, which, by_hand):
        one, inside = self.two[which], self.inside[which]
        all_shut = all(each._service.shut is not None for each in self.two)
        before = len(self.inside[0]) + len(self.inside[1])
        try:
            inside.append(requested(functools.partial(self.call, one, by_hand), self.gate))
        except BulkheadFull:
            full = len(inside) >= self.half or one._service.shut is not None
            assert full or before >= self.half  # and what is well has never been refused
        else:
            assert not all_shut or before < self.half
            assert len(inside) <= self.half or one._service.shut is not None

    @precondition(lambda self: any(self.inside))
    @rule(data=st.data(), error=st.sampled_from([None, TimeoutError()]))
    def goes(self, data, error):
        which = data.draw(st.integers(0, len(self.inside[0]) + len(self.inside[1]) - 1))
        inside = self.inside[which >= len(self.inside[0])]
        call = inside.pop(which - (len(self.inside[0]) if inside is self.inside[1] else 0))
        if hasattr(call, "give"):
            call.give(error)
        elif error is None:
            call.close()
        else:
            with contextlib.suppress(TimeoutError):
                call.throw(error)

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5, 1.5, 40.0]))
    def passes(self, seconds):
        self.clock.now += seconds

    @rule(slots=st.integers(1, 12))
    def is_resized(self, slots):
        self.gate, self.half = Gate(slots), -(-slots // 2)
        current_guard._slots.clear()  # which are looked at anew after a quarter of a second
        for one in self.two:
            one.set(slow=1.0)

    @invariant()
    def knows_who_is_inside(self):
        for one, inside in zip(self.two, self.inside, strict=True):
            assert one.figures()["inside"] == len(inside)


TestSharedSlots = pytest.mark.slow(SharedSlotsMachine.TestCase)


# Simulated: ten slots, 0.7 x load, two of seven requests call one of so many services.


def outage(services, seed, hangs=(3.0, 9.0), ends=11.0):
    """Return the part of quick requests that got a slot within a second, in the worst second."""
    bulkhead._known.clear()
    rng, clock, gate = random.Random(seed), Clock(), Gate(10)
    clock.now = 0.0
    each = [Bulkhead(f"{number}", clock=clock) for number in range(services)]
    events, numbers, queue, free = [], itertools.count(), deque(), 10
    for view, rate in [(None, 50.0), *((one, 20.0 / services) for one in each)]:
        at = rng.expovariate(rate)
        while at < ends:
            events.append((at, next(numbers), view, rng.expovariate(10.0), None))
            at += rng.expovariate(rate)
    heapq.heapify(events)
    served = Counter()
    came = Counter(int(at) for at, _, view, *_ in events if view is None)
    while events:
        clock.now, _, view, took, place = heapq.heappop(events)
        if took is not None:
            queue.append((clock.now, view, took))
        else:
            free += 1
            if place is not None:
                place.give(TimeoutError() if view else None)
        while free and queue:
            at, view, took = queue.popleft()
            place = cut = None
            if view is None:
                served[int(at)] += clock.now - at < 1.0
            else:
                try:
                    place = requested(functools.partial(view.take, 1.0), gate)
                    took = 5.0 if hangs[0] <= clock.now < hangs[1] else took
                    took, cut = min(took, 1.0), took >= 1.0
                except BulkheadFull:
                    took = 0.0
            free -= 1
            heapq.heappush(events, (clock.now + took, next(numbers), cut, None, place))
    return min(served[second] / came[second] for second in range(int(ends)))


@pytest.mark.parametrize("services", [1, 2, 4, 8])
def test_however_many_services_hang_at_once_requests_that_call_none_are_served(services):
    """With each in the half that is its own, eight took 8 slots, and 65 in 100 were served."""
    assert min(outage(services, seed) for seed in range(3)) >= 0.99
