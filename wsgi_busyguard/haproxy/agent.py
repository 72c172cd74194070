"""How many requests each HAProxy may have here at once, and the line that says so.

Busy is not down. A server that is called down gets nothing, and when all are, HAProxy answers 503
and queues nothing; what moves the queue into HAProxy, where any free server takes from it, is
``maxconn``. So that is all that the agent ever answers, and never less than 1.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

from ..counters import watched
from ..policy import share

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..counters import Watched
    from ..load import Load
    from ..load_report import BalancerFigures

# HAProxy's default agent-inter, taken for the period of a balancer until it is known.
DEFAULT_PERIOD_SECONDS = 2.0

# So many gaps between its questions have to be known for it.
KNOWN_GAPS = 4

# A balancer that has missed this many of its own periods is gone, and its share the others'.
MISSED_PERIODS = 5

# More balancers than this do not share one server; names beyond are somebody's mistake or game,
# and must not cost memory.
MOST_BALANCERS = 64

# Behind one address there may be several, as on one machine or behind NAT. More names than this
# from there do not count: each takes a share from all others, and anybody can make up names.
MOST_OF_ADDRESS = 4


class Balancer(NamedTuple):
    """A balancer that asks: when it last did, and how many seconds it lately left between.

    :param host: the address from which it asked last, where that is known.
    """

    last: float
    gaps: tuple[float, ...] = ()
    host: str | None = None

    @property
    def period(self) -> float:
        """The longest of the last gaps: one that has this server in two backends asks in pairs."""
        return max(
            self.gaps if len(self.gaps) == KNOWN_GAPS else (DEFAULT_PERIOD_SECONDS, *self.gaps)
        )

    def live(self, now: float) -> bool:
        """Return whether it can be expected to ask again."""
        return now - self.last <= MISSED_PERIODS * self.period

    def asks(self, now: float, host: str | None = None) -> Balancer:
        """Return it after it has asked at ``now``."""
        gaps = (*self.gaps, now - self.last)[-KNOWN_GAPS:] if self.live(now) else ()
        return Balancer(now, gaps, host)


def next_limit(limit: int, shared_out: int, load: Load) -> int:
    """Return how many requests all balancers together may have here.

    Less by what is queued, if that is more than their shares are beyond the limit (a share is
    rounded up): then other traffic fills the server. More by what is idle.

    :param limit: what it was.
    :param shared_out: what the shares came to.
    """
    others = load.queued - max(0, shared_out - limit)
    if others > 0:
        return max(1, limit - others)
    return min(load.capacity or 1, limit + max(0, load.idle or 0))


class Limit:
    """How many requests all balancers together may have here, from one look to the next.

    Changed at most once in the time that a request takes: sooner, the effect of the last change
    cannot be seen, and the limit would swing. But how deep a cut has to be shows only as the queue
    grows; until then it gets as deep as the longest queue says. For one thread at a time.
    """

    def __init__(self) -> None:
        self._limit: int | None = None
        self._before = 0  # what it was until the last change
        self._changed = -math.inf

    def share(self, load: Load, balancers: int, now: float) -> int | None:
        """Return what to tell each balancer; ``None`` where the capacity is not known."""
        capacity = load.capacity
        if capacity is None:
            return None
        if self._limit is None or self._limit > capacity:
            self._limit = self._before = capacity
        settled = now - self._changed >= (load.service or 0.0)
        start = self._limit if settled else min(self._before, capacity)
        limit = next_limit(start, share(start, balancers) * balancers, load)
        if settled and limit != self._limit:
            self._before, self._limit, self._changed = start, limit, now
        elif self._limit <= start and limit < self._limit:  # not so soon after a rise
            self._limit = limit
        return share(self._limit, balancers)


class Agent:
    """Writes the line that answers HAProxy's ``agent-check``.

    For one thread: each agent port has an agent of its own.

    :param monitor: knows the load.
    :param clock: monotonic seconds.
    """

    def __init__(self, monitor: Watched, clock: Callable[[], float] = time.monotonic) -> None:
        self._monitor = watched(monitor)
        self._clock = clock
        self._balancers: dict[str, Balancer] = {}
        self._limit = Limit()

    def line_for(self, name: str, beside: int = 0) -> bytes:
        """Return the line for ``name``, which is a balancer only if that is noted.

        :param beside: how many more share with this one, as far as this answer goes.

        Both words each time: what a line does not say stays as it was. Never ``drain``, ``ready``
        or ``maint``, which are the operator's flags, nor ``down``, which would outlive us.
        """
        now = self._clock()
        load = self._monitor.load
        if load.capacity is None:
            return b"up\n"
        if self._monitor.draining:
            return b"up maxconn:1\n"
        others = [n for n, b in self._balancers.items() if b.live(now) and n != name]
        balancers = min(len(others) + 1 + beside, MOST_BALANCERS)
        return b"up maxconn:%d\n" % (self._limit.share(load, balancers, now) or 1)

    def balancers(self) -> list[BalancerFigures]:
        """Return the balancers that ask, with how many seconds ago, and their periods.

        The only method for any thread.
        """
        now = self._clock()
        known = self._balancers  # never changed, but replaced
        return [
            {"name": name, "asked": round(now - b.last, 3), "period": round(b.period, 3)}
            for name, b in known.items()
            if b.live(now)
        ]

    def knows(self, name: str | None) -> bool:
        """Return whether the balancer called ``name`` can be expected to ask again."""
        known = self._balancers.get(name or "")
        return known is not None and known.live(self._clock())

    def note(self, name: str, host: str | None = None) -> None:
        """Note that the balancer called ``name`` asks now, unless enough others of ``host`` do."""
        now = self._clock()
        known = self._balancers.get(name, Balancer(-math.inf))
        live = {n: b for n, b in self._balancers.items() if b.live(now) and n != name}
        neighbours = sum(b.host == host for b in live.values()) if host is not None else 0
        if len(live) < MOST_BALANCERS and neighbours < MOST_OF_ADDRESS:
            live[name] = known.asks(now, host)
        self._balancers = live
