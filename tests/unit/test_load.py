from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard import Load, State, Transition
from wsgi_busyguard.load import (
    LAG_BUSY,
    LAG_FREE,
    UNKNOWN,
    judge,
    more_queued,
    service_time,
    smoothed,
)

FREE, BUSY = State.FREE, State.BUSY

counts = st.integers(0, 50)
states = st.sampled_from(State)


@pytest.mark.parametrize(
    ("queued", "active", "from_free", "from_busy"),
    [
        pytest.param(0, 0, FREE, FREE, id="nobody here"),
        pytest.param(0, 3, FREE, FREE, id="one place to spare"),
        pytest.param(0, 4, FREE, BUSY, id="every place taken, nobody waits: as it was"),
        pytest.param(1, 3, FREE, BUSY, id="as many queued as idle: as it was"),
        pytest.param(1, 4, BUSY, BUSY, id="one waits"),
        pytest.param(2, 3, BUSY, BUSY, id="more queued than idle"),
        pytest.param(3, 0, FREE, FREE, id="a queue that idle threads are about to take"),
        pytest.param(9, 0, BUSY, BUSY, id="a queue that nobody takes"),
    ],
)
def test_busy_is_more_queued_than_idle(queued, active, from_free, from_busy):
    load = Load(queued, active, 4)
    assert judge(FREE, load) is from_free
    assert judge(BUSY, load) is from_busy


@given(states, counts, counts, counts)
def test_the_busy_rule_is_the_one_in_the_words(state, queued, active, capacity):
    load = Load(queued, active, capacity)
    after = judge(state, load)
    assert (after is BUSY) == (queued > load.idle or (queued == load.idle and state is BUSY))


@given(states, counts, counts, counts)
def test_a_second_look_at_the_same_load_changes_nothing(state, queued, active, capacity):
    load = Load(queued, active, capacity)
    once = judge(state, load)
    assert judge(once, load) is once


@given(states, counts, counts)
def test_an_unknown_capacity_is_free(state, queued, active):
    assert judge(state, Load(queued, active, None)) is FREE


def test_unknown_is_free():
    assert judge(BUSY, UNKNOWN) is FREE
    assert UNKNOWN.delay == 0


@pytest.mark.parametrize(
    ("lag", "from_free", "from_busy"),
    [
        (LAG_FREE / 2, FREE, FREE),
        (LAG_FREE, FREE, BUSY),
        (LAG_BUSY - 0.01, FREE, BUSY),
        (LAG_BUSY, BUSY, BUSY),
        (9.0, BUSY, BUSY),
    ],
)
def test_a_loop_that_is_late_is_busy_until_it_is_half_as_late(lag, from_free, from_busy):
    load = Load(0, 0, 4, lag=lag)
    assert judge(FREE, load) is from_free
    assert judge(BUSY, load) is from_busy


def test_a_queue_is_busy_though_the_loop_is_in_time():
    assert judge(FREE, Load(1, 4, 4, lag=0.0)) is BUSY


def test_idle_is_capacity_less_active():
    assert Load(0, 3, 10).idle == 7


def test_idle_is_unknown_where_the_capacity_is():
    assert Load(0, 3, None).idle is None


def test_a_load_waits_for_nothing_unless_told():
    assert Load(1, 2, 3) == Load(*(1, 2, 3), waited=0.0, service=None, lag=0.0, longest=math.inf)


def test_a_load_is_frozen():
    with pytest.raises(AttributeError):
        Load(0, 0, 4).queued = 1


def test_a_transition_says_what_when_and_for_how_long():
    load = Load(1, 4, 4)
    assert Transition(BUSY, load, 17.0, 3.0) == (BUSY, load, 17.0, 3.0)
    assert Transition._fields == ("state", "load", "at", "lasted")


@pytest.mark.parametrize(
    ("load", "delay"),
    [
        pytest.param(Load(0, 4, 4, service=9.0), 0.0, id="nobody queued"),
        pytest.param(Load(8, 4, 4, waited=0.5, service=1.0), 2.0, id="what the queue will take"),
        pytest.param(Load(8, 4, 4, waited=3.0, service=1.0), 3.0, id="the oldest waits longer"),
        pytest.param(Load(0, 4, 4, waited=3.0), 3.0, id="those who waited have given up"),
        pytest.param(Load(8, 4, 4, waited=3.0), None, id="no service time yet"),
        pytest.param(Load(0, 0, 4, lag=0.7), 0.7, id="the loop is late"),
        pytest.param(Load(8, 4, None, waited=1.5), 1.5, id="no capacity known"),
        pytest.param(Load(8, 0, 0, waited=1.5, service=1.0), 1.5, id="no capacity at all"),
        pytest.param(Load(64, 4, 4, 1.5, 0.2, longest=1.6), 1.8, id="who waits longer is refused"),
        pytest.param(Load(16, 4, 4, 1.5, 1.0, longest=1.6), 2.6, id="a slow server still shows"),
        pytest.param(Load(8, 4, 4, 1.5, 1.0, longest=1.6), 2.0, id="it takes less than that"),
        pytest.param(Load(8, 4, 4, 3.0, 0.1, longest=1.6), 3.0, id="nobody refuses them in time"),
    ],
)
def test_delay_is_the_larger_of_what_was_waited_and_what_the_queue_takes(load, delay):
    assert load.delay == delay


def test_who_is_queued_where_nobody_refuses_it_for_its_age_has_no_limit_of_age():
    load = Load(8, 4, 4, 1.5, 1.0, longest=1.6)
    assert more_queued(load, 4) == Load(12, 4, 4, 1.5, 1.0)
    assert more_queued(load, 0) is load


def test_the_first_sample_is_the_mean():
    assert smoothed(None, 3.0) == 3.0


def test_a_later_sample_moves_the_mean_by_an_eighth():
    assert smoothed(1.0, 9.0) == 2.0


def test_no_service_time_is_known_before_the_first_request():
    assert service_time(None, []) is None


def test_before_one_has_finished_the_service_time_is_the_age_of_those_that_run():
    """A server that just started under load would else be called stuck, and leave at once."""
    assert service_time(None, [5.0, 5.0]) == pytest.approx(5.0)


def test_the_service_time_of_an_idle_server_is_the_mean():
    assert service_time(0.1, []) == 0.1


def test_a_running_request_counts_from_when_it_is_older_than_the_mean():
    assert service_time(0.1, [0.0, 0.05]) == pytest.approx(0.1)
    assert service_time(0.1, [0.2, 0.2]) == pytest.approx(0.2)


def test_one_slow_request_among_ten_hardly_counts():
    assert service_time(0.1, [60.0] + [0.0] * 9) == pytest.approx(0.1 * 10 / 9, rel=0.01)


def test_a_stall_shows_second_by_second_though_nothing_finishes():
    seen = [service_time(0.1, [float(age)] * 10) for age in (1, 2, 3)]
    assert seen == pytest.approx([1.0, 2.0, 3.0])


@given(
    st.floats(0, 1e6, allow_nan=False),
    st.lists(st.floats(-1e-3, 1e6, allow_nan=False), max_size=20),
)
def test_the_service_time_is_never_less_than_the_mean_nor_more_than_the_oldest(mean, ages):
    seconds = service_time(mean, ages)
    assert seconds >= mean * (1 - 1e-9)
    assert seconds <= max([mean, 1e-9, *ages]) * (1 + 1e-9)
