"""What HAProxy is told: how many requests it may have here at once.

Busy is not down. A server that is called down gets nothing, and when all are, HAProxy answers 503
and queues nothing; what moves the queue into HAProxy, where any free server takes from it, is
``maxconn``. So that is all that is ever said, and never less than 1.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from .load import Load
    from .monitor import Monitor

# HAProxy's default agent-inter, taken for the period of a balancer until it is known.
PERIOD = 2.0

# So many gaps between its questions have to be known for it.
GAPS = 4

# A balancer that has missed this many of its own periods is gone, and its share the others'.
MISSED = 5

# More balancers than this do not share one server; names beyond are somebody's mistake or game,
# and must not cost memory.
MOST_BALANCERS = 64


class Balancer(NamedTuple):
    """A balancer that asks: when it last did, and how many seconds it lately left between."""

    last: float
    gaps: tuple[float, ...] = ()

    @property
    def period(self) -> float:
        """The longest of the last gaps: one that has this server in two backends asks in pairs."""
        return max(self.gaps if len(self.gaps) == GAPS else (PERIOD, *self.gaps))

    def live(self, now: float) -> bool:
        """Return whether it can be expected to ask again."""
        return now - self.last <= MISSED * self.period

    def asks(self, now: float) -> Balancer:
        """Return it after it has asked at ``now``."""
        if not self.live(now):
            return Balancer(now)
        return Balancer(now, (*self.gaps, now - self.last)[-GAPS:])


def share(limit: int, balancers: int) -> int:
    """Return how many requests each balancer may have here, so that it is ``limit`` together."""
    return max(1, math.ceil(limit / max(1, balancers)))


def next_limit(limit: int, told: int, load: Load) -> int:
    """Return how many requests all balancers together may have here.

    Less by what is queued, if that is more than they were told beyond the limit (a share is
    rounded up): then other traffic fills the server. More by what is idle.

    :param limit: what it was.
    :param told: what the shares came to.
    """
    others = load.queued - max(0, told - limit)
    if others > 0:
        return max(1, limit - others)
    return min(load.capacity or 1, limit + max(0, load.idle or 0))


class Agent:
    """Writes the line that answers HAProxy's ``agent-check``.

    For one thread: each agent port has an agent of its own.

    :param monitor: knows the load.
    :param clock: monotonic seconds.
    """

    def __init__(self, monitor: Monitor, clock: Callable[[], float] = time.monotonic) -> None:
        self._monitor = monitor
        self._clock = clock
        self._balancers: dict[str, Balancer] = {}
        self._limit: int | None = None
        self._changed = -math.inf

    def line(self, name: str) -> bytes:
        """Return the line for the balancer called ``name``, which asks now.

        Both words each time: what a line does not say stays as it was. Never ``drain``, ``ready``
        or ``maint``, which are the operator's flags, nor ``down``, which would outlive us.
        """
        now = self._clock()
        load = self._monitor.load
        balancers = self._count(name, now)
        if load.capacity is None:
            return b"up\n"
        if self._monitor.draining:
            return b"up maxconn:1\n"
        limit = self._limited(load, load.capacity, balancers, now)
        return b"up maxconn:%d\n" % share(limit, balancers)

    def _count(self, name: str, now: float) -> int:
        """Note that ``name`` asks, and return how many balancers there are."""
        known = self._balancers.pop(name, None)
        self._balancers = {n: b for n, b in self._balancers.items() if b.live(now)}
        if len(self._balancers) < MOST_BALANCERS:
            self._balancers[name] = Balancer(now) if known is None else known.asks(now)
        return len(self._balancers)

    def _limited(self, load: Load, capacity: int, balancers: int, now: float) -> int:
        """Return the limit for all, changed at most once in the time that a request takes.

        Sooner, the effect of the last change cannot be seen, and the limit would swing.
        """
        if self._limit is None or self._limit > capacity:
            self._limit = capacity
        elif now - self._changed >= (load.service or 0.0):
            told = share(self._limit, balancers) * balancers
            limit = next_limit(self._limit, told, load)
            if limit != self._limit:
                self._limit, self._changed = limit, now
        return self._limit
