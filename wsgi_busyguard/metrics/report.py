"""The one look that reads all figures of a host; ``/load`` of the check port is its JSON.

``/load?watch`` sends it once a second, as server-sent events, each ``data: {...}``. That is all
that a page or ``busyguard top`` needs; what the keys mean stands in ``docs/metrics.rst``. Within
the process of the port :func:`look` returns the very same dictionary. Keys are only ever added; a
figure that nobody knows is ``None``, and ``counts`` is where nothing is counted (a guard that is
no gate). Counters never go down while their host lives, so a rate is the difference of two looks.
Nothing here is done for a request.
"""

from __future__ import annotations

import os
import sys
import time
from socket import gethostname
from typing import TYPE_CHECKING, cast

from ..board.bulkheads import together
from ..board.row import HasRows
from ..board.watcher import Watcher
from ..bulkhead import report
from ..counters import BOUNDS, CHECKS, REASONS, SECOND, Counters, KeepsHistory
from ..gate.limits_in_force import limit_figures
from ..monitor import Monitor, ReadsSeveral
from ..policy import DAMPED, DAMPED_PATIENCE

if TYPE_CHECKING:
    from ..board.row import Row
    from ..counters import Change, Watched
    from ..load import Load
    from ..load_report import (
        BulkheadFigures,
        ChangeFigures,
        CountFigures,
        KnowsBalancers,
        LoadFigures,
        LoadReport,
        ProcessFigures,
        StateFigures,
        TimeFigures,
    )

REPORT_VERSION = 1


def look(
    monitor: Watched,
    agent: KnowsBalancers | None = None,
    ready: str = DAMPED,
    patience: float = DAMPED_PATIENCE,
) -> LoadReport:
    """Return every figure, as ``/load`` shows them.

    :param monitor: a :class:`~wsgi_busyguard.Monitor`, or what watches several processes.
    :param agent: knows the balancers that ask, if anybody does.
    :param ready: the policy that ``ready`` follows; ``patience`` is for it.
    """
    verdict = monitor.check(ready, patience, count=False)
    state: StateFigures = {
        "version": REPORT_VERSION,
        "at": round(time.time(), 3),
        "state": verdict.word,
        "ready": verdict.ready,
        **of_load(verdict.load),
    }
    shown = cast("LoadReport", state)  # the rest is added as far as it is known
    # The package itself stands above this: it imports the middleware.
    release = sys.modules[__name__.partition(".")[0]].__version__
    shown["host"], shown["release"] = gethostname(), str(release)
    if isinstance(monitor, Monitor | Watcher):
        shown["app"], shown["since"] = monitor.app, monitor.since
    if isinstance(monitor, Monitor):
        shown["reads"] = repr(monitor.adapter)
    _look_back(monitor, shown)
    shown["utilisation"] = _utilisation(monitor, shown, verdict.load)
    if agent is not None:
        shown["balancers"] = agent.balancers()
    _each_process(monitor, shown, verdict.load)
    return shown


def _utilisation(monitor: Watched, shown: LoadReport, load: Load) -> float | None:
    """Return how much of the capacity is asked for: what is there, and what was refused lately.

    A request that is refused would have been in the app for a service time (Little's law), so an
    overload shows as what it is, however short the guard keeps the queue.
    """
    if not load.capacity:
        return None
    refused, counts = 0.0, shown.get("counts")
    if counts and isinstance(monitor, KeepsHistory):
        rate = monitor.refusals.look(time.monotonic(), sum(counts["refused"].values()))
        refused = rate * (load.service or 0.0)
    return round((load.active + load.queued + refused) / load.capacity, 3)


def _each_process(monitor: Watched, shown: LoadReport, load: Load) -> None:
    """Show a row for each process, of a board or of this one alone, and what is in force there."""
    shared = monitor.shared if isinstance(monitor, ReadsSeveral) else None
    several = monitor if isinstance(monitor, HasRows) else shared
    if isinstance(several, HasRows):
        rows = several.rows()
        shown["processes"] = [_of_row(row) for row in rows]
        shown["limits"] = limit_figures(row.limits for row in rows if row.state == "ready")
        _look_outside(together(row.bulkheads for row in rows), shown)
        return
    shown["processes"] = _row_of(monitor, shown, load)
    _look_outside(report(), shown)
    if isinstance(monitor, Monitor) and monitor.limits is not None:
        shown["limits"] = limit_figures([monitor.limits()])


def _look_outside(bulkheads: list[BulkheadFigures], shown: LoadReport) -> None:
    if bulkheads:
        shown["bulkheads"] = bulkheads


def _row_of(monitor: Watched, shown: LoadReport, load: Load) -> list[ProcessFigures]:
    counts = shown.get("counts")
    return [
        {
            "pid": os.getpid(),
            "slot": 0,
            "state": "stopping" if monitor.draining else "ready",
            **of_load(load),
            "beat": None,
            "admitted": counts and counts["admitted"],
            "served": counts and counts["served"],
            "refused": counts and sum(counts["refused"].values()),
            "dropped": counts and counts["dropped"],
        }
    ]


def of_load(load: Load) -> LoadFigures:
    """Return the figures of a load, times in seconds."""
    delay = load.delay
    return {
        "queued": load.queued,
        "active": load.active,
        "capacity": load.capacity,
        "delay": None if delay is None else round(delay, 3),
        "idle": load.idle,
        "waited": load.waited,
        "service": load.service,
        "lag": load.lag,
    }


def _look_back(monitor: Watched, shown: LoadReport) -> None:
    if not isinstance(monitor, KeepsHistory):
        return
    shown["counts"] = _of_counts(monitor.counts())
    changes = monitor.changes()
    shown["transitions"] = {"busy": changes.to_busy, "free": changes.to_free}
    shown["busy_seconds"] = round(changes.busy_seconds, 3)
    shown["changes"] = [_of_change(change) for change in changes.recent]
    shown["checks"] = [
        {"policy": policy, "answer": answer, "ready": ready, "count": count}
        for (policy, answer, ready), count in zip(CHECKS, monitor.asked(), strict=True)
    ]


def _of_counts(counts: Counters | None) -> CountFigures | None:
    if counts is None:
        return None
    reasons = [reason.value for reason in REASONS]
    return {
        "admitted": counts.admitted,
        "served": counts.served,
        "refused": dict(zip(reasons, counts.refused, strict=True)),
        "dropped": counts.dropped,
        "service_time": _of_times(counts.service, counts.service_ns),
        "queue_time": _of_times(counts.waits, counts.waits_ns),
    }


def _of_times(counts: tuple[int, ...], total_ns: int) -> TimeFigures:
    return {"bounds": BOUNDS, "counts": counts, "total": total_ns / SECOND}


def _of_change(change: Change) -> ChangeFigures:
    lasted = change.lasted
    return {
        "state": change.state.value,
        "at": round(change.at, 3),
        "lasted": None if lasted is None else round(lasted, 3),
        **of_load(change.load),
    }


def _of_row(row: Row) -> ProcessFigures:
    return {
        "pid": row.pid,
        "slot": row.slot,
        "state": row.state,
        **of_load(row.load),
        "beat": round(row.beat, 3),
        "admitted": row.admitted,
        "served": row.served,
        "refused": row.refused,
        "dropped": row.dropped,
    }
