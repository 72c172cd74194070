"""From what was seen to what is told: values in, values out.

Nothing here reads a clock, a process or a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WINDOW = 2.0  # seconds over which goodput is judged
WELL = 0.95
STEP = 0.1


class Timeline(NamedTuple):
    """An act's seconds: before the blip, in it, and after."""

    before: float
    blip: float
    after: float

    @property
    def well_again(self) -> float:
        """When the blip is over."""
        return self.before + self.blip

    @property
    def end(self) -> float:
        """When the last visit arrives."""
        return self.before + self.blip + self.after


@dataclass
class PageVisit:
    """Somebody who wants the home page.

    :ivar arrived: seconds from the beginning of the act.
    :ivar took: seconds until the page came, a second try included; ``None`` if it did not.
    """

    arrived: float
    took: float | None = None


@dataclass
class AskedCheck:
    """A health check: when it was asked, and how long the answer took or has been missing."""

    asked: float
    took: float
    answered: bool = False


class QueuePeak(NamedTuple):
    """The longest queue that one server had in a tenth of a second."""

    at: float
    server: int
    queued: int


class BalancersSeen(NamedTuple):
    """What all balancers say together: requests that wait, servers that are up, of how many."""

    at: float
    waiting: int
    up: int
    of: int


@dataclass
class Record:
    """What was seen of an act."""

    timeline: Timeline
    patience: float
    visits: list[PageVisit] = field(default_factory=list)
    checks: list[AskedCheck] = field(default_factory=list)
    queues: list[QueuePeak] = field(default_factory=list)
    balances: list[BalancersSeen] = field(default_factory=list)
    pages: dict[str, int] = field(default_factory=dict)  # rendered, by whom for
    spent_on_nobody: float = 0.0  # seconds of threads, in calls for visitors who had left
    times_down: int = 0  # servers taken out, counted by each balancer

    def goodput(self, start: float, end: float) -> float:
        """Return the share of the visits that arrived in ``[start, end)`` and got their page."""
        came = [visit for visit in self.visits if start <= visit.arrived < end]
        return share(self._is_good(visit) for visit in came)

    def recovery(self) -> float | None:
        """Return the seconds from the end of the blip until all is well again, for good.

        That is the first moment from which on those who arrive within :data:`WINDOW` get their
        page, and likewise all who arrive from then to the end: 95 % of them, both times. A flash
        of good weather does not count. ``None``: not in this act.
        """
        well_again, _, end = self.timeline.well_again, None, self.timeline.end
        for step in range(math.floor((end - WINDOW - well_again) / STEP) + 1):
            start = well_again + step * STEP
            if self.goodput(start, start + WINDOW) >= WELL and self.goodput(start, end) >= WELL:
                return round(step * STEP, 3)
        return None

    def _is_good(self, visit: PageVisit) -> bool:
        return visit.took is not None and visit.took <= self.patience


class Summary(NamedTuple):
    """An act in figures; times in seconds, goodput as a share of the visits."""

    goodput_before: float
    goodput_during: float
    goodput_after: float
    recovery: float | None
    p99_before: float | None
    p99_after: float | None
    pages_for_checks: int
    pages_for_nobody: int
    calls_for_nobody: float
    longest_queue: int
    slowest_check: float
    checks_unanswered: int
    times_down: int
    visits: int


def summary(record: Record) -> Summary:
    """Return the figures of an act."""
    before, well_again, end = (
        record.timeline.before,
        record.timeline.well_again,
        record.timeline.end,
    )
    came = [(visit.arrived, visit.took) for visit in record.visits if visit.took is not None]
    return Summary(
        goodput_before=record.goodput(0, before),
        goodput_during=record.goodput(before, well_again),
        goodput_after=record.goodput(well_again, end),
        recovery=record.recovery(),
        p99_before=percentile(99, [took for at, took in came if at + took < before]),
        p99_after=percentile(99, [took for at, took in came if at >= well_again]),
        pages_for_checks=record.pages.get("checks", 0),
        # A page that is under way when the act ends may have come but not been counted.
        pages_for_nobody=max(0, record.pages.get("people", 0) - len(came)),
        calls_for_nobody=record.spent_on_nobody,
        longest_queue=max((queue.queued for queue in record.queues), default=0),
        slowest_check=max((check.took for check in record.checks), default=0.0),
        checks_unanswered=sum(not check.answered for check in record.checks),
        times_down=record.times_down,
        visits=len(record.visits),
    )


def share(good: Iterable[bool]) -> float:
    """Return the share of the true ones; 1.0 where there are none at all."""
    seen = list(good)
    return sum(seen) / len(seen) if seen else 1.0


def percentile(rank: float, values: Sequence[float]) -> float | None:
    """Return the smallest value that ``rank`` per cent of the values do not exceed."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(rank / 100 * len(ordered)) - 1)]
