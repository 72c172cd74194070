"""The model of fleet.py: servers with the library's own gate and monitor, balancers, visitors.

Nothing here knows what is asked of it.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
from collections import OrderedDict
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

import simpy

from wsgi_busyguard import Gate, Monitor
from wsgi_busyguard.gate import Slot, Ticket

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOTS, SERVICE, GOOD = 4, 0.1, 1.0
EXPIRE_EVERY = 0.25  # as the loops of Twisted and gunicorn do
PROBE_GROUPS = 100
START_SECONDS = 2.0  # in which a server that is restarted is not there
CLOCK_BEGINS = 1000.0  # clocks do not begin at zero

ROUND_ROBIN, LEAST, RANDOM_OF_TWO = BALANCES = ("round robin", "least connections", "random of two")
STEADY, SYNCHRONISED, SLOW, RESTART, BLIP = SCENARIOS = (
    *("steady", "synchronised probes", "one slow", "rolling restart", "blip"),
)


class Rules(NamedTuple):
    """By what a balancer takes a server out of the rotation and back.

    :ivar panic: below this share of servers that are up all of them get requests.
    :ivar shared: whether one prober tells all balancers, and a server that is stopped is out at
        once, as Kubernetes does with endpoints.
    """

    name: str
    every: float
    fall: int
    rise: int
    panic: float = 0.0
    shared: bool = False


RULES = (
    Rules("HAProxy", 2.0, 3, 2),
    Rules("Envoy", 2.0, 1, 1, panic=0.5),
    Rules("ALB", 5.0, 2, 5, panic=1e-9),  # all, if none is up
    Rules("Kubernetes", 10.0, 3, 1, shared=True),
)


class Times(NamedTuple):
    """Seconds: from when on is counted, in which something is wrong, and when it is over."""

    warm: float = 5.0
    begin: float = 15.0
    end: float = 35.0
    over: float = 60.0


class Cell(NamedTuple):
    """One run.

    :ivar ready: the policy of the checks; no checks if empty.
    :ivar limits: of the gate.
    :ivar load: arrivals, as a share of what all servers can do.
    :ivar factor: so much slower are those that are.
    :ivar patience: of the policy.
    """

    servers: int = 3
    balancers: int = 4
    balance: str = ROUND_ROBIN
    retry: bool = True
    rules: Rules = RULES[0]
    load: float = 0.8
    scenario: str = STEADY
    ready: str = "damped"
    limits: tuple[tuple[str, float], ...] = ()
    factor: float = 4.0
    patience: float = 2.0
    seed: int = 1
    times: Times = Times()

    @property
    def turn(self) -> float:
        """Seconds that one group of servers takes in a rolling restart."""
        return self.leave + START_SECONDS + self.rules.every * self.rules.rise + 1

    @property
    def leave(self) -> float:
        """Seconds for which a server that is to stop says so and serves on."""
        return 1.0 if self.rules.shared else self.rules.every * self.rules.fall + 1

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        begin, over = self.times.begin, self.times.over
        return begin + 3 * self.turn + 5 if self.scenario == RESTART else over


class Seen(NamedTuple):
    """What came of a cell.

    :ivar good: of those that came, the share answered within a second.
    :ivar during: of those that came while something was wrong.
    :ivar changes: how often a balancer took a server out or back, in a minute: the mean of all
        pairs, and the most of any.
    """

    good: float
    during: float
    refused: float
    changes: float
    most_changes: float
    asked: int


class Request(Ticket):
    """One request on its way."""

    __slots__ = ("at", "balancer", "server", "tries", "work")

    def __init__(self, at: float, work: float, balancer: Balancer, tries: int) -> None:
        super().__init__(go_on)
        self.at, self.work, self.balancer, self.tries = at, work, balancer, tries
        self.server: Server | None = None


def go_on(ticket: Ticket) -> None:
    """Go on with a request that has waited."""
    assert isinstance(ticket, Request)
    assert ticket.server is not None
    ticket.server.settle(ticket)


class Server:
    """A gate with a monitor, and an app that takes its time."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.fleet, self.number = fleet, number
        self.factor, self.there = 1.0, True
        self.start()
        fleet.env.process(self._expire())

    def start(self) -> None:
        """Begin with a gate of its own, as a new process."""
        clock = self.fleet.now
        self.gate = Gate(SLOTS, **dict(self.fleet.cell.limits), clock=clock)
        self.monitor = Monitor(self.gate, clock=clock)

    def is_ready(self) -> bool:
        """Return what a check is told."""
        cell = self.fleet.cell
        return self.there and self.monitor.check(cell.ready, cell.patience).ready

    def take(self, request: Request) -> None:
        """Take a request in, or refuse it."""
        request.server, request.outcome = self, None
        if not self.there:
            request.balancer.refused(request)
            return
        outcome = self.gate.offer(request)
        if outcome is not None:
            request.outcome = outcome
            self.settle(request)

    def settle(self, request: Request) -> None:
        """Run one that has a slot; let the balancer know of one that is refused."""
        slot, request.outcome = request.outcome, None
        if not isinstance(slot, Slot):
            request.balancer.refused(request)
            return
        gate = self.gate

        def end(_: Any) -> None:
            gate.leave(slot)
            request.balancer.answered(request)

        self.fleet.env.timeout(request.work * self.factor).callbacks.append(end)

    def _expire(self) -> Iterator[Any]:
        yield self.fleet.env.timeout(self.fleet.dice.random() * EXPIRE_EVERY)
        while True:
            if self.gate.queued:
                self.gate.expire()
            yield self.fleet.env.timeout(EXPIRE_EVERY)


class Health:
    """What a prober knows of the servers."""

    def __init__(self, fleet: Fleet) -> None:
        count = fleet.cell.servers
        self.fleet, self.rules = fleet, fleet.cell.rules
        self.up = [True] * count
        self.many_up = count
        self.in_a_row = [0] * count
        self.changes = [0] * count
        self.told: list[Balancer] = []
        if fleet.cell.ready:
            fleet.env.process(self._probe())

    @property
    def panics(self) -> bool:
        """Whether so few are up that all are taken for up."""
        return self.many_up < self.rules.panic * len(self.up)

    def _probe(self) -> Iterator[Any]:
        """Probe the servers one after the other, each every so many seconds.

        Of many, some at a time: what a probe hears does not depend on a few milliseconds.
        """
        fleet, every = self.fleet, self.rules.every
        together = fleet.cell.scenario == SYNCHRONISED
        yield fleet.env.timeout(0 if together else fleet.dice.random() * every)
        groups = 1 if together else min(PROBE_GROUPS, len(fleet.servers))
        while True:
            for group in range(groups):
                for server in fleet.servers[group::groups]:
                    self._note(server.number, server.is_ready())
                yield fleet.env.timeout(every / groups)

    def _note(self, number: int, ready: bool) -> None:
        if ready is self.up[number]:
            self.in_a_row[number] = 0
            return
        self.in_a_row[number] += 1
        if self.in_a_row[number] >= (self.rules.rise if ready else self.rules.fall):
            self.turn(number, ready)

    def turn(self, number: int, up: bool) -> None:
        """Take a server out, or back."""
        if self.up[number] is up:
            return
        panicked = self.panics
        self.up[number], self.in_a_row[number] = up, 0
        self.many_up += 1 if up else -1
        if self.fleet.env.now >= self.fleet.cell.times.warm:
            self.changes[number] += 1
        for balancer in self.told:
            if self.panics is panicked:
                balancer.note(number)
            else:
                balancer.sort()


class Balancer:
    """Sends each request to one of the servers that it takes for up."""

    def __init__(self, fleet: Fleet, health: Health) -> None:
        self.fleet, self.health = fleet, health
        self.servers = fleet.servers
        self.outstanding = [0] * len(self.servers)
        self._next = fleet.dice.randrange(len(self.servers))
        # The numbers of the servers that may get requests, by how many each has; in each the one
        # first that has had so many for the longest.
        self._having: list[OrderedDict[int, None]] = []
        health.told.append(self)
        self._choose = {
            ROUND_ROBIN: self._in_turn,
            LEAST: self._least,
            RANDOM_OF_TWO: self._of_two,
        }[fleet.cell.balance]
        self.sort()

    def note(self, number: int) -> None:
        """Have a server get requests from now on, or no more."""
        if not self._having:
            return
        numbers = self._having[self.outstanding[number]]
        if self._may(number):
            numbers[number] = None
        else:
            numbers.pop(number, None)

    def sort(self) -> None:
        """Begin anew with those that may get requests, at the server that happens to be first."""
        if self.fleet.cell.balance != LEAST:
            return
        self._having = [OrderedDict() for _ in range(max(self.outstanding) + 2)]
        first, count = self._next, len(self.servers)
        for number in (*range(first, count), *range(first)):
            if self._may(number):
                self._having[self.outstanding[number]][number] = None

    def send(self, request: Request, but: int | None = None) -> None:
        """Send it to a server, not to the one that has just refused it if there is another."""
        number = self._choose(but)
        if number is None:
            self.fleet.end(request, good=False, refused=True)
            return
        self._count(number, 1)
        self.servers[number].take(request)

    def refused(self, request: Request) -> None:
        """Try once more elsewhere, if that is allowed."""
        assert request.server is not None
        self._count(request.server.number, -1)
        if request.tries:
            request.tries -= 1
            self.send(request, but=request.server.number)
        else:
            self.fleet.end(request, good=False, refused=True)

    def answered(self, request: Request) -> None:
        """Pass an answer on."""
        assert request.server is not None
        self._count(request.server.number, -1)
        self.fleet.end(request, good=self.fleet.env.now - request.at <= GOOD, refused=False)

    def _count(self, number: int, more: int) -> None:
        many = self.outstanding[number]
        self.outstanding[number] = now = many + more
        if self._having and number in self._having[many]:
            del self._having[many][number]
            if now == len(self._having):
                self._having.append(OrderedDict())
            self._having[now][number] = None

    def _may(self, number: int) -> bool:
        return self.health.up[number] or self.health.panics

    def _in_turn(self, but: int | None) -> int | None:
        count = len(self.servers)
        for _ in range(count):
            number = self._next
            self._next = (number + 1) % count
            if self._may(number) and (number != but or self.health.many_up <= 1):
                return number
        return None

    def _of_two(self, but: int | None) -> int | None:
        chosen = [n for n in (self._any(but), self._any(but)) if n is not None]
        return min(chosen, key=self.outstanding.__getitem__, default=None)

    def _any(self, but: int | None) -> int | None:
        count = len(self.servers)
        for _ in range(20):
            number = self.fleet.dice.randrange(count)
            if self._may(number) and (number != but or count == 1):
                return number
        return next((n for n in range(count) if self._may(n)), None)

    def _least(self, but: int | None) -> int | None:
        """Return the one with the fewest."""
        for number in itertools.chain.from_iterable(self._having):
            if number != but or self.health.many_up <= 1:
                return number
        return None


class Fleet:
    """All of it, and what is seen of it."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.env, self.dice = cell, simpy.Environment(), random.Random(cell.seed)
        env = self.env
        self.now = lambda: CLOCK_BEGINS + env._now  # the property takes as long again
        self.servers = [Server(self, number) for number in range(cell.servers)]
        many = 1 if cell.rules.shared else cell.balancers
        self.healths = [Health(self) for _ in range(many)]
        self.balancers = [Balancer(self, self.healths[n % many]) for n in range(cell.balancers)]
        self.asked = self.good = self.refused = self.asked_during = self.good_during = 0

    def play(self) -> Seen:
        """Play it and return what was seen."""
        cell = self.cell
        self.env.process(self._come())
        if cell.scenario in (SLOW, BLIP):
            self.env.process(
                self._slow(self.servers[:1] if cell.scenario == SLOW else self.servers)
            )
        elif cell.scenario == RESTART:
            self.env.process(self._restart())
        self.env.run(cell.seconds + GOOD)  # until the last of them cannot be good any more
        minutes = max(1.0, (cell.seconds - cell.times.warm) / 60)
        changes = [count for health in self.healths for count in health.changes]
        return Seen(
            self.good / max(1, self.asked),
            self.good_during / max(1, self.asked_during),
            self.refused / max(1, self.asked),
            mean(changes) / minutes,
            max(changes) / minutes,
            self.asked,
        )

    def end(self, request: Request, good: bool, refused: bool) -> None:
        """Count one that has its answer."""
        times = self.cell.times
        if request.at >= times.warm:
            self.good += good
            self.refused += refused
            self.good_during += good and times.begin <= request.at < times.end

    def _come(self) -> Iterator[Any]:
        cell, dice = self.cell, random.Random(self.cell.seed + 1000)  # the same for each policy
        rate, per_second, tries = (
            cell.load * cell.servers * SLOTS / SERVICE,
            1 / SERVICE,
            cell.retry,
        )
        (warm, begin, end, _), seconds = cell.times, cell.seconds
        env, random_time = self.env, dice.expovariate
        for balancer in itertools.cycle(self.balancers):
            yield env.timeout(random_time(rate))
            now = env.now
            if now >= seconds:
                return
            self.asked += now >= warm
            self.asked_during += begin <= now < end
            balancer.send(Request(now, random_time(per_second), balancer, int(tries)))

    def _slow(self, servers: list[Server]) -> Iterator[Any]:
        yield self.env.timeout(self.cell.times.begin)
        for server in servers:
            server.factor = self.cell.factor
        yield self.env.timeout(self.cell.times.end - self.cell.times.begin)
        for server in servers:
            server.factor = 1.0

    def _restart(self) -> Iterator[Any]:
        yield self.env.timeout(self.cell.times.begin)
        third = math.ceil(len(self.servers) / 3)
        for first in range(0, len(self.servers), third):
            group = self.servers[first : first + third]
            for server in group:
                server.monitor.drain()
                if self.cell.rules.shared:
                    self.healths[0].turn(server.number, up=False)
            yield self.env.timeout(self.cell.leave)
            for server in group:
                server.there = False
            yield self.env.timeout(START_SECONDS)
            for server in group:
                server.start()
                server.there = True
            yield self.env.timeout(self.cell.turn - self.cell.leave - START_SECONDS)


def play(cell: Cell) -> Seen:
    """Play a cell. What the servers are made of is not gone through for garbage meanwhile."""
    fleet = Fleet(cell)
    gc.collect()
    gc.disable()
    try:
        return fleet.play()
    finally:
        gc.enable()
