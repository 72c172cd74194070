"""The report that ``/load`` of a check port is; its keys are explained in docs/metrics.rst.

Only its form: the modules that know the figures fill it in, and metrics/report.py puts it together.
The page, ``busyguard top`` and the metrics read it.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypedDict


class LoadFigures(TypedDict):
    """A load, times in seconds."""

    queued: int
    active: int
    capacity: int | None
    delay: float | None
    idle: int | None
    waited: float
    service: float | None
    lag: float


LoadKey = Literal["queued", "active", "capacity", "delay", "idle", "waited", "service", "lag"]


class ProcessFigures(LoadFigures):
    """One process of a host."""

    pid: int | str
    slot: int
    state: str
    beat: float | None
    admitted: int | None
    served: int | None
    refused: int | None
    dropped: int | None


class TimeFigures(TypedDict):
    """How many took how long, by bucket; ``total`` is the sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class CountFigures(TypedDict):
    """What has been counted."""

    admitted: int
    served: int
    refused: dict[str, int]
    dropped: int
    service_time: TimeFigures
    queue_time: TimeFigures


class ChangeFigures(LoadFigures):
    """A change of state."""

    state: str
    at: float
    lasted: float | None


class TransitionFigures(TypedDict):
    """How often each state was entered."""

    busy: int
    free: int


class CheckFigures(TypedDict):
    """How many checks got the same answer."""

    policy: str
    answer: str
    ready: bool
    count: int


class BalancerFigures(TypedDict):
    """A balancer that asks the agent port."""

    name: str
    asked: float
    period: float


class BulkheadFigures(TypedDict):
    """A bulkhead, of one process or of all together."""

    name: str
    inside: int
    at_most: int | None
    oldest: float
    shut_for: float | None
    made: int
    slow: int
    refused: int


class LimitFigures(TypedDict):
    """A guard's limits, as ``load.GuardLimits`` has them, and in how many processes they hold."""

    processes: int
    acts: str
    slots: int | None
    at_most: int | None
    max_queue: float | None
    max_wait: float | None
    client_timeout: float
    ready: str
    patience: float
    origins: dict[str, str]
    why: str


class LineFigures(TypedDict):
    """A line in which threads are that have a request."""

    threads: int
    at: str
    oldest: float | None


class StackFigures(TypedDict):
    """What holds the slots of this process, as ``/load`` shows it."""

    threads: int
    complete: bool
    lines: list[LineFigures]
    why: str | None


class StateFigures(LoadFigures):
    """What the report has always had."""

    version: int
    at: float
    state: str
    ready: bool


class LoadReport(StateFigures, total=False):
    """All of it, of a host or of one process."""

    utilisation: float | None
    host: str
    port: str
    app: str | None
    release: str
    since: float | None
    alive: bool | None
    reads: str
    limits: list[LimitFigures]
    counts: CountFigures | None
    transitions: TransitionFigures
    busy_seconds: float
    changes: list[ChangeFigures]
    checks: list[CheckFigures]
    balancers: list[BalancerFigures]
    bulkheads: list[BulkheadFigures]
    processes: list[ProcessFigures]
    stacks: StackFigures


class KnowsBalancers(Protocol):
    """An agent: knows which balancers ask it."""

    def balancers(self) -> list[BalancerFigures]:
        """Return the balancers that ask, with how many seconds ago, and their periods."""


def bulkhead_text(figures: BulkheadFigures) -> str:
    """Return how a bulkhead is, as text: ``rates: 5 of 5 in calls for up to 4.8 s``."""
    most, since = figures["at_most"], figures["shut_for"]
    many = f"{figures['inside']} of {most}" if most is not None else f"{figures['inside']}"
    text = f"{figures['name']}: {many} in calls"
    if figures["inside"]:
        text += f" for up to {figures['oldest']:.1f} s"
    return text if since is None else f"{text}, shut for {since:.0f} s"


def short(value: float) -> str:
    """Return a figure for a line of text: three digits, thousandths at most, and no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{round(value, 3):.3g}"
