"""What the last minutes were like: a look a second, and what the looks tell together.

Values only. Whoever looks brings the time.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..counters import BOUNDS, BUCKETS, REASONS, KeepsHistory

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..counters import Watched
    from ..load_report import LoadReport, TimeFigures

# So many looks are kept, one a second: five minutes.
KEPT_LOOKS = 300

# Two looks that are further apart than this tell nothing of what was between them.
MOST_APART_SECONDS = 10.0


class Look(NamedTuple):
    """What is kept of one look.

    :param at: when, in seconds of any clock, always the same one.
    :param asked: how many checks and balancers have asked so far; ``None``, like the other counts,
        where nobody counts.
    :param refused: by reason, in the order of ``counters.REASONS``.
    :param balancers: the names of those that ask the agent; ``None`` where that was not looked at.
    :param service: how many requests took how long in the app so far, by bucket: see
        ``counters.BOUNDS``. ``waits``: how many had waited how long.
    """

    at: float
    queued: int
    active: int
    capacity: int | None
    delay: float | None
    served: int | None = None
    refused: tuple[int, ...] | None = None
    dropped: int | None = None
    asked: int | None = None
    balancers: frozenset[str] | None = None
    service: tuple[int, ...] | None = None
    waits: tuple[int, ...] | None = None


class RecentCounts(NamedTuple):
    """How much was counted within some time.

    :param seconds: how long that was.
    :param refused: by reason.
    """

    seconds: float
    served: int
    refused: dict[str, int]
    dropped: int
    asked: int


class LookHistory:
    """The last looks, the oldest first. For one thread."""

    def __init__(self, looks: Iterable[Look] = ()) -> None:
        self.looks: deque[Look] = deque(looks, KEPT_LOOKS)

    def asking(self, names: Iterable[str]) -> None:
        """Remember with the last look which balancers ask the agent."""
        if self.looks:
            self.looks[-1] = self.looks[-1]._replace(balancers=frozenset(names))

    def keep(self, look: Look) -> None:
        """Remember a look; after a pause, or when its host was started anew, no earlier one."""
        if self.looks and not _goes_on(self.looks[-1], look):
            self.looks.clear()
        self.looks.append(look)


def _goes_on(before: Look, after: Look) -> bool:
    if not 0 <= after.at - before.at <= MOST_APART_SECONDS:
        return False
    return before.served is None or after.served is None or before.served <= after.served


def look_at(monitor: Watched, at: float) -> Look:
    """Return a look at what a check port speaks for; less work than all of its figures."""
    load = monitor.load
    look = Look(at, load.queued, load.active, load.capacity, load.delay)
    if not isinstance(monitor, KeepsHistory):
        return look
    counts, look = monitor.counts(), look._replace(asked=sum(monitor.asked()))
    if counts is None:
        return look
    monitor.refusals.look(at, sum(counts.refused))
    look = look._replace(served=counts.served, refused=counts.refused, dropped=counts.dropped)
    return look._replace(service=counts.service, waits=counts.waits)


def look_in(shown: LoadReport, at: float) -> Look:
    """Return the look in what ``/load`` shows."""
    checks = shown.get("checks")
    asked = None if checks is None else sum(check["count"] for check in checks)
    look = Look(at, shown["queued"], shown["active"], shown["capacity"], shown["delay"])
    look = look._replace(asked=asked, balancers=names_in(shown))
    counts = shown.get("counts")
    if not counts:
        return look
    refused = tuple(counts["refused"].get(reason.value, 0) for reason in REASONS)
    look = look._replace(served=counts["served"], refused=refused, dropped=counts["dropped"])
    took, waited = counts.get("service_time"), counts.get("queue_time")
    return look._replace(service=_buckets(took), waits=_buckets(waited))


def _buckets(times: TimeFigures | None) -> tuple[int, ...] | None:
    """Return a histogram's buckets, where they are those that are known here: versions differ."""
    return tuple(times["counts"]) if times and len(times["counts"]) == BUCKETS else None


def lengths(
    looks: Sequence[Look], key: Literal["service", "waits"]
) -> tuple[float | None, float | None]:
    """Return within how many seconds half of the requests were done, and 99 of 100 of them.

    Those of the looks, five minutes at most; ``None`` where there were none.
    """
    known: list[tuple[int, ...]] = [each for look in looks if (each := getattr(look, key))]
    if len(known) < 2:
        return None, None
    more = [max(0, after - before) for before, after in zip(known[0], known[-1], strict=True)]
    return quantile(more, 0.5), quantile(more, 0.99)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Return the time within which this share was done, as Prometheus' histogram_quantile() does.

    Within a bucket they are taken to lie evenly; what is above all bounds is infinite.
    """
    rank, before = share * sum(counts), 0
    if not rank:
        return None
    for count, low, high in zip(counts, (0.0, *BOUNDS), BOUNDS, strict=False):
        if count and before + count >= rank:
            return low + (high - low) * (rank - before) / count
        before += count
    return inf


def names_in(shown: LoadReport) -> frozenset[str] | None:
    """Return the names of the balancers that ask, if there is an agent for them to ask."""
    balancers = shown.get("balancers")
    return None if balancers is None else frozenset(one["name"] for one in balancers)


def gone(looks: Sequence[Look]) -> list[tuple[str, float]]:
    """Return the balancers that no longer ask, with the seconds since; who went last, first.

    As far as the looks were at balancers: the page looks at them while somebody has it open.
    """
    last = next((look for look in reversed(looks) if look.balancers is not None), None)
    if last is None or last.balancers is None:
        return []
    seen = {name: look.at for look in looks for name in look.balancers or ()}
    lost = [(name, looks[-1].at - at) for name, at in seen.items() if name not in last.balancers]
    return sorted(lost, key=lambda one: (one[1], one[0]))


def stuck_for(looks: Sequence[Look], share: float = 1.0) -> float:
    """Return the seconds for which none came out of the app, with this share of the threads in it.

    If it was all of them, so long at least has each of them been in there.
    """
    last = looks[-1] if looks else None
    if last is None or last.served is None or not last.capacity:
        return 0.0
    since = last.at
    for look in reversed(looks):
        if look.served != last.served or not look.capacity:
            break
        if look.active < share * look.capacity:
            break
        since = look.at
    return last.at - since


def lately(looks: Sequence[Look], seconds: float = 60.0) -> RecentCounts | None:
    """Return what was counted in the last ``seconds``; ``None`` before there were two looks."""
    if len(looks) < 2:
        return None
    last = looks[-1]
    first = next(look for look in looks if look.at >= last.at - seconds)
    if first is last:
        return None
    before, after = (look.refused or (0,) * len(REASONS) for look in (first, last))
    return RecentCounts(
        last.at - first.at,
        _more(first.served, last.served),
        {why.value: _more(a, b) for why, a, b in zip(REASONS, before, after, strict=True)},
        _more(first.dropped, last.dropped),
        _more(first.asked, last.asked),
    )


def rates(looks: Sequence[Look]) -> tuple[list[float | None], list[float | None]]:
    """Return for each look how many a second were served, and refused, since the one before."""
    served: list[float | None] = [None] * len(looks)
    refused: list[float | None] = [None] * len(looks)
    for n in range(1, len(looks)):
        before, after = looks[n - 1], looks[n]
        gone = after.at - before.at
        if before.served is not None and after.served is not None and gone > 0:
            served[n] = (after.served - before.served) / gone
            refused[n] = max(0, sum(after.refused or ()) - sum(before.refused or ())) / gone
    return served, refused


def _more(before: int | None, after: int | None) -> int:
    return max(0, (after or 0) - (before or 0))
