"""Two guarded gunicorns behind two HAProxies, all of which are killed, stopped, ended and replaced.

``pytest tests/chaos --seconds 300 --seed 7`` goes on for five minutes each, with the same dice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
from support.chaos import (
    WRONG_AT_MOST,
    Asking,
    Visitors,
    dice,
    flat,
    held,
    longest_wrong,
    sent,
    stopped,
    told,
)
from support.client import PATIENCE, check, eventually
from support.haproxies import ROOMY, ROOMY_TIMEOUTS, Balancer
from support.losses import LOG_FORMAT

from wsgi_busyguard.haproxy import Server, Setting, configuration

SITES, WORKERS, THREADS, BALANCERS, VISITORS = 2, 2, 2, 2, 4

SECONDS = 20


class Chaos:
    """Does one thing after the other to the sites and to what stands in front of them.

    :ivar killed: which processes were killed, and when.
    :ivar ended: the HAProxies that have ended, by their ports.
    """

    def __init__(self, sites, balancers, started, dice):
        self.killed = []
        self.balancers = balancers
        self.ended = []
        self._sites, self._started, self._dice = sites, started, dice

    def step(self):
        steps = [
            *(self.kill_balancer, self.end_balancer, self.stop_balancer, self.hang_up),
            *(self.reload_balancer, self.retire_balancer),
            *(self.kill_worker, self.stop_worker, self.stop_master, self.reload_site),
        ]
        with contextlib.suppress(ProcessLookupError):
            self._dice.choice(steps)()
        time.sleep(self._dice.uniform(0.05, 0.5))

    def _balancer(self):
        return self._dice.choice(self.balancers)

    def _again(self, old, *more):
        self.ended.append(old)
        self.balancers[self.balancers.index(old)] = self._started(old.again, *more)

    def _end_balancer(self, number):
        balancer = self._balancer()
        self.killed.append(sent(balancer.popen.pid, number))
        balancer.ended()
        self._again(balancer)

    def kill_balancer(self):
        self._end_balancer(signal.SIGKILL)

    def end_balancer(self):
        """End it at once: to HAProxy SIGTERM says so."""
        self._end_balancer(signal.SIGTERM)

    def retire_balancer(self):
        """Have it end what it has, and then go."""
        balancer = self._balancer()
        balancer.signal(signal.SIGUSR1)
        balancer.ended()
        self._again(balancer)

    def reload_balancer(self):
        """Have another one come, and tell this one to go."""
        balancer = self._balancer()
        self._again(balancer, "-sf", str(balancer.popen.pid))
        balancer.ended()

    def stop_balancer(self):
        stopped(self._balancer().popen.pid)

    def hang_up(self):
        """Have it write its state into its log."""
        self._balancer().signal(signal.SIGHUP)

    def _worker(self):
        workers = self._dice.choice(self._sites).workers
        if not workers:
            raise ProcessLookupError
        return self._dice.choice(workers)

    def kill_worker(self):
        self.killed.append(sent(self._worker(), signal.SIGKILL))

    def stop_worker(self):
        stopped(self._worker())

    def stop_master(self):
        stopped(self._dice.choice(self._sites).popen.pid)

    def reload_site(self):
        os.kill(self._dice.choice(self._sites).popen.pid, signal.SIGHUP)


@pytest.fixture
def sites(gunicorn, accepts, conf):
    size = ("-w", str(WORKERS), "--threads", str(THREADS), conf(accepts.conf))
    sites = [gunicorn(*size, **ROOMY) for _ in range(SITES)]
    for site in sites:
        site.all_ready(WORKERS)
    return sites


@pytest.fixture
def balancers(sites, started, tmp_path):
    """HAProxies with the printed configuration; visitors may wait there for some seconds."""
    known = [
        Server(f"web{n}", f"127.0.0.1:{site.port}", f"127.0.0.1:{site.agent}")
        for n, site in enumerate(sites, 1)
    ]
    slots = WORKERS * THREADS

    def text(number):
        def written(bind, stats):
            setting = Setting(slots, BALANCERS, f"lb{number}", bind, stats, ("nbthread 1",))
            printed = configuration(known, setting).replace("option httplog", LOG_FORMAT)
            return ROOMY_TIMEOUTS.sub(r"\1 10s", printed)

        return written

    balancers = [started(Balancer, tmp_path, n, text(n)) for n in range(BALANCERS)]
    for balancer in balancers:
        eventually(balancer.answers)
        eventually(lambda it=balancer: all(s.startswith("UP") for s in it.statuses()))
    return balancers


@pytest.mark.timeout(0)  # every wait in it ends
def test_whatever_happens_to_balancers_and_servers_the_site_goes_on(
    sites, balancers, started, accepts, pytestconfig
):
    chaos = Chaos(sites, balancers, started, dice(pytestconfig))
    before = [held(site.popen.pid) for site in sites]
    end = time.monotonic() + (pytestconfig.getoption("--seconds") or SECONDS)
    with contextlib.ExitStack() as all_the_while:
        visitors = [
            all_the_while.enter_context(Visitors(VISITORS, balancer.port)) for balancer in balancers
        ]
        checks = [
            all_the_while.enter_context(
                Asking(1, 0.05, lambda port=site.check: check(port, PATIENCE))
            )
            for site in sites
        ]
        while time.monotonic() < end:
            chaos.step()
        for some in visitors:
            some.came()
    for some in visitors:
        there = [one for one in [*chaos.ended, *chaos.balancers] if one.port == some.site]
        assert accepts.lost_behind(there, some, chaos.killed) == []
    everybody = [answers for some in visitors for answers in some.answers]
    for asking in checks:
        assert {asked.text for asked in told(asking)} <= {"free", "busy"}
        seconds, what = longest_wrong(told(asking), everybody)
        assert seconds <= WRONG_AT_MOST, what
    for site, held_before in zip(sites, before, strict=True):
        site.at_rest()
        eventually(lambda site=site: check(site.check).status == check(site.port).status == 200)
        flat(site.popen.pid, held_before)
    for balancer in chaos.balancers:
        eventually(lambda it=balancer: all(s.startswith("UP") for s in it.statuses()))
