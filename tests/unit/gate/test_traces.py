"""What the models of the gate do, by threads that take turns as often as the interpreter can."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsgi_busyguard import Gate
from wsgi_busyguard.bulkhead import Bulkhead, BulkheadFull
from wsgi_busyguard.gate import Refused, Slot, Ticket

SLOTS, CALLS = 2, 1
ENDS = ("leave", "abandon", "lost", "forfeit")
STEPS = st.one_of(
    st.tuples(st.sampled_from(["enter", "call"]), st.sampled_from(ENDS)),
    st.tuples(st.sampled_from(["offer", "withdraw"]), st.sampled_from(ENDS)),
    st.tuples(st.just("resize"), st.integers(1, SLOTS)),
    st.tuples(st.sampled_from(["expire", "look"]), st.none()),
)
TRACES = st.lists(st.lists(STEPS, min_size=2, max_size=8), min_size=3, max_size=6)

INSIDE_SECONDS = 1e-4  # so that others come meanwhile


class Most:
    """How many are somewhere at once, and at most."""

    def __init__(self):
        self._lock = threading.Lock()
        self.now = self.most = 0

    def __enter__(self):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_):
        with self._lock:
            self.now -= 1


class Played:
    """Traces at one gate and one bulkhead: what came of each step."""

    def __init__(self, threads):
        self.all_there = threading.Barrier(threads)
        self.gate = Gate(SLOTS, max_queue=3, max_wait=1000.0)  # whoever is forgotten waits for ever
        self.bulkhead = Bulkhead("trace", at_most=CALLS)
        self.inside, self.calling = Most(), Most()
        self.ended, self.refused, self.withdrawn, self.not_called = [], [], [], []
        self.woken = {}

    def play(self, trace):
        self.all_there.wait(60)
        for what, how in trace:
            getattr(self, what)(how)

    def enter(self, end, work=lambda: None):
        try:
            slot = self.gate.take()
        except Refused as refusal:
            self.refused.append(refusal.reason)
            return
        self.visit(slot, end, work)

    def visit(self, slot, end, work=lambda: None):
        with self.inside:
            work()
            time.sleep(INSIDE_SECONDS)
        self.ended.append(end)
        if end != "lost":  # else nobody has the slot any more when the caller has returned
            getattr(self.gate, end)(slot)

    def call(self, end):
        """As a request that calls an outside service."""

        def work():
            try:
                with self.bulkhead, self.calling:
                    time.sleep(INSIDE_SECONDS)
            except BulkheadFull:  # not to be kept: its traceback refers to the slot
                self.not_called.append(end)

        self.enter(end, work)

    def offer(self, end):
        """As an event loop does: whoever wakes it goes on with it."""
        ticket = Ticket(lambda ticket: self.go_on(ticket, end))
        if self.gate.offer(ticket) is not None:
            self.go_on(ticket, end)

    def go_on(self, ticket, end):
        assert ticket not in self.woken, "it has two outcomes"
        self.woken[ticket] = None
        outcome, ticket.outcome = ticket.outcome, None
        if isinstance(outcome, Slot):
            self.visit(outcome, "leave" if end == "lost" else end)
        else:
            self.refused.append(outcome)

    def withdraw(self, end):
        """One whose client leaves as soon as it stands in the queue."""
        ticket = Ticket(lambda ticket: self.go_on(ticket, end))
        if self.gate.offer(ticket) is not None:
            self.go_on(ticket, end)
        elif self.gate.withdraw(ticket):
            self.withdrawn.append(ticket)

    def resize(self, slots):
        self.gate.resize(slots)

    def expire(self, _):
        self.gate.expire()

    def look(self, _):
        load = self.gate.read()
        assert 0 <= load.active <= load.capacity <= SLOTS
        assert load.queued == 0 or load.active == load.capacity


def watch_counts(gate, over):
    """Look at the counts until it is over; none of them ever goes down."""
    before = gate.counts().flat()
    while not over.is_set():
        now = gate.counts().flat()
        assert all(is_ >= was for is_, was in zip(now, before, strict=True))
        before = now


@pytest.mark.slow
@pytest.mark.usefixtures("hurry")
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(TRACES, st.booleans())
def test_whatever_threads_do_each_request_has_one_end_and_every_slot_comes_back(traces, watched):
    """Whoever looks repairs what was left undone, so nobody looks at half of them."""
    played, over, raised = Played(len(traces)), threading.Event(), []

    def run(step, *arguments):
        try:
            step(*arguments)
        except BaseException as error:
            raised.append(error)

    watcher = threading.Thread(target=run, daemon=True, args=(watch_counts, played.gate, over))
    threads = [
        threading.Thread(target=run, args=(played.play, trace), daemon=True) for trace in traces
    ]
    for thread in [*threads, watcher] if watched else threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    over.set()
    if watched:
        watcher.join(60)
    assert raised == []
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    check(played)


def check(played):
    gate, counts = played.gate, played.gate.counts()
    gate.resize(SLOTS)
    assert (gate.read()[:3], gate.empty) == ((0, 0, SLOTS), True)
    assert played.inside.most <= SLOTS
    assert played.calling.most <= CALLS
    assert played.bulkhead.figures()["inside"] == 0
    assert played.bulkhead.figures()["refused"] == len(played.not_called)
    forfeited = played.ended.count("forfeit")
    assert counts.admitted == len(played.ended)
    assert counts.served == len(played.ended) - forfeited
    assert counts.dropped == forfeited + len(played.withdrawn)
    assert sum(counts.refused) == len(played.refused)
