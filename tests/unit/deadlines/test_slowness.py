from __future__ import annotations

import pytest

from wsgi_busyguard.deadlines.slowness import (
    PROBE_LAST_SECONDS,
    Running,
    Slowness,
    after_probe,
    all_hang,
    fill_their_part,
    is_timeout,
    shut,
    too_late,
    too_slow,
)


def ended(service, now, took, bad=False):
    return service.ended("a call", now, took, bad, jitter=1.0)


@pytest.mark.parametrize(
    ("good", "bad", "slow"),
    [(0, 0, False), (0, 2, False), (0, 3, True), (1, 2, True), (2, 2, True), (3, 2, False)],
)
def test_it_is_slow_when_half_of_at_least_three_calls_were(good, bad, slow):
    assert too_slow(good, bad) is slow


@pytest.mark.parametrize(
    ("late", "limit", "slow"),
    [
        *((0, 1, False), (1, 1, True), (1, 2, False), (2, 2, True), (2, 5, False), (3, 5, True)),
        *((4, 10, False), (5, 10, True), (99, float("inf"), False)),
    ],
)
def test_it_is_slow_when_half_of_the_places_are_held_by_calls_that_are(late, limit, slow):
    """However many were good before: those of 10 s ago say nothing of a service that hangs now."""
    assert too_late(late, limit) is slow


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
    assert service.usual(0.0) == service.slow
    ended(service, 0.0, 0.1)
    assert service.usual(0.0) == pytest.approx(0.3)
    ended(service, 0.0, 60.0)
    assert service.usual(0.0) == service.slow


def test_a_call_is_usual_that_is_no_longer_than_one_of_late():
    """One in ten takes long, say: when it runs, nothing hangs."""
    service = Slowness()
    ended(service, 0.0, 0.5)
    for number in range(50):
        ended(service, 9.0 + 0.02 * number, 0.1)
    assert service.usual(10.0) == 0.5
    ended(service, 11.0, 0.1)
    assert service.usual(19.0) == 0.5
    ended(service, 21.0, 0.1)
    assert service.usual(21.0) == pytest.approx(0.3, rel=0.01)


def test_nor_is_a_long_one_that_was_long_ago():
    service = Slowness()
    ended(service, 0.0, 0.5)
    service.mean = 0.02  # calls that end so soon are told to the mean alone
    assert service.usual(19.9) == 0.5
    assert service.usual(20.0) == pytest.approx(0.06)


def running(*ages, quiet=0.0, mean=0.1, usual=0.3, **more):
    return Running(ages, quiet, mean, usual, **more)


@pytest.mark.parametrize(
    ("service", "hangs"),
    [
        (running(), False),
        (running(0.29), False),
        (running(0.3), True),
        (running(0.01, suspect=True), True),
        (running(suspect=True), True),
        # Three that have been there since the last one ended: 3 x 0.14 are 4.2 of the mean.
        (running(0.2, 0.2, 0.2, quiet=0.14), True),
        (running(0.2, 0.2, 0.2, quiet=0.13), False),
        # As many that all came at once, where each takes as long as the other.
        (running(*[0.14] * 8, quiet=9.0), False),
        (running(*[0.16] * 8, quiet=9.0), True),
    ],
)
def test_it_may_be_hanging_when_a_call_is_late_or_none_ends_that_should_have(service, hangs):
    assert service.hangs is hangs


def test_all_may_be_hanging_when_none_of_any_ends():
    assert all_hang([running(0.12), running(0.2, 0.2, 0.12, quiet=0.12)]) is False  # one has ended
    assert all_hang([running(0.18, quiet=9.0), running(0.2, 0.2, 0.2, quiet=0.18)]) is True
    assert all_hang([running(quiet=9.0), running()]) is False
    assert all_hang([]) is False


WELL, HANGS = running(0.1, 0.1), running(0.4, 0.4, 0.4)


@pytest.mark.parametrize(
    ("own", "others", "full"),
    [
        (WELL, [WELL, WELL], False),
        (WELL, [HANGS, HANGS], False),
        (HANGS, [WELL, WELL], False),
        (HANGS, [HANGS], True),
        (HANGS, [running(0.4, 0.4)], False),  # 5 of 5
    ],
)
def test_what_may_be_hanging_has_half_of_the_slots_and_what_is_well_more(own, others, full):
    assert fill_their_part(own, [own, *others], 5) is full


def test_a_service_whose_last_call_was_slow_is_suspect_until_one_is_not():
    service = Slowness()
    ended(service, 1.0, 0.1)
    assert service.running(2.0, []).suspect is False
    ended(service, 3.0, 3.0, bad=True)
    assert service.running(4.0, []).suspect is True
    ended(service, 5.0, 0.1)
    assert service.running(6.0, [5.5, 3.0]) == Running((0.5, 3.0), 1.0, 0.1, service.usual(6.0), 1)


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
