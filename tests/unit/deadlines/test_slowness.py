from __future__ import annotations

import pytest

from wsgi_busyguard.deadlines.slowness import (
    PROBE_LAST_SECONDS,
    Slowness,
    after_probe,
    is_timeout,
    shut,
    too_slow,
)


def ended(service, now, took, bad=False):
    return service.ended("a call", now, took, bad, limit=5, jitter=1.0)


@pytest.mark.parametrize(
    ("good", "bad", "slow"),
    [(0, 0, False), (0, 2, False), (0, 3, True), (1, 2, True), (2, 2, True), (3, 2, False)],
)
def test_it_is_slow_when_half_of_at_least_three_calls_were(good, bad, slow):
    assert too_slow(good, bad, late=0, limit=5) is slow


@pytest.mark.parametrize(
    ("late", "limit", "slow"),
    [
        *((0, 1, False), (1, 1, True), (1, 2, False), (2, 2, True), (2, 5, False), (3, 5, True)),
        *((4, 10, False), (5, 10, True), (99, float("inf"), False)),
    ],
)
def test_it_is_slow_when_half_of_the_places_are_held_by_calls_that_are(late, limit, slow):
    """However many were good before: those of 10 s ago say nothing of a service that hangs now."""
    assert too_slow(good=1000, bad=0, late=late, limit=limit) is slow


def test_it_is_probed_after_1_2_4_seconds_and_so_on_up_to_30():
    state, pauses, now = shut(0.0, 1.0), [], 0.0
    for _ in range(7):
        pauses.append(state.probe_at - now)
        now = state.probe_at
        state = after_probe(state, now, good=False, jitter=1.0)
    assert pauses == [1, 2, 4, 8, 16, 30, PROBE_LAST_SECONDS]
    assert state.since == 0.0


def test_the_jitter_is_of_the_pause_and_does_not_add_up():
    state = after_probe(shut(0.0, 1.2), 1.2, good=False, jitter=1.2)
    assert (state.pause, state.probe_at) == (2.0, pytest.approx(1.2 + 2.4))


def test_two_good_probes_in_a_row_open_it_and_the_second_goes_at_once():
    first = after_probe(shut(0.0, 1.0), 1.0, good=True, jitter=1.0)
    assert (first.good, first.probe_at) == (1, 1.0)
    assert after_probe(first, 1.1, good=True, jitter=1.0) is None


def test_a_bad_probe_after_a_good_one_begins_the_count_anew():
    first = after_probe(shut(0.0, 1.0), 1.0, good=True, jitter=1.0)
    second = after_probe(first, 1.1, good=False, jitter=1.0)
    assert (second.good, second.pause) == (0, 2.0)


def test_calls_count_for_ten_seconds():
    service = Slowness()
    assert ended(service, 0.0, 0.1) is None
    assert [ended(service, at, 3.0, bad=True) for at in (0.0, 10.5, 10.6)] == [None] * 3
    assert "3 of 3 calls" in ended(service, 10.7, 3.0, bad=True)
    assert service.shut.since == 10.7


def test_what_was_begun_before_it_shut_says_nothing_afterwards():
    service = Slowness()
    service.shut = shut(0.0, 1.0)
    assert ended(service, 0.5, 5.0, bad=True) is None
    assert not service.bad


def test_slow_is_half_of_the_timeout_unless_it_is_given():
    service = Slowness()
    assert service.slow == 2.5  # of the default client timeout
    service.client_timeout = 3.0
    assert service.slow == 1.5
    service.expect(1.0)
    assert service.slow == 0.5
    service.given = 0.2
    assert service.slow == 0.2


def test_what_is_usual_follows_the_good_calls_and_is_never_more_than_slow():
    service = Slowness()
    assert service.usual == service.slow
    ended(service, 0.0, 0.1)
    assert service.usual == pytest.approx(0.3)
    ended(service, 0.0, 60.0)
    assert service.usual == service.slow


class ReadTimeout(Exception):
    pass


def wrapped():
    try:
        try:
            raise ReadTimeout
        except ReadTimeout as error:
            raise KeyError("rates") from error
    except KeyError as error:
        return error


@pytest.mark.parametrize(
    ("error", "cut"),
    [
        *((None, False), (OSError(), False), (ConnectionRefusedError(), False)),
        *((TimeoutError(), True), (ReadTimeout(), True), (wrapped(), True)),
    ],
)
def test_a_timeout_is_known_by_its_name_or_that_of_its_cause(error, cut):
    assert is_timeout(error) is cut
