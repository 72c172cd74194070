from __future__ import annotations

import math

import pytest

from wsgi_busyguard import Load, State
from wsgi_busyguard.policy import (
    CLIENT_TIMEOUT,
    DAMPED_PATIENCE,
    Limits,
    flag,
    is_ready,
    known_policy,
    limits,
    seconds,
    whole,
)

FREE, BUSY = State.FREE, State.BUSY


def queue(delay):
    """A load of which a request arriving now would wait ``delay`` seconds."""
    return Load(4, 4, 4, waited=0.0, service=delay)


@pytest.mark.parametrize("ready", ["exact", "damped", "always"])
def test_every_policy_is_ready_while_free(ready):
    assert is_ready(ready, FREE, queue(99.0), 2.0, was_ready=False)


@pytest.mark.parametrize("delay", [0.0, 1.9, 99.0])
def test_exact_is_never_ready_while_busy(delay):
    assert not is_ready("exact", BUSY, queue(delay), 2.0, was_ready=True)


@pytest.mark.parametrize("delay", [0.0, 1.9, 99.0])
def test_always_is_ready_while_busy(delay):
    assert is_ready("always", BUSY, queue(delay), 2.0, was_ready=False)


@pytest.mark.parametrize(
    ("delay", "was_ready", "ready"),
    [
        pytest.param(1.99, True, True, id="gone before the balancer asks again"),
        pytest.param(2.0, True, False, id="a whole patience"),
        pytest.param(1.0, False, False, id="half a patience is not below half"),
        pytest.param(0.99, False, True, id="below half"),
        pytest.param(1.5, True, True, id="in between: as it was, ready"),
        pytest.param(1.5, False, False, id="in between: as it was, not ready"),
    ],
)
def test_damped_leaves_at_patience_and_returns_below_half_of_it(delay, was_ready, ready):
    assert is_ready("damped", BUSY, queue(delay), 2.0, was_ready) is ready


@pytest.mark.parametrize(("still", "ready"), [(0.0, True), (1.99, True), (2.0, False)])
def test_where_no_service_time_is_known_damped_goes_by_how_long_nobody_got_a_thread(still, ready):
    load = Load(1, 4, 4, waited=still, service=None)
    assert is_ready("damped", BUSY, load, 2.0, was_ready=True) is ready
    assert is_ready("damped", BUSY, load._replace(waited=0.0, lag=still), 2.0, True) is ready
    assert not is_ready("exact", BUSY, load, 2.0, was_ready=True)


def test_patience_is_the_default_inter_of_haproxy():
    assert DAMPED_PATIENCE == 2.0


@pytest.mark.parametrize("ready", ["exact", "damped", "always"])
def test_a_known_policy_is_itself(ready):
    assert known_policy(ready) == ready


@pytest.mark.parametrize("ready", ["Exact", "", None, 1, ["exact"]])
def test_an_unknown_policy_is_told_the_three(ready):
    with pytest.raises(ValueError, match="ready must be one of") as caught:
        known_policy(ready)
    assert str(caught.value) == f"ready must be one of exact, damped, always, not {ready!r}"


def test_a_gate_queues_four_for_each_slot_and_a_fifth_of_the_clients_timeout():
    assert limits(8) == Limits(slots=8, max_queue=32, max_wait=0.2 * CLIENT_TIMEOUT)
    assert limits(8).max_wait == 1.0
    assert limits(1, client_timeout=10).max_wait == 2.0


def test_limits_that_are_given_are_kept():
    assert limits(2, 0, 7, 1) == Limits(2, 0, 7)


def test_infinity_turns_a_limit_off():
    assert limits(2, math.inf, math.inf) == Limits(2, math.inf, math.inf)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"slots": 0}, ValueError, "slots must be at least 1, not 0"),
        ({"slots": -1}, ValueError, "slots must be at least 1, not -1"),
        ({"slots": 1.5}, TypeError, "slots must be a whole number, not 1.5"),
        ({"slots": "8"}, TypeError, "slots must be a whole number, not '8'"),
        ({"slots": True}, TypeError, "slots must be a whole number, not True"),
        ({"slots": math.inf}, TypeError, "slots must be a whole number, not inf"),
        ({"slots": 1, "max_queue": -1}, ValueError, "max_queue must be at least 0, not -1"),
        ({"slots": 1, "max_queue": 0.5}, TypeError, "max_queue must be a whole number, not 0.5"),
        ({"slots": 1, "max_wait": 0}, ValueError, "max_wait must be more than 0 seconds, not 0"),
        (
            {"slots": 1, "max_wait": math.nan},
            ValueError,
            "max_wait must be more than 0 seconds, not nan",
        ),
        (
            {"slots": 1, "max_wait": "1"},
            TypeError,
            "max_wait must be a number of seconds, not '1'",
        ),
        (
            {"slots": 1, "client_timeout": "5"},
            TypeError,
            "client_timeout must be a number of seconds, not '5'",
        ),
        (
            {"slots": 1, "max_wait": 1.0, "client_timeout": -5},
            ValueError,
            "client_timeout must be more than 0 seconds, not -5",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_limits_say_what_was_expected_and_what_came(arguments, error, words):
    with pytest.raises(error) as caught:
        limits(**arguments)
    assert str(caught.value) == words


def test_a_right_value_comes_back():
    assert whole("n", 3, least=3) == 3
    assert seconds("s", 0.5) == 0.5
    assert flag("f", False) is False


@pytest.mark.parametrize("value", ["no", 0, None])
def test_a_flag_is_true_or_false_and_nothing_that_only_counts_as_that(value):
    with pytest.raises(TypeError) as caught:
        flag("f", value)
    assert str(caught.value) == f"f must be True or False, not {value!r}"
