"""What ``/load`` of a check port says; the keys are explained in docs/metrics.rst."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence


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

    bounds: Sequence[float]
    counts: Sequence[int]
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
    """What is in force, and in how many processes."""

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


class StateFigures(LoadFigures):
    """What has always been said."""

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
    stacks: Any  # StackFigures of the dashboard
