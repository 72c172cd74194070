"""What is refused when a thread of the server's picks it up, in seconds of a clock of its own."""

from __future__ import annotations

import math
import os
import random
from collections import Counter, deque
from heapq import heappop, heappush
from itertools import count

import pytest

from wsgi_busyguard import Load
from wsgi_busyguard.gate.pickup import LOOK_SECONDS, PickUp
from wsgi_busyguard.load import smoothed
from wsgi_busyguard.responses import Responses

REFUSING_TAKES = 0.001


class Server:
    """A server of some threads in front of a queue, each request of which takes ``service``.

    :ivar outcomes: of each request ``"served"`` or ``"refused"``, by how long that took.
    """

    def __init__(self, clock, threads=4, service=0.1, **options):
        self.clock, self.threads, self.service = clock, threads, service
        self.instead = []
        if options.pop("dry", False):
            options["instead"] = self.instead.append
        self.pick_up = PickUp(Responses().refused, clock=clock, **options)
        self.pick_up.read = self.read
        self.queue, self.inside, self.mean = deque(), 0, None
        self.headers = {}  # of the last answer with each status
        self.outcomes = {"served": [], "refused": []}
        self._events, self._order = [], count()
        self._looks_at = clock()

    def read(self):
        return Load(len(self.queue), self.inside, self.threads, 0.0, self.mean)

    def at(self, seconds, event, *arguments):
        heappush(self._events, (seconds, next(self._order), event, arguments))

    def comes(self):
        self.queue.append(self.clock())
        self._start()

    def run(self, until):
        while self._events and self._events[0][0] <= until:
            self.clock.now, _, event, arguments = heappop(self._events)
            event(*arguments)

    def poisson(self, load, seconds, seed=2013, batch=1):
        dice, at = random.Random(seed), self.clock()
        rate = load * self.threads / self.service / batch
        until = at + seconds
        while (at := at + dice.expovariate(rate)) < until:
            for _ in range(batch):
                self.at(at, self.comes)
        self.run(until)

    def _start(self):
        while self.queue and self.inside < self.threads:
            came = self.queue.popleft()
            self.inside += 1
            if self.clock() >= self._looks_at:  # as CrowdWatch has it
                self._looks_at = self.clock() + 0.25
                self.pick_up.look()
            refused = self.pick_up.crowded and self.status() != "200 OK"
            takes = REFUSING_TAKES if refused else self.service
            self.at(self.clock() + takes, self._ends, came, takes, refused)

    def _ends(self, came, takes, refused):
        self.inside -= 1
        if not refused:
            self.mean = smoothed(self.mean, takes)
        self.outcomes["refused" if refused else "served"].append(self.clock() - came)
        self._start()

    def status(self):
        """Answer one request, which this thread has just picked up."""
        said = []

        def app(environ, start_response):
            start_response("200 OK", [])
            return []

        def start_response(status, headers, exc_info=None):
            said.append(status)
            self.headers[status] = dict(headers)

        b"".join(self.pick_up.around(app)({"REQUEST_METHOD": "GET"}, start_response))
        return said[0]


def share(server, outcome="refused"):
    counts = {name: len(took) for name, took in server.outcomes.items()}
    return counts[outcome] / sum(counts.values())


@pytest.mark.parametrize("timeout", [1.0, 5.0])
@pytest.mark.parametrize("load", [2, 5])
def test_an_overload_is_refused_and_the_rest_served_as_on_an_idle_server(clock, load, timeout):
    server = Server(clock, client_timeout=timeout)
    server.poisson(load, 2 * timeout)  # until it is seen to be one
    server.outcomes = {"served": [], "refused": []}
    server.poisson(load, 20)
    served = sorted(server.outcomes["served"])
    assert len(served) >= 0.9 * 20 * 4 / 0.1
    assert served[len(served) // 2] <= 2 * 0.1
    assert served[-1] < timeout
    assert max(server.outcomes["refused"]) < timeout
    assert server.headers["503 Service Unavailable"]["Busyguard-Refused"] == "queue-age"
    assert server.pick_up.counts().refused[1] >= len(server.outcomes["refused"])


@pytest.mark.parametrize("threads", [4, 8])
@pytest.mark.parametrize("load", [0.7, 0.8])
def test_nobody_is_refused_where_all_can_be_served(clock, threads, load):
    server = Server(clock, threads)
    server.poisson(load, 120)
    assert len(server.outcomes["served"]) > 1000
    assert share(server) == 0
    counts = server.pick_up.counts()
    assert counts is None or sum(counts.refused) == 0


def test_a_page_of_one_and_six_requests_is_served(clock):
    server = Server(clock, 4, 0.3, client_timeout=5.0)
    for page in range(20):
        server.at(clock() + 2 * page, server.comes)
        for _ in range(6):
            server.at(clock() + 2 * page + 0.3, server.comes)
    server.run(clock() + 60)
    assert {name: len(took) for name, took in server.outcomes.items()} == {
        "served": 140,
        "refused": 0,
    }


def test_twenty_at_once_on_four_threads_are_served(clock):
    server = Server(clock, 4, 0.3, client_timeout=5.0)
    for burst in range(10):
        for _ in range(20):
            server.at(clock() + 3 * burst, server.comes)
    server.run(clock() + 60)
    assert (len(server.outcomes["served"]), share(server)) == (200, 0)


def test_batches_of_twice_the_threads_are_served(clock):
    server = Server(clock, 10, 0.1, client_timeout=5.0)
    server.poisson(0.7, 30, batch=20)
    assert share(server) == 0


def test_who_could_not_be_served_in_time_is_refused_before_it_is_known_to_be_an_overload(clock):
    server = Server(clock, 1, 1.0, client_timeout=5.0)
    server.mean = 1.0
    for _ in range(10):
        server.at(clock(), server.comes)
    server.run(clock() + 60)
    assert len(server.outcomes["refused"]) == 6  # two behind one take 80 % of 2 s
    assert max(server.outcomes["served"]) <= 4.01


def test_after_an_overload_all_are_served_again(clock):
    server = Server(clock)
    server.poisson(5, 20)
    assert share(server) > 0.5
    server.run(clock() + 10)
    server.outcomes = {"served": [], "refused": []}
    server.poisson(0.7, 60)
    assert share(server) == 0


def test_max_wait_bounds_a_burst_as_well(clock):
    server = Server(clock, 4, 0.1, max_wait=0.2)
    server.mean = 0.1
    for _ in range(40):
        server.at(clock(), server.comes)
    server.run(clock() + 60)
    assert len(server.outcomes["refused"]) == 19  # of 28 that wait at the second look, with 8 left
    assert max(server.outcomes["served"]) <= 0.61


def test_with_no_limit_it_is_off():
    assert PickUp(Responses().refused, max_wait=math.inf).is_off
    assert not PickUp(Responses().refused).is_off


def test_a_dry_run_counts_as_many_and_refuses_nobody(clock):
    server, dry = Server(clock), Server(clock, dry=True)
    server.poisson(2, 20)
    clock.now = 1000.0
    dry.poisson(2, 20)
    assert dry.outcomes["refused"] == []
    assert sum(dry.pick_up.counts().refused) == 0
    wanted = len(server.outcomes["refused"])
    assert 0.9 * wanted <= sum(dry.instead) <= 1.1 * wanted


def test_the_queue_is_read_once_in_a_hundredth_of_a_second(clock):
    server = Server(clock)
    reads = Counter()

    def read():
        reads["all"] += 1
        return Load(100, 4, 4, 0.0, 0.1)

    server.pick_up.read = read
    for _ in range(50):
        server.status()
    assert reads["all"] == 1
    clock.now += LOOK_SECONDS
    server.status()
    assert reads["all"] == 2


def test_no_more_are_refused_than_were_too_many_at_the_look(clock):
    server = Server(clock, max_wait=1.0)
    server.pick_up.read = lambda: Load(47, 4, 4, 0.0, 0.1)
    statuses = Counter(server.status() for _ in range(50))
    assert statuses["200 OK"] == 50 - 7  # forty behind it take a second


BROKEN = {
    "raises": lambda: 1 / 0,
    "does not know": lambda: None,
    "knows no capacity": lambda: Load(99, 9, None, 9.0, 9.0),
    "is no load": lambda: 3,
    "knows no service time": lambda: Load(999, 4, 4),
}


@pytest.mark.parametrize("read", BROKEN.values(), ids=BROKEN)
def test_a_queue_that_cannot_be_read_is_served(clock, read):
    server = Server(clock)
    server.pick_up.read = lambda: Load(100, 4, 4, 0.0, 0.5)
    assert server.status() != "200 OK"
    server.pick_up.read = read
    for _ in range(20):
        clock.now += LOOK_SECONDS
        assert server.status() == "200 OK"


def test_a_reading_that_fails_is_told_to_whoever_says_so(clock):
    told = []
    server = Server(clock, unreadable=lambda: told.append(1))
    for read in (lambda: Load(0, 0, 4), BROKEN["raises"], lambda: Load(0, 0, 4)):
        server.pick_up.read = read
        clock.now += LOOK_SECONDS
        server.status()
    assert told == [1]


def test_threads_that_a_server_adds_count_from_the_next_look_on(clock):
    server = Server(clock, max_wait=1.0)
    server.pick_up.read = lambda: Load(60, 4, 4, 0.0, 0.1)
    assert server.status() != "200 OK"
    server.pick_up.read = lambda: Load(60, 8, 8, 0.0, 0.1)
    clock.now += LOOK_SECONDS
    assert server.status() == "200 OK"


def test_who_counts_elsewhere_is_told_of_each(clock):
    told = []
    server = Server(clock, max_wait=1.0, count=lambda: told.append(1))
    server.pick_up.read = lambda: Load(45, 4, 4, 0.0, 0.1)
    refused = sum(server.status() != "200 OK" for _ in range(50))
    assert refused == len(told) == 5
    assert server.pick_up.counts()[:3] == (45, 45, (0, 5, 0))


def test_a_child_knows_of_no_queue(clock):
    server = Server(clock, max_wait=1.0)
    server.pick_up.read = lambda: Load(60, 4, 4, 0.0, 0.1)
    server.pick_up.look()
    assert server.pick_up.crowded
    pid = os.fork()
    if pid == 0:
        server.pick_up.read = None
        os._exit(server.pick_up.crowded or server.status() != "200 OK")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
