"""The agent's shares: balancers come, ask, fall silent and return, and the server is resized."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wsgi_busyguard import Load
from wsgi_busyguard.haproxy.agent import (
    DEFAULT_PERIOD_SECONDS,
    KNOWN_GAPS,
    MISSED_PERIODS,
    MOST_OF_ADDRESS,
    Agent,
)

SERVICE = 0.5
BALANCERS = [f"lb{number}" for number in range(6)]
LINE = re.compile(rb"up maxconn:([1-9]\d*)\n")


class AgentMachine(RuleBasedStateMachine):
    """The agent beside a list of when each balancer asked."""

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        self.load = Load(0, 0, 10, 0.0, SERVICE)
        self.draining = False
        self.agent = Agent(self, clock=lambda: self.now)
        self.asked = {}  # by name: when, as long as it never fell silent

    def check(self, ready, patience, count=True):
        """Make it a monitor; the agent asks for no check."""
        raise AssertionError("the agent has asked for a check")

    def period(self, name):
        times = self.asked[name]
        gaps = [after - before for before, after in itertools.pairwise(times)][-KNOWN_GAPS:]
        return max(gaps if len(gaps) == KNOWN_GAPS else [DEFAULT_PERIOD_SECONDS, *gaps])

    def live(self):
        """Those that have asked within so many of their own periods."""
        return {
            name
            for name, times in self.asked.items()
            if self.now - times[-1] <= MISSED_PERIODS * self.period(name)
        }

    def ask(self, name):
        """Ask, and return what the balancer is told."""
        if name not in self.live():
            self.asked[name] = []
        self.asked[name].append(self.now)
        self.agent.note(name)
        line = self.agent.line_for(name)
        found = LINE.fullmatch(line)
        assert found, line
        told = int(found[1])
        if self.draining:
            assert told == 1
        else:
            assert told <= math.ceil(self.load.capacity / len(self.live()))
        return told

    @rule(name=st.sampled_from(BALANCERS))
    def one_asks(self, name):
        self.ask(name)

    @rule(name=st.sampled_from(BALANCERS))
    def one_asks_often(self, name):
        """So that its own period is known, which is shorter than the usual one."""
        for _ in range(KNOWN_GAPS + 2):
            self.now += 0.1
            self.ask(name)

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 2.0, 2.1, 9.0, 60.0, 86400.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(capacity=st.integers(1, 40), taken=st.floats(0, 1), queued=st.integers(0, 50))
    def change(self, capacity, taken, queued):
        """The load is another, and the slots may be resized."""
        active = capacity if queued else int(capacity * taken)
        self.load = Load(queued, active, capacity, 0.0, SERVICE)

    @precondition(lambda self: self.asked)
    @rule(draining=st.booleans())
    def drain(self, draining):
        self.draining = draining

    def fall_silent(self):
        """Have so much time pass that all are gone."""
        self.now += (
            max((MISSED_PERIODS * self.period(name) for name in self.asked), default=0.0) + 1
        )
        self.asked.clear()
        assert self.agent.balancers() == []

    @precondition(lambda self: not self.draining)
    @rule(count=st.integers(1, len(BALANCERS)))
    def all_of_it_is_shared_when_nobody_else_takes_it(self, count):
        """An idle server: from the third round on the balancers that ask have all that there is."""
        self.fall_silent()
        self.load = self.load._replace(queued=0, active=0)
        for _ in range(3):
            self.now += 2 * SERVICE
            told = [self.ask(name) for name in BALANCERS[:count]]
        capacity = self.load.capacity
        assert capacity <= sum(told) < capacity + count
        self.fall_silent()
        assert self.agent.line_for("nobody's") == b"up maxconn:%d\n" % capacity, "those gone share"

    @precondition(lambda self: not self.draining)
    @rule(count=st.integers(1, len(BALANCERS)))
    def others_fill_it(self, count):
        """What comes past the balancers fills the server: they are to have next to nothing."""
        self.fall_silent()
        capacity = self.load.capacity
        self.load = self.load._replace(queued=4 * capacity + count, active=capacity)
        for _ in range(3):
            self.now += 2 * SERVICE
            told = [self.ask(name) for name in BALANCERS[:count]]
        assert told == [1] * count

    @rule(count=st.integers(1, 100))
    def somebody_makes_up_names(self, count):
        """From one address: they take no more than a few shares, and none when they fall silent."""
        before = len(self.agent.balancers())
        for number in range(count):
            self.agent.note(f"made up {number}", "192.0.2.1")
        assert len(self.agent.balancers()) <= before + MOST_OF_ADDRESS
        self.now += MISSED_PERIODS * DEFAULT_PERIOD_SECONDS + 1
        self.asked = {name: self.asked[name] for name in self.live()}

    @invariant()
    def those_are_known_that_ask(self):
        assert {row["name"] for row in self.agent.balancers()} == self.live()
        assert all(self.agent.knows(name) for name in self.live())


AgentMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
test_the_shares_are_those_of_the_balancers_that_ask = pytest.mark.slow(AgentMachine.TestCase)
