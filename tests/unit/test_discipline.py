"""When a queue is an overload, and how long it may be then."""

from __future__ import annotations

import math

import pytest

from wsgi_busyguard.policy import (
    DAMPED_PATIENCE,
    Discipline,
    Limits,
    limits,
    loose_limits,
    queue_length,
)

LOOSE, ORDINARY = loose_limits(10), limits(10)


def stand(discipline, begin, end, arrivals=2, served=1, queued=50, waited=2.0):
    """Have a queue stand for so many seconds."""
    for second in range(begin, end + 1):
        for _ in range(arrivals):
            discipline.arrived()
        for _ in range(served):
            discipline.left()
        discipline.crowded(float(second), queued, waited)


def test_a_queue_that_comes_and_goes_may_be_long_and_as_old_as_a_client_is_patient():
    discipline = Discipline(10)
    assert discipline.in_force == Limits(10, 400, 1.6)
    stand(discipline, 0, 4)
    assert discipline.in_force == LOOSE
    assert not discipline.tight


def test_no_more_wait_than_are_served_before_they_are_too_old():
    discipline = Discipline(10)
    assert discipline.most(None) == 400
    assert discipline.most(0.01) == 400
    assert discipline.most(0.1) == 160
    assert discipline.most(9.0) == ORDINARY.max_queue
    assert Discipline(10, max_queue=300).most(0.1) == 300  # what is given
    assert Discipline(10, most_queued=300).most(0.001) == 300  # for so many there is room
    assert Discipline(10, most_queued=300).most(0.1) == 160
    assert Discipline(10, most_queued=7).most(0.1) == 7
    assert Discipline(10, math.inf, most_queued=300).most(0.1) == 300
    assert Discipline(10, max_wait=math.inf).most(0.1) == 400


def test_for_how_many_a_server_has_room_bounds_every_queue_and_makes_none_longer():
    assert loose_limits(10, most_queued=100).max_queue == 100
    assert limits(10, most_queued=100).max_queue == 40
    assert limits(10, most_queued=7).max_queue == loose_limits(10, most_queued=7).max_queue == 7
    discipline = Discipline(10, most_queued=400)
    stand(discipline, 0, 5)
    assert discipline.in_force == Limits(10, queue_length(10, 2), 1.0)
    discipline = Discipline(10, most_queued=400)
    stand(discipline, 0, 5, waited=0.1)  # beyond four a slot, though there is room for more
    assert discipline.tight


def test_a_queue_that_comes_and_goes_takes_no_server_out_of_the_rotation():
    assert loose_limits(10).max_wait < DAMPED_PATIENCE
    assert loose_limits(10, client_timeout=1.0).max_wait == 0.8
    assert loose_limits(10, client_timeout=60.0).max_wait == 12.0  # as in an overload


def test_one_that_stands_for_as_long_as_clients_wait_is_as_long_as_the_slots_need():
    discipline = Discipline(10)
    stand(discipline, 0, 5)
    assert discipline.tight
    assert discipline.in_force == Limits(10, queue_length(10, 2), 1.0)


def test_a_place_to_spare_that_nobody_refused_would_have_had_makes_it_loose():
    discipline = Discipline(10)
    stand(discipline, 0, 5)
    discipline.refused(7.0)
    discipline.spare(7.9)
    assert discipline.tight
    discipline.crowded(7.95, 1, 0.0)
    assert discipline.tight
    discipline.spare(8.1)
    assert discipline.in_force == LOOSE


def test_a_short_queue_may_stand_for_ever():
    discipline = Discipline(10)
    stand(discipline, 0, 99, queued=40, waited=1.0)
    assert discipline.in_force == LOOSE


def test_a_refusal_without_a_queue_is_forgotten_at_a_place_to_spare():
    discipline = Discipline(10)
    discipline.refused(0.0)
    discipline.spare(0.0)
    stand(discipline, 1, 99, queued=1, waited=0.0)
    assert not discipline.tight


def test_without_a_limit_of_age_it_is_never_tight():
    discipline = Discipline(10, max_wait=math.inf)
    stand(discipline, 0, 99, queued=999, waited=99.0)
    assert discipline.in_force == Limits(10, 400, math.inf)


@pytest.mark.parametrize("given", [(3, 0.5), (0, 9.0), (30, 9.0)])
def test_what_is_given_bounds_always(given):
    discipline = Discipline(10, *given)
    assert discipline.in_force == Limits(10, *given)
    stand(discipline, 0, 5)
    assert discipline.tight
    assert discipline.in_force.max_queue <= given[0]
    assert discipline.in_force.max_wait <= given[1]


@pytest.mark.parametrize(
    ("slots", "rho", "length"),
    [
        pytest.param(10, 2, 8, id="2 x"),
        pytest.param(10, 10, 3, id="10 x"),
        pytest.param(10, 1.2, 30, id="1.2 x"),
        pytest.param(10, 1, 40, id="as many as go"),
        pytest.param(10, 5000, 2, id="hardly one goes"),
        pytest.param(1, 2, 4, id="one slot"),
    ],
)
def test_as_many_wait_as_keep_the_slots_busy(slots, rho, length):
    assert queue_length(slots, rho) == length


def test_it_goes_by_the_slots_that_there_are():
    discipline = Discipline(10)
    discipline.resize(1)
    assert discipline.in_force == Limits(1, 400, 1.6)
    stand(discipline, 0, 5, arrivals=10)
    assert discipline.in_force == Limits(1, 3, 1.0)
    discipline.resize(10)
    assert discipline.in_force == Limits(10, 3, 1.0)


def test_it_goes_by_what_comes_and_goes_of_late():
    discipline = Discipline(10)
    stand(discipline, 0, 5)
    assert discipline.in_force.max_queue == 8
    stand(discipline, 6, 20, arrivals=10)
    assert discipline.in_force.max_queue == 3


def test_in_a_long_queue_that_is_no_overload_what_was_long_ago_counts_less():
    discipline = Discipline(10)
    stand(discipline, 0, 99, arrivals=100, served=100, queued=9, waited=0.1)
    stand(discipline, 100, 124, arrivals=10, served=1, queued=9, waited=0.1)
    discipline.refused(124.5)
    stand(discipline, 125, 125)
    assert discipline.in_force.max_queue < 10


def test_where_they_come_in_waves_one_waits_for_each_slot_and_then_as_many_as_ordinarily():
    """Between two of them there is a place to spare, though the next is too much at once."""
    discipline = Discipline(10)
    stand(discipline, 0, 5)
    for wave in range(22):
        assert discipline.in_force.max_queue == (8 if wave < 11 else 10)
        now = 6.0 + wave / 10
        discipline.refused(now)
        discipline.spare(now)
        discipline.spare(now)  # nobody has come in between
        discipline.crowded(now, 1, 0.0)
    assert discipline.tight
    assert discipline.in_force == ORDINARY
    stand(discipline, 9, 14)  # what comes and goes says that fewer would do; they leave slots idle
    assert discipline.in_force == ORDINARY
    discipline.spare(20.0)
    stand(discipline, 21, 26)
    assert discipline.in_force.max_queue == 8


def test_clients_that_give_up_together_sooner_than_is_known_leave_no_place_to_spare():
    discipline = Discipline(10)
    for second in range(7):
        assert not discipline.tight or second > 5
        discipline.crowded(float(second), 40, 0.9)
        discipline.refused(second + 0.9)
        discipline.spare(second + 0.9)
    assert discipline.tight


def test_one_that_gives_up_now_and_then_makes_no_overload():
    discipline = Discipline(10)
    for minute in range(9):
        discipline.crowded(60.0 * minute, 40, 0.9)
        discipline.refused(60.0 * minute + 0.9)
        discipline.spare(60.0 * minute + 0.9)
        discipline.spare(60.0 * minute + 9.0)  # or nobody says it any more, until one waits again
        discipline.crowded(60.0 * minute + 10.0, 40, 0.9)
        assert not discipline.tight
        discipline.spare(60.0 * minute + 11.0)
    for minute in range(10, 19):
        discipline.crowded(60.0 * minute, 40, 0.9)
        discipline.refused(60.0 * minute + 0.9)
        discipline.spare(60.0 * minute + 0.9)
        assert not discipline.tight
