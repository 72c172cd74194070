from __future__ import annotations

import gc
import logging
import threading
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wsgi_busyguard import Load, Monitor, State, Transition
from wsgi_busyguard.load import UNKNOWN
from wsgi_busyguard.policy import Verdict

FREE, BUSY = State.FREE, State.BUSY
IDLE = Load(0, 0, 4)
FULL = Load(0, 4, 4)
QUEUE = Load(1, 4, 4, service=0.1)
STUCK = Load(4, 4, 4, waited=9.0, service=9.0)


def words(caplog):
    return [record.getMessage() for record in caplog.records]


# States and transitions


def test_a_monitor_begins_free(adapter):
    assert Monitor(adapter).state is FREE


def test_the_state_is_that_of_the_load_now(adapter):
    monitor = Monitor(adapter)
    for load, state in [(QUEUE, BUSY), (FULL, BUSY), (IDLE, FREE), (FULL, FREE)]:
        adapter.load = load
        assert monitor.state is state
        assert monitor.load == load


def test_listeners_hear_of_the_state_the_load_the_time_and_how_long_it_took(adapter, clock):
    heard = []
    monitor = Monitor(adapter, on_busy=heard.append, on_free=heard.append, clock=clock)
    clock.now += 5.0
    adapter.load = QUEUE
    monitor.refresh()
    clock.now += 2.0
    adapter.load = IDLE
    monitor.refresh()
    assert heard == [
        Transition(BUSY, QUEUE, at=1005.0, lasted=5.0),
        Transition(FREE, IDLE, at=1007.0, lasted=2.0),
    ]


def test_who_listens_for_busy_hears_nothing_of_free(adapter):
    busy, free = [], []
    monitor = Monitor(adapter, on_busy=busy.append, on_free=free.append)
    for load in (QUEUE, IDLE, QUEUE):
        adapter.load = load
        monitor.refresh()
    assert [change.state for change in busy] == [BUSY, BUSY]
    assert [change.state for change in free] == [FREE]


@given(st.lists(st.sampled_from([IDLE, FULL, QUEUE, STUCK, None, UNKNOWN]), max_size=30))
def test_transitions_alternate_and_begin_with_busy(loads):
    loads = iter([*loads, IDLE])

    class Adapter:
        def read(self):
            return next(loads, IDLE)

        def subscribe(self, changed):
            pass

    heard = []
    logging.disable()
    monitor = Monitor(Adapter(), on_busy=heard.append, on_free=heard.append)
    for _ in range(32):
        monitor.refresh()
    logging.disable(logging.NOTSET)
    states = [change.state for change in heard]
    assert states == [BUSY, FREE] * (len(states) // 2)


def test_an_adapter_that_tells_is_believed_at_once(telling):
    heard = []
    monitor = Monitor(telling, on_busy=heard.append)
    telling.set(QUEUE)
    assert [change.load for change in heard] == [QUEUE]
    assert monitor.on_busy(heard.append) == heard.append


@pytest.mark.parametrize("listener", [None, "f", 3])
def test_a_listener_must_be_callable(adapter, listener):
    with pytest.raises(TypeError) as caught:
        Monitor(adapter).on_busy(listener)
    said = f"on_busy must be a function that takes a Transition, not {listener!r}"
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"adapter": None}, TypeError, "adapter must have a read() that returns a Load, not None"),
        ({"deliver": 3}, TypeError, "deliver must take a function to call, not 3"),
        ({"interval": 0}, ValueError, "interval must be more than 0 seconds, not 0"),
        ({"interval": None}, TypeError, "interval must be a number of seconds, not None"),
        (
            {"on_busy": 1},
            TypeError,
            "on_busy must be a function that takes a Transition, not 1",
        ),
        (
            {"on_free": 1},
            TypeError,
            "on_free must be a function that takes a Transition, not 1",
        ),
    ],
    ids=str,
)
def test_wrong_arguments_say_what_was_expected_and_what_came(adapter, arguments, error, text):
    with pytest.raises(error) as caught:
        Monitor(**{"adapter": adapter, **arguments})
    assert str(caught.value) == text


def test_its_repr_shows_the_state(adapter):
    adapter.__class__.__repr__ = lambda self: "it"
    monitor = Monitor(adapter)
    assert repr(monitor) == "<Monitor free, reads it>"
    monitor.drain()
    assert repr(monitor) == "<Monitor draining, reads it>"
    del adapter.__class__.__repr__


# Listeners: strangers


def test_a_listener_that_raises_is_logged_and_does_not_silence_the_next(telling, caplog):
    heard = []

    def raising(change):
        raise RuntimeError("on strike")

    monitor = Monitor(telling)
    monitor.on_busy(raising)
    monitor.on_busy(heard.append)
    telling.set(QUEUE)
    assert len(heard) == 1
    [text] = words(caplog)
    assert text.startswith("listener <function")
    assert text.endswith(" raised on busy")
    assert "on strike" in caplog.text


def test_a_listener_may_call_the_monitor(telling):
    heard = []
    monitor = Monitor(telling)
    monitor.on_busy(lambda change: heard.append((monitor.state, monitor.load, monitor.check())))
    monitor.on_busy(lambda change: monitor.on_free(heard.append))
    telling.set(QUEUE)
    telling.set(IDLE)
    assert heard[0] == (BUSY, QUEUE, Verdict("busy", True, QUEUE))
    assert heard[1].state is FREE


def test_what_a_listener_causes_is_told_after_all_have_heard_of_the_first(telling):
    heard = []
    monitor = Monitor(telling)

    def relieve(change):
        heard.append("busy, to the first")
        telling.set(IDLE)

    monitor.on_busy(relieve)
    monitor.on_busy(lambda change: heard.append("busy, to the second"))
    monitor.on_free(lambda change: heard.append("free"))
    telling.set(QUEUE)
    assert heard == ["busy, to the first", "busy, to the second", "free"]


def test_others_can_ask_while_a_listener_takes_its_time(telling, start, until):
    """Listeners run outside the lock."""
    telling_now, told = threading.Event(), threading.Event()
    monitor = Monitor(telling)

    def slow(change):
        telling_now.set()
        assert told.wait(20)

    monitor.on_busy(slow)
    start(telling.set, QUEUE)
    assert telling_now.wait(20)
    assert monitor.check("exact") == Verdict("busy", False, QUEUE)
    assert monitor.state is BUSY
    told.set()


def test_listeners_are_called_one_at_a_time_and_in_order(telling, start):
    """News that comes while a listener runs is told afterwards, by whoever runs the listener."""
    running, go_on = threading.Event(), threading.Event()
    heard = []
    monitor = Monitor(telling)

    def listener(change):
        heard.append(("begin", change.state))
        running.set()
        assert go_on.wait(20)
        heard.append(("end", change.state))

    monitor.on_busy(listener)
    monitor.on_free(listener)
    first = start(telling.set, QUEUE)
    assert running.wait(20)
    telling.set(IDLE)  # returns at once, though a listener is at work
    telling.set(QUEUE)
    assert heard == [("begin", BUSY)]
    go_on.set()
    first.join(20)
    assert heard == [(when, s) for s in (BUSY, FREE, BUSY) for when in ("begin", "end")]


def test_no_thread_s_news_is_lost_or_told_out_of_order(telling, start, hurry):
    heard = []
    inside = threading.Lock()

    def listener(change):
        assert inside.acquire(blocking=False), "two listeners at once"
        heard.append(change)
        inside.release()

    monitor = Monitor(telling, on_busy=listener, on_free=listener)

    def flap():
        for _ in range(400):
            telling.set(QUEUE)
            telling.set(IDLE)

    threads = [start(flap) for _ in range(4)]
    for thread in threads:
        thread.join(20)
    assert monitor.state is FREE
    states = [change.state for change in heard]
    assert len(states) >= 2
    assert states == [BUSY, FREE] * (len(states) // 2)
    assert [change.at for change in heard] == sorted(change.at for change in heard)
    assert not monitor._news


def test_an_exit_raised_by_a_listener_does_not_silence_the_monitor(telling):
    """KeyboardInterrupt and its like are not the monitor's to swallow."""
    heard = []
    monitor = Monitor(telling)

    def leave(change):
        raise KeyboardInterrupt

    monitor.on_busy(leave)
    monitor.on_free(heard.append)
    with pytest.raises(KeyboardInterrupt):
        telling.set(QUEUE)
    telling.set(IDLE)
    assert [change.state for change in heard] == [FREE]


def test_deliver_decides_where_the_listeners_run(telling):
    heard, posted = [], []
    Monitor(telling, on_busy=heard.append, deliver=posted.append)
    telling.set(QUEUE)
    assert heard == []
    for tell in posted:
        tell()
    assert [change.state for change in heard] == [BUSY]


def test_a_delivery_that_fails_is_logged_once_a_streak_and_made_up_for(telling, caplog):
    heard, broken = [], True

    def deliver(tell):
        if broken:
            raise RuntimeError("the loop is closed")
        tell()

    monitor = Monitor(telling, on_busy=heard.append, deliver=deliver)
    telling.set(QUEUE)
    for _ in range(5):
        monitor.check()
    assert words(caplog) == ["could not pass on a change of state; tried again at every look"]
    broken = False
    monitor.check()
    assert [change.load for change in heard] == [QUEUE]
    broken = True
    telling.set(IDLE)
    assert len(words(caplog)) == 2


# Checks


@pytest.mark.parametrize(
    ("load", "ready", "verdict"),
    [
        pytest.param(IDLE, "exact", ("free", True), id="free, exact"),
        pytest.param(IDLE, "damped", ("free", True), id="free, damped"),
        pytest.param(IDLE, "always", ("free", True), id="free, always"),
        pytest.param(QUEUE, "exact", ("busy", False), id="a short queue, exact"),
        pytest.param(QUEUE, "damped", ("busy", True), id="a short queue, damped"),
        pytest.param(QUEUE, "always", ("busy", True), id="a short queue, always"),
        pytest.param(STUCK, "exact", ("busy", False), id="stuck, exact"),
        pytest.param(STUCK, "damped", ("busy", False), id="stuck, damped"),
        pytest.param(STUCK, "always", ("busy", True), id="stuck, always"),
    ],
)
def test_a_check_names_the_state_and_judges_it_by_the_policy(adapter, load, ready, verdict):
    adapter.load = load
    assert Monitor(adapter).check(ready) == Verdict(*verdict, load)


@pytest.mark.parametrize("load", [IDLE, QUEUE, STUCK, None], ids=["free", "busy", "stuck", "none"])
@pytest.mark.parametrize("ready", ["exact", "damped", "always"])
def test_every_check_says_draining_whatever_the_load(adapter, load, ready):
    adapter.load = load
    monitor = Monitor(adapter)
    assert not monitor.draining
    monitor.drain()
    assert monitor.draining
    assert monitor.check(ready)[:2] == ("draining", False)


def test_damped_is_the_default_with_the_patience_of_haproxy(adapter):
    monitor = Monitor(adapter)
    answers = []
    for waited in (1.9, 2.0, 1.0, 0.9, 1.9):
        adapter.load = Load(1, 4, 4, waited=waited, service=0.1)
        answers.append(monitor.check().ready)
    assert answers == [True, False, False, True, True]


def test_each_patience_has_a_memory_of_its_own(adapter):
    monitor = Monitor(adapter)
    adapter.load = Load(1, 4, 4, waited=3.0, service=0.1)
    assert monitor.check("damped", 10.0).ready
    assert not monitor.check("damped", 2.0).ready
    adapter.load = Load(1, 4, 4, waited=1.5, service=0.1)
    assert monitor.check("damped", 10.0).ready
    assert not monitor.check("damped", 2.0).ready


def test_other_policies_leave_the_memory_of_damped_alone(adapter):
    monitor = Monitor(adapter)
    adapter.load = Load(1, 4, 4, waited=1.5, service=0.1)
    assert not monitor.check("exact").ready
    assert monitor.check("damped").ready


def test_a_check_under_an_unknown_policy_names_the_three(adapter):
    with pytest.raises(ValueError, match=r"^ready must be one of exact, damped, always, not 'x'$"):
        Monitor(adapter).check("x")


# Guarding must never be the outage

NOT_READABLE = [
    pytest.param(RuntimeError("gone"), id="raises"),
    pytest.param(None, id="returns None"),
    pytest.param(7, id="returns a number"),
    pytest.param((0, 0, 4, 0.0, None, 0.0), id="returns a plain tuple"),
    pytest.param(Load("many", 0, 4), id="text for queued"),
    pytest.param(Load(0, None, 4), id="None for active"),
    pytest.param(Load(0, 0, "4"), id="text for capacity"),
    pytest.param(Load(0, 0, 4, waited="long"), id="text for waited"),
    pytest.param(Load(0, 0, 4, service="long"), id="text for service"),
    pytest.param(Load(0, 0, 4, lag="late"), id="text for lag"),
    pytest.param(Load(0, 0, 4, waited=-1.0), id="less than no time"),
]


@pytest.mark.parametrize("load", NOT_READABLE)
@pytest.mark.parametrize("ready", ["exact", "damped", "always"])
def test_what_cannot_be_read_is_free(adapter, load, ready):
    monitor = Monitor(adapter)
    adapter.load = STUCK
    assert monitor.state is BUSY
    adapter.load = load
    assert monitor.check(ready) == Verdict("free", True, UNKNOWN)
    assert monitor.load is UNKNOWN
    assert monitor.state is FREE


@pytest.mark.parametrize("load", NOT_READABLE)
def test_what_cannot_be_read_is_logged_once_a_streak(adapter, caplog, load):
    monitor = Monitor(adapter)
    adapter.load = load
    for _ in range(5):
        monitor.check()
    [text] = words(caplog)
    assert text.startswith(f"cannot read the load from {adapter!r}: ")
    assert text.endswith("; taken to be free until it can")
    adapter.load = IDLE
    monitor.check()
    adapter.load = load
    monitor.check()
    monitor.check()
    assert len(words(caplog)) == 2


def test_rubbish_of_changing_kinds_is_one_streak(adapter, caplog):
    monitor = Monitor(adapter)
    for load in (None, RuntimeError("gone"), 7, None):
        adapter.load = load
        monitor.check()
    assert len(words(caplog)) == 1


def test_a_server_that_can_no_longer_be_read_is_told_to_be_free(telling):
    heard = []
    Monitor(telling, on_busy=heard.append, on_free=heard.append)
    telling.set(QUEUE)
    telling.set(None)
    assert [(change.state, change.load) for change in heard] == [(BUSY, QUEUE), (FREE, UNKNOWN)]


# Polling


def test_nobody_looks_before_there_is_a_listener(adapter, until):
    before = threading.active_count()
    monitor = Monitor(adapter, interval=0.001)
    assert threading.active_count() == before
    assert adapter.looks == 0
    monitor.on_free(lambda change: None)
    until(lambda: adapter.looks > 2)


def test_an_adapter_that_cannot_tell_is_polled(adapter, until):
    heard = []
    monitor = Monitor(adapter, on_busy=heard.append, interval=0.001)
    adapter.load = QUEUE
    until(lambda: heard)
    assert heard[0].load == QUEUE
    assert monitor.state is BUSY


def test_an_adapter_that_tells_is_not_polled(telling):
    before = threading.active_count()
    monitor = Monitor(telling, on_busy=print, on_free=print, interval=0.001)
    assert threading.active_count() == before
    assert telling.looks == 0
    assert monitor.adapter is telling


def tickers():
    return [thread for thread in threading.enumerate() if thread.name == "busyguard-ticker"]


def test_there_is_one_ticker_however_many_listen_at_once(adapter, start, hurry, until):
    until(lambda: not tickers())
    monitor = Monitor(adapter, interval=0.001)
    gate = threading.Barrier(8)

    def listen():
        gate.wait()
        monitor.on_busy(print)

    for thread in [start(listen) for _ in range(8)]:
        thread.join(20)
    assert len(tickers()) == 1


def test_the_ticker_goes_on_when_a_listener_raises(adapter, until, caplog):
    monitor = Monitor(adapter, on_busy=lambda change: 1 / 0, interval=0.001)
    adapter.load = QUEUE
    until(lambda: "ZeroDivisionError" in caplog.text)
    looks = adapter.looks
    until(lambda: adapter.looks > looks + 1)
    assert monitor.state is BUSY


def test_the_ticker_dies_with_the_monitor(adapter, until):
    until(lambda: not tickers())
    monitor = Monitor(adapter, on_busy=print, interval=0.001)
    until(lambda: adapter.looks)
    gone = weakref.ref(monitor)
    assert len(tickers()) == 1
    del monitor
    until(lambda: gone() is None)
    gc.collect()  # guards of other tests, which are in cycles
    until(lambda: not tickers())


def test_a_monitor_is_collected_with_its_adapter(telling):
    """They know each other; nobody else may keep them."""
    monitor = Monitor(telling)
    gone = weakref.ref(monitor)
    telling.changed.clear()
    del monitor
    gc.collect()
    assert gone() is None


# Interrupted in the middle of a look, by a signal handler or a finalizer


def test_drain_can_be_called_while_the_lock_is_held(adapter):
    monitor = Monitor(adapter)
    with monitor._lock:
        monitor.drain()
    assert monitor.check().word == "draining"


def test_drain_can_be_called_in_a_signal_handler_in_the_middle_of_a_look(python):
    assert (
        python("""
        import os, signal
        from wsgi_busyguard import Load, Monitor
        class Adapter:
            def read(self):
                os.kill(os.getpid(), signal.SIGTERM)
                return Load(0, 0, 4)
        monitor = Monitor(Adapter())
        signal.signal(signal.SIGTERM, lambda *_: monitor.drain())
        print(monitor.check().word)
        """)
        == "draining\n"
    )


def test_a_signal_handler_that_raises_never_leaves_the_lock_taken(python):
    """As those do by which an app or a server limits the time of a request."""
    assert (
        python("""
        import random, signal, threading
        from wsgi_busyguard import Load, Monitor

        class TooLong(BaseException):
            pass

        class Adapter:
            def read(self):
                return Load(3, 10, 10, 0.1, 0.05)

        def is_free(lock):
            def look():
                if lock.acquire(timeout=5):
                    lock.release()
                    found.append(True)
            found = []
            other = threading.Thread(target=look)
            other.start()
            other.join()
            return bool(found)

        def raises(*_):
            raise TooLong

        monitor, raised = Monitor(Adapter()), 0
        signal.signal(signal.SIGALRM, raises)
        while raised < 400:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 8e-5))
                for _ in range(1000):
                    monitor.check()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except TooLong:
                raised += 1
                assert is_free(monitor._lock), raised
        print(monitor.check().word)
        """)
        == "busy\n"
    )


def test_a_look_within_a_look_returns_the_last_load_and_the_first_looks_again():
    """A generator that is collected may run an app's code anywhere, also in a look."""
    loads, seen = [IDLE, FULL, QUEUE], []

    class Adapter:
        def read(self):
            load = loads.pop(0) if len(loads) > 1 else loads[0]
            if load is FULL:
                seen.extend([monitor.load, monitor.state, monitor.check("exact")])
            return load

    monitor = Monitor(Adapter())
    assert monitor.load is IDLE
    assert monitor.load is QUEUE
    assert seen == [IDLE, FREE, Verdict("free", True, IDLE)]
    assert loads == [QUEUE]


def test_nothing_is_told_in_the_middle_of_a_look():
    told_within = []

    class Adapter:
        load = IDLE

        def read(self):
            monitor.check()
            monitor.refresh()
            return self.load

        def subscribe(self, changed):
            pass

    monitor = Monitor(Adapter())
    monitor.on_busy(lambda change: told_within.append(monitor._looking))
    monitor.adapter.load = QUEUE
    monitor.refresh()
    assert told_within == [False]


# Forks


def test_a_child_has_locks_of_its_own_and_a_ticker(python):
    assert (
        python("""
        import os, sys, threading, time
        from wsgi_busyguard import Load, Monitor

        class Adapter:
            load = Load(0, 0, 4)
            def read(self):
                return self.load

        heard = []
        adapter = Adapter()
        monitor = Monitor(adapter, on_busy=heard.append, interval=0.01)
        held, forked = threading.Event(), threading.Event()

        def hold():
            with monitor._lock, monitor._notifier._turn._lock:
                monitor._looking = True
                held.set()
                forked.wait()
                monitor._looking = False

        threading.Thread(target=hold).start()
        held.wait()
        child = os.fork()
        if not child:
            adapter.load = Load(1, 4, 4)
            end = time.monotonic() + 20
            while not heard and time.monotonic() < end:
                time.sleep(0.001)
            names = [thread.name for thread in threading.enumerate()]
            print(monitor.check("exact").word, len(heard), names.count("busyguard-ticker"))
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)
        forked.set()
        """)
        == "busy 1 1\n"
    )


def test_a_listener_may_fork(python):
    assert (
        python("""
        import os, sys
        from wsgi_busyguard import Load, Monitor

        class Adapter:
            load = Load(0, 0, 4)
            def read(self):
                return self.load
            def subscribe(self, changed):
                pass

        monitor = Monitor(Adapter())
        @monitor.on_busy
        def fork(change):
            global child
            child = os.fork()
        @monitor.on_free
        def free(change):
            print("free", "in the parent" if child else "in the child", flush=True)

        monitor.adapter.load = Load(1, 4, 4)
        monitor.refresh()
        if child:
            os.waitpid(child, 0)
        monitor.adapter.load = Load(0, 0, 4)
        monitor.refresh()
        """)
        == "free in the child\nfree in the parent\n"
    )


# Against a model


class MonitorMachine(RuleBasedStateMachine):
    """Monitor beside the rules as DESIGN words them: a state, a draining flag, and one answer.

    A listener of each kind raises, and one looks at the monitor again.
    """

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.load = Load(0, 0, 2)
        self.heard = []
        self.monitor = Monitor(self, clock=lambda: self.now, deliver=lambda tell: tell())
        for listen in (self.monitor.on_busy, self.monitor.on_free):
            listen(self.heard.append)
            listen(lambda change: self.monitor.refresh())
            listen(lambda change: 1 / 0)
        self.state, self.since = FREE, 0.0  # the model
        self.was_ready = True
        self.draining = False
        self.queued, self.moved = 0, 0.0
        self.expected = []

    def subscribe(self, changed):
        self.changed = changed

    def read(self):
        if self.load is None:
            raise OSError("the server does not say")
        return self.load

    def seen(self):
        """Move the model by what the monitor sees now."""
        if self.load is None:
            state = FREE
        else:
            over = self.load.queued > self.load.idle
            spare = self.load.queued < self.load.idle
            state = BUSY if over else FREE if spare else self.state
        queued = 0 if self.load is None or self.load.service is not None else self.load.queued
        if queued == 0 or queued < self.queued or self.queued == 0:
            self.moved = self.now
        self.queued = queued
        if state is not self.state:
            load = UNKNOWN if self.load is None else self.load
            self.expected.append(Transition(state, load, self.now, self.now - self.since))
            self.state, self.since = state, self.now

    @rule(seconds=st.floats(0.0, 5.0))
    def time_goes_by(self, seconds):
        self.now += seconds

    @rule(
        queued=st.integers(0, 4),
        active=st.integers(0, 2),
        waited=st.sampled_from([0.0, 0.9, 1.0, 1.9, 2.0, 9.0]),
        service=st.sampled_from([None, 0.0, 0.5, 1.0, 2.0]),
        told=st.booleans(),
    )
    def the_load_changes(self, queued, active, waited, service, told):
        self.load = Load(queued, active, 2, waited, service)
        if told:
            self.changed()
            self.seen()

    @rule()
    def the_adapter_fails(self):
        self.load = None

    @rule()
    def the_server_is_told_to_stop(self):
        self.monitor.drain()
        self.draining = True

    @rule(ready=st.sampled_from(["exact", "damped", "always"]))
    def a_check_comes(self, ready):
        verdict = self.monitor.check(ready)
        self.seen()
        load = UNKNOWN if self.load is None else self.load
        turned_away = self.state is BUSY
        if turned_away and load.service is None and load.queued:
            load = load._replace(waited=max(load.waited, self.now - self.moved))
        if ready == "always":
            turned_away = False
        if turned_away and ready == "damped":
            delay = load.waited if load.delay is None else load.delay
            turned_away = delay >= (2.0 if self.was_ready else 1.0)
        if ready == "damped":
            self.was_ready = not turned_away
        word = "draining" if self.draining else self.state.value
        assert verdict == (word, not turned_away and not self.draining, load)

    @invariant()
    def what_was_heard_is_what_happened(self):
        assert self.heard == self.expected


TestMonitorAgainstTheModel = pytest.mark.slow(MonitorMachine.TestCase)
