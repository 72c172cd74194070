"""How long requests have waited in a proxy whose clock is another. Case script: clock_skew.py."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard import BusyGuard
from wsgi_busyguard.deadlines.clock_skew import ENOUGH_REQUESTS, MOST_PEERS, QueueHeader
from wsgi_busyguard.deadlines.environ import DEADLINE, WAITED

NOW = 1_700_000_000.0


class Server:
    """A server that is idle or not, with clients who give up after five seconds."""

    def __init__(self):
        self.idle = True
        self.header = QueueHeader(lambda: self.idle, 5.0, lambda: NOW)

    def __call__(self, age, peer="10.0.0.1", **headers):
        """Return what a request of this age has waited."""
        environ = {"HTTP_X_REQUEST_START": f"t={NOW - age:.6f}", **headers}
        return self.header.ago(environ, peer)


@pytest.fixture
def server():
    return Server()


def test_what_one_request_has_waited_is_believed(server):
    assert server(2.0) == pytest.approx(2.0)
    assert server(0.5) == pytest.approx(0.5)


def test_an_age_that_all_have_while_the_server_is_idle_is_no_wait(server):
    ages = [server(1.5 + n / 1000) for n in range(ENOUGH_REQUESTS)]
    assert ages[:-1] == pytest.approx([1.5] * (ENOUGH_REQUESTS - 1), abs=0.1)
    assert server(1.5) == pytest.approx(0.0, abs=0.01)
    assert server(2.2) == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("skew", [5.0, 30.0, 300.0, 599.0])
def test_nobody_waits_for_an_idle_server_until_its_client_has_left(server, skew):
    """So that is a clock at once, and the deadlines of all are right."""
    assert server(skew) == 0.0
    assert server(skew + 0.2) == pytest.approx(0.2)


def test_while_the_server_is_not_idle_requests_do_wait_in_the_proxy(server):
    server.idle = False
    assert [server(3.0) for _ in range(10 * ENOUGH_REQUESTS)] == pytest.approx(
        [3.0] * 10 * ENOUGH_REQUESTS
    )
    assert server(20.0) == pytest.approx(20.0)


def test_what_was_learned_is_taken_off_under_load_too(server):
    server(30.0)
    server.idle = False
    assert server(32.0) == pytest.approx(2.0)
    server.idle = True
    assert server(30.01) == pytest.approx(0.01)


def test_a_request_that_is_younger_than_the_offset_shows_that_it_is_too_much(server):
    server(30.5)
    assert server(30.0) == 0.0  # the first one had waited for half a second
    assert server(30.2) == pytest.approx(0.2)


def test_a_clock_that_is_set_right_makes_nobody_old_and_nobody_young(server):
    server(30.0)
    assert server(0.7) == pytest.approx(0.7)
    assert server(0.0) == 0.0
    assert server(0.7) == pytest.approx(0.7)


def test_a_clock_that_is_set_wrong_by_less_than_before_is_known_at_once_under_load(server):
    server(300.0)
    server.idle = False
    assert server(30.0) == 0.0
    assert server(31.0) == pytest.approx(1.0)


def test_a_clock_that_is_set_wrong_is_learned_at_once_or_after_some(server):
    for n in range(ENOUGH_REQUESTS + 1):
        server(n / 1000)
    assert server(40.0) == 0.0
    for _ in range(ENOUGH_REQUESTS):
        server(42.0)
    assert server(42.0) == 0.0


def test_each_proxy_has_a_clock_of_its_own(server):
    """As of four balancers one may not ask a time server."""
    skews = {"10.0.0.1": 0.0, "10.0.0.2": 2.0, "10.0.0.3": 30.0}
    for _, (peer, skew) in itertools.product(range(ENOUGH_REQUESTS), skews.items()):
        server(skew, peer)
    told = [server(skew + 0.3, peer) for peer, skew in skews.items()]
    assert told == pytest.approx([0.3] * 3, abs=0.01)


def test_where_the_address_is_the_clients_there_is_no_end_of_them(server):
    for n in range(MOST_PEERS * 100):
        server(2.0, f"192.0.2.{n}")
    assert len(server.header._offsets) == MOST_PEERS + 1
    assert server(2.5, "198.51.100.1") == pytest.approx(0.5)


def test_who_does_not_say_teaches_nothing(server):
    server(30.0)
    assert server.header.ago({}, "10.0.0.1") == 0.0
    assert server(30.4) == pytest.approx(0.4)


def test_mod_wsgi_has_this_machines_clock(server):
    for _ in range(2 * ENOUGH_REQUESTS):
        assert server(30.0, **{"mod_wsgi.queue_start": NOW - 2.0}) == 2.0


@given(st.lists(st.tuples(st.floats(0, 700), st.booleans(), st.sampled_from("ab"))))
def test_whatever_comes_nobody_has_waited_for_longer_than_it_seems(ages):
    server = Server()
    for age, server.idle, peer in ages:
        assert 0.0 <= server(age, peer) <= age + 0.001


@given(st.floats(0, 500), st.lists(st.tuples(st.floats(0, 4), st.booleans()), min_size=1))
def test_whatever_the_skew_no_client_is_said_to_have_left_an_idle_server(skew, waits):
    server = Server()
    for wait, server.idle in waits:
        waited = server(skew + wait)
        if server.idle:
            assert waited < 5.0


@pytest.mark.parametrize("options", [{"slots": 4}, {"slots": 4, "dry_run": True}, {}])
@pytest.mark.parametrize("skew", [0.9, 1.5, 30.0, 300.0])
def test_an_idle_server_serves_all_and_tells_the_app_what_time_there_is(
    environ, options, skew, caplog
):
    seen = []

    def app(environ, start_response):
        seen.append((environ[WAITED], environ[DEADLINE] - time.monotonic()))
        return [b"served"]

    guard, took = BusyGuard(app, trust_queue_header=True, **options), []
    for _ in range(5 * ENOUGH_REQUESTS):
        began, stamp = time.monotonic(), f"t={time.time() - skew:.6f}"
        assert guard(environ(HTTP_X_REQUEST_START=stamp), lambda *_: None) == [b"served"]
        took.append(time.monotonic() - began)
    assert guard.monitor.state.value == "free"
    assert all(left > 0 for _, left in seen)
    calls = zip(seen[ENOUGH_REQUESTS:], took[ENOUGH_REQUESTS:], strict=True)
    assert all(waited <= own + 0.001 for (waited, _), own in calls)
    assert guard.dry_run is None or not guard.dry_run.refused
