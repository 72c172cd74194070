from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard.haproxy.agent import MOST_BALANCERS, Agent, Balancer, next_limit
from wsgi_busyguard.load import UNKNOWN, Load
from wsgi_busyguard.policy import share

IDLE = Load(0, 0, 8, service=0.5)
LINE = re.compile(rb"up( maxconn:[1-9][0-9]*)?\n")


class Dial:
    """A clock and a monitor, both turned by hand."""

    def __init__(self, load=IDLE):
        self.now = 100.0
        self.load = load
        self.draining = False

    def __call__(self):
        return self.now

    def check(self, ready, patience, count=True):
        """Make it a monitor; the agent asks for no check."""
        raise AssertionError("the agent has asked for a check")


@pytest.fixture
def dial():
    return Dial()


@pytest.fixture
def agent(dial):
    return Agent(dial, clock=dial)


def asks(agent, name):
    """The line for a balancer that asks, as a port says it that knows the name."""
    agent.note(name)
    return agent.line_for(name)


def told(line):
    return int(line.removeprefix(b"up maxconn:"))


# share


@pytest.mark.parametrize(
    ("limit", "balancers", "each"),
    [(8, 1, 8), (8, 2, 4), (8, 3, 3), (8, 4, 2), (8, 9, 1), (1, 4, 1), (8, 0, 8)],
)
def test_a_share_is_rounded_up_and_at_least_1(limit, balancers, each):
    assert share(limit, balancers) == each


@given(st.integers(1, 10_000), st.integers(1, 100))
def test_shares_come_to_the_limit_and_less_than_one_more_for_each_balancer(limit, balancers):
    together = share(limit, balancers) * balancers
    assert limit <= together < limit + balancers


# next_limit


def test_the_limit_falls_by_what_others_have_queued():
    assert next_limit(8, 8, Load(3, 8, 8)) == 5


def test_the_limit_does_not_fall_for_what_rounding_up_lets_through():
    assert next_limit(8, 9, Load(1, 8, 8)) == 8


def test_the_limit_rises_by_what_is_idle():
    assert next_limit(3, 3, Load(0, 6, 8)) == 5


def test_the_limit_never_passes_the_capacity():
    assert next_limit(8, 8, Load(0, 0, 8)) == 8


LOADS = st.builds(
    Load,
    queued=st.integers(0, 10_000),
    active=st.integers(0, 1000),
    capacity=st.one_of(st.none(), st.integers(1, 1000)),
    service=st.one_of(st.none(), st.floats(0, 100)),
)


@given(st.integers(1, 1000), st.integers(1, 1100), LOADS)
def test_the_limit_is_always_from_1_to_the_capacity(limit, told, load):
    limit = min(limit, load.capacity or 1)
    assert 1 <= next_limit(limit, told, load) <= (load.capacity or 1)


# Balancer


def test_a_balancer_that_asked_once_is_live_for_five_default_periods():
    assert Balancer(0.0).live(10.0)
    assert not Balancer(0.0).live(10.1)


def test_a_balancer_is_live_for_five_of_its_own_periods():
    fast = Balancer(0.0)
    for asked in range(1, 5):
        fast = fast.asks(asked * 0.1)
    assert fast.live(fast.last + 0.5)
    assert not fast.live(fast.last + 1.0)
    slow = Balancer(0.0).asks(8.0)
    assert slow.live(8.0 + 40.0)
    assert not slow.live(8.0 + 40.1)


def test_a_balancer_that_asks_in_pairs_is_not_gone_between_them():
    """As one does that has this server in two backends."""
    balancer = Balancer(0.0)
    for pair in range(100):
        balancer = balancer.asks(pair * 2.0 + 2.0)
        assert balancer.live(pair * 2.0 + 2.0 + 2.0)
        balancer = balancer.asks(pair * 2.0 + 2.001)
        assert balancer.live(pair * 2.0 + 2.001 + 2.0)


def test_a_balancer_that_comes_back_begins_anew():
    assert Balancer(0.0).asks(0.5).asks(100.0) == Balancer(100.0)


# Agent


def test_one_balancer_may_fill_the_server(agent):
    assert asks(agent, "lb1") == b"up maxconn:8\n"


def test_four_balancers_share_without_being_told_of_each_other(agent):
    for _ in range(2):
        lines = [asks(agent, f"lb{n}") for n in range(4)]
    assert lines == [b"up maxconn:2\n"] * 4


def test_the_share_of_a_balancer_that_is_gone_is_the_others(agent, dial):
    asks(agent, "lb1")
    assert asks(agent, "lb2") == b"up maxconn:4\n"
    for _ in range(5):
        dial.now += 2.0
        assert asks(agent, "lb1") == b"up maxconn:4\n"
    dial.now += 2.0
    assert asks(agent, "lb1") == b"up maxconn:8\n"


def test_what_the_balancers_send_does_not_cut_their_limit(agent, dial):
    """8 slots for 3 are 3 each; the one request too many waits here, and that is all right."""
    for name in ("a", "b", "c"):
        asks(agent, name)
    dial.load = Load(1, 8, 8, service=0.5)
    for _ in range(20):
        dial.now += 1.0
        assert [asks(agent, name) for name in ("a", "b", "c")] == [b"up maxconn:3\n"] * 3


def test_other_traffic_that_fills_the_server_cuts_the_limit_and_the_limit_comes_back(agent, dial):
    assert asks(agent, "lb") == b"up maxconn:8\n"
    dial.load = Load(5, 8, 8, service=0.5)
    dial.now += 1.0
    assert asks(agent, "lb") == b"up maxconn:3\n"
    for _ in range(20):
        dial.now += 1.0
        line = asks(agent, "lb")
    assert line == b"up maxconn:1\n"
    dial.load = Load(0, 4, 8, service=0.5)
    dial.now += 1.0
    assert asks(agent, "lb") == b"up maxconn:5\n"
    dial.load = IDLE
    dial.now += 1.0
    assert asks(agent, "lb") == b"up maxconn:8\n"


def test_the_limit_changes_at_most_once_in_a_service_time(agent, dial):
    asks(agent, "lb")
    dial.load = Load(2, 8, 8, service=3.0)
    dial.now += 2.0
    assert told(asks(agent, "lb")) == 6
    dial.now += 2.9
    assert told(asks(agent, "lb")) == 6
    dial.now += 0.2
    assert told(asks(agent, "lb")) == 4


def test_a_cut_is_as_deep_as_the_queue_gets_though_no_service_time_is_over(agent, dial):
    """Whoever asks while the others are still coming must not miss most of them."""
    asks(agent, "lb")
    dial.load = Load(2, 8, 8, service=3.0)
    assert told(asks(agent, "lb")) == 6
    dial.now += 0.1
    dial.load = Load(5, 8, 8, service=3.0)
    assert told(asks(agent, "lb")) == 3
    dial.now += 0.1
    dial.load = Load(1, 8, 8, service=3.0)
    assert told(asks(agent, "lb")) == 3


def test_a_limit_that_has_risen_is_cut_when_its_service_time_is_over(agent, dial):
    asks(agent, "lb")
    dial.load = Load(6, 8, 8, service=3.0)
    assert told(asks(agent, "lb")) == 2
    dial.now += 3.0
    dial.load = Load(0, 4, 8, service=3.0)
    assert told(asks(agent, "lb")) == 6
    dial.now += 2.9
    dial.load = Load(1, 8, 8, service=3.0)
    assert told(asks(agent, "lb")) == 6
    dial.now += 0.1
    assert told(asks(agent, "lb")) == 5


def test_a_capacity_that_shrinks_is_told_at_once(agent, dial):
    asks(agent, "lb")
    dial.load = Load(0, 0, 3, service=100.0)
    assert asks(agent, "lb") == b"up maxconn:3\n"


def test_a_draining_server_takes_one_at_a_time_and_leaves_the_going_to_the_check(agent, dial):
    asks(agent, "lb")
    dial.draining = True
    assert asks(agent, "lb") == b"up maxconn:1\n"
    assert asks(agent, "other") == b"up maxconn:1\n"


def test_an_unknown_capacity_leaves_maxconn_as_it_is(agent, dial):
    dial.load = UNKNOWN
    assert asks(agent, "lb") == b"up\n"
    dial.load = IDLE
    assert asks(agent, "lb") == b"up maxconn:8\n"


@pytest.mark.slow
def test_names_beyond_measure_cost_no_memory_and_are_answered(agent):
    for n in range(10_000):
        assert LINE.fullmatch(asks(agent, f"name {n}"))
    assert len(agent._balancers) <= MOST_BALANCERS


STEPS = st.lists(
    st.tuples(st.text(max_size=10), st.floats(0, 20), LOADS, st.booleans()), max_size=30
)


@pytest.mark.slow
@given(STEPS)
def test_the_agent_never_says_anything_else(steps):
    """Not ``drain``, ``ready``, ``maint``, ``down``, a percentage or ``maxconn:0``, ever."""
    dial = Dial()
    agent = Agent(dial, clock=dial)
    for name, pause, load, draining in steps:
        dial.now += pause
        dial.load, dial.draining = load, draining
        line = asks(agent, name)
        assert LINE.fullmatch(line)
        if b":" in line:
            assert told(line) <= load.capacity


@pytest.mark.slow
@given(st.integers(1, 60), st.integers(1, 200))
def test_balancers_that_all_ask_are_told_no_more_than_one_each_beyond_the_capacity(
    balancers, capacity
):
    dial = Dial(Load(0, 0, capacity, service=0.5))
    agent = Agent(dial, clock=dial)
    for _ in range(2):
        dial.now += 2.0
        lines = [asks(agent, f"lb{n}") for n in range(balancers)]
    assert capacity <= sum(map(told, lines)) < capacity + balancers
