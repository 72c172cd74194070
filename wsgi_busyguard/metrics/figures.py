"""The one table of what is counted and measured, and the one look that reads it all.

*How to read the figures.* ``/load`` of the check port is the JSON of :func:`look`, and
``/load?watch`` sends it once a second, as server-sent events, each ``data: {...}``. That is all
that a page or ``busyguard top`` needs; what the keys mean stands in ``docs/metrics.rst``. Within
the process of the port :func:`look` returns the very same dictionary. Keys are only ever added; a
figure that nobody knows is ``None``, and ``counts`` is where nothing is counted (a guard that is
no gate). Counters never go down while their host lives, so a rate is the difference of two looks.

For those who send figures elsewhere :data:`FIGURES` has a line for each, with how to take it out
of that dictionary. Nothing here is done for a request.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from ..board.outside_calls import together
from ..board.row import HasRows
from ..bulkhead import report
from ..counters import BOUNDS, CHECKS, REASONS, SECOND, Counters, KeepsHistory
from ..gate.in_force import limit_figures
from ..monitor import Monitor, ReadsSeveral
from ..policy import DAMPED, DRAINING, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..board.row import Row
    from ..counters import Change
    from ..load import (
        BulkheadFigures,
        ChangeFigures,
        CountFigures,
        Load,
        LoadFigures,
        LoadReport,
        ProcessFigures,
        StateFigures,
        TimeFigures,
    )

    TimeKey = Literal["service_time", "queue_time"]
    ProcessKey = Literal["queued", "active", "capacity", "beat"]
    BulkheadKey = Literal["inside", "at_most", "oldest", "shut_for", "made", "slow", "refused"]
    Samples = Iterable[tuple[tuple[str, ...], float]]
    Read = Callable[[LoadReport], Iterable[tuple[tuple[str, ...], Any]]]

VERSION = 1

GAUGE, COUNTER, HISTOGRAM = KINDS = ("gauge", "counter", "histogram")

REQUESTS, TIME, NONE = "requests", "seconds", ""

CHECK_LABELS = ("policy", "answer", "status")


class Times(NamedTuple):
    """A histogram.

    :param bounds: the upper bounds of its buckets, in seconds, inclusive.
    :param counts: how many there are in each, and in one more: above all bounds.
    :param total: the sum of all times, in seconds.
    """

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float


class Figure(NamedTuple):
    """A line of the table.

    :param name: in lower case, words with ``_`` between, without the unit.
    :param kind: a gauge, a counter or a histogram.
    :param unit: ``"requests"``, ``"seconds"``, or nothing.
    :param says: what it is, in one sentence.
    :param labels: the names of what there is one for each of.
    :param read: returns the values, each with those of the labels, from what :func:`look` showed;
        nothing where it is not known. A histogram's are :class:`Times`.
    """

    name: str
    kind: str
    unit: str
    says: str
    labels: tuple[str, ...]
    read: Read


def look(
    monitor: Any, agent: Any = None, ready: str = DAMPED, patience: float = PATIENCE
) -> LoadReport:
    """Return every figure, as ``/load`` shows them.

    :param monitor: a :class:`~wsgi_busyguard.Monitor`, or what watches several processes.
    :param agent: knows the balancers that ask, if anybody does.
    :param ready: the policy that ``ready`` follows; ``patience`` is for it.
    """
    verdict = monitor.check(ready, patience, count=False)
    state: StateFigures = {
        "version": VERSION,
        "at": round(time.time(), 3),
        "state": verdict.word,
        "ready": verdict.ready,
        **of_load(verdict.load),
    }
    shown = cast("LoadReport", state)  # the rest is added as far as it is known
    if hasattr(monitor, "adapter"):
        shown["reads"] = repr(monitor.adapter)
    _look_back(monitor, shown)
    if agent is not None:
        shown["balancers"] = agent.balancers()
    _each_process(monitor, shown, verdict.load)
    return shown


def _each_process(monitor: Any, shown: LoadReport, load: Load) -> None:
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


def _row_of(monitor: Any, shown: LoadReport, load: Load) -> list[ProcessFigures]:
    """Return the row of this process."""
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


def _look_back(monitor: Any, shown: LoadReport) -> None:
    """Show what has been, as far as the monitor remembers."""
    if not isinstance(monitor, KeepsHistory):
        return
    shown["counts"] = _of_counts(monitor.counts())
    changes = monitor.changes()
    shown["transitions"] = {"busy": changes.to_busy, "free": changes.to_free}
    shown["busy_seconds"] = round(changes.busy_seconds, 3)
    shown["changes"] = [_of_change(change) for change in changes.recent]
    shown["checks"] = [
        {"policy": policy, "answer": word, "ready": ready, "count": count}
        for (policy, word, ready), count in zip(CHECKS, monitor.asked(), strict=True)
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


def _of_times(counts: Sequence[int], total_ns: int) -> TimeFigures:
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


def _plain(key: str) -> Callable[[LoadReport], Samples]:
    def read(shown: LoadReport) -> Samples:
        value: Any = shown.get(key)
        return [] if value is None else [((), value)]

    return read


def _busy(shown: LoadReport) -> Samples:
    """Whether the state is busy, also while a server that drains says so instead."""
    transitions = shown.get("transitions")
    if transitions is None:
        return [((), int(shown["state"] == "busy"))]
    return [((), int(transitions["busy"] > transitions["free"]))]


def _ready(shown: LoadReport) -> Samples:
    return [((), int(shown["ready"]))]


def _draining(shown: LoadReport) -> Samples:
    return [((), int(shown["state"] == DRAINING))]


def _counted(key: Literal["admitted", "served", "dropped"]) -> Callable[[LoadReport], Samples]:
    def read(shown: LoadReport) -> Samples:
        counts = shown.get("counts")
        return [] if counts is None else [((), counts[key])]

    return read


def _times(key: TimeKey) -> Callable[[LoadReport], Iterable[tuple[tuple[str, ...], Times]]]:
    def read(shown: LoadReport) -> Iterable[tuple[tuple[str, ...], Times]]:
        counts = shown.get("counts")
        return [] if counts is None else [((), Times(**counts[key]))]

    return read


def _refused(shown: LoadReport) -> Samples:
    counts = shown.get("counts")
    return [] if counts is None else [((why,), n) for why, n in counts["refused"].items()]


def _transitions(shown: LoadReport) -> Samples:
    times = shown.get("transitions")
    return [] if times is None else [(("busy",), times["busy"]), (("free",), times["free"])]


def _checks(shown: LoadReport) -> Samples:
    return [
        ((check["policy"], check["answer"], "200" if check["ready"] else "503"), check["count"])
        for check in shown.get("checks", ())
    ]


def _balancers(shown: LoadReport) -> Samples:
    asking = shown.get("balancers")
    return [] if asking is None else [((), len(asking))]


def _at_most(shown: LoadReport) -> Samples:
    """How many slots there are in all processes together while none is taken away."""
    each = [(limits["at_most"], limits["processes"]) for limits in shown.get("limits", ())]
    known = [at_most * processes for at_most, processes in each if at_most is not None]
    return [((), sum(known))] if known else []


def _processes(shown: LoadReport) -> Samples:
    rows = shown.get("processes")
    if rows is None:
        return []
    states = [row["state"] for row in rows]
    return [((state,), states.count(state)) for state in ("starting", "ready", "stopping")]


def _each(key: ProcessKey) -> Callable[[LoadReport], Samples]:
    def read(shown: LoadReport) -> Samples:
        rows = shown.get("processes", ())
        return [((str(row["slot"]),), n) for row in rows if (n := row[key]) is not None]

    return read


def _bulkheads(key: BulkheadKey) -> Callable[[LoadReport], Samples]:
    def read(shown: LoadReport) -> Samples:
        found = shown.get("bulkheads", ())
        return [((one["name"],), n) for one in found if (n := one[key]) is not None]

    return read


def _gauge(
    name: str, says: str, unit: str = NONE, read: Read | None = None, labels: tuple[str, ...] = ()
) -> Figure:
    return Figure(name, GAUGE, unit, says, labels, read or _plain(name))


def _counter(
    name: str, says: str, read: Read, labels: tuple[str, ...] = (), unit: str = NONE
) -> Figure:
    return Figure(name, COUNTER, unit, says, labels, read)


def _histogram(name: TimeKey, says: str) -> Figure:
    return Figure(name, HISTOGRAM, TIME, says, (), _times(name))


def _of_bulkhead(name: BulkheadKey, kind: str, says: str, unit: str = NONE) -> Figure:
    """Return the figure of each bulkhead that is called ``bulkhead_`` and its key."""
    return Figure(f"bulkhead_{name}", kind, unit, says, ("bulkhead",), _bulkheads(name))


def _of_each(name: ProcessKey, says: str, unit: str) -> Figure:
    """Return the figure of each process that is called ``process_`` and a key of its row."""
    return _gauge(f"process_{name}", says, unit, _each(name), ("slot",))


FIGURES = (
    _gauge("queued", "Requests that wait for a slot.", REQUESTS),
    _gauge("active", "Requests in the application.", REQUESTS),
    _gauge("capacity", "Requests that may be in the application at once.", REQUESTS),
    _gauge(
        "slots_at_most", "What the capacity is while no slot is taken away.", REQUESTS, _at_most
    ),
    _gauge("waited", "For how long no queued request has got a thread.", TIME),
    _gauge("delay", "How long a request that arrives now would wait.", TIME),
    _gauge("lag", "How late new connections are taken in.", TIME),
    _gauge("is_busy", "1 while the state is busy, else 0.", read=_busy),
    _gauge("is_ready", "1 while ready checks are answered 200, else 0.", read=_ready),
    _gauge("is_draining", "1 while the server is shutting down, else 0.", read=_draining),
    _counter("busy", "Time in the state busy.", _plain("busy_seconds"), unit=TIME),
    _counter("transitions", "Changes of the state, by the state entered.", _transitions, ("to",)),
    _counter("admitted", "Requests that got a slot.", _counted("admitted")),
    _counter("served", "Requests that the app is done with.", _counted("served")),
    _counter(
        "refused",
        "Requests refused; queue-age: expired, having waited long.",
        _refused,
        ("reason",),
    ),
    _counter(
        "dropped", "Requests whose client left before the app was called.", _counted("dropped")
    ),
    _counter(
        "checks", "Ready checks answered, by the policy and the answer.", _checks, CHECK_LABELS
    ),
    _histogram("service_time", "How long requests held their slots."),
    _histogram("queue_time", "How long admitted requests waited for their slots."),
    _gauge("balancers", "Balancers that ask the agent port.", read=_balancers),
    _gauge(
        "processes", "Processes on the board, by how they are.", read=_processes, labels=("state",)
    ),
    _of_each("queued", "Requests that wait for a slot in one process.", REQUESTS),
    _of_each("active", "Requests in the application in one process.", REQUESTS),
    _of_each("capacity", "Requests that may be in it at once.", REQUESTS),
    _of_each("beat", "How long ago a process showed that it makes progress.", TIME),
    _of_bulkhead("inside", GAUGE, "Calls to an outside service that run now."),
    _of_bulkhead("at_most", GAUGE, "How many may run at once."),
    _of_bulkhead("oldest", GAUGE, "For how long the longest of them has run.", TIME),
    _of_bulkhead("shut_for", GAUGE, "For how long a service is only probed.", TIME),
    _of_bulkhead("made", COUNTER, "Calls made, as far as they have ended."),
    _of_bulkhead("slow", COUNTER, "Calls that were slow, or cut by their deadline."),
    _of_bulkhead("refused", COUNTER, "Calls not made, for no place was free."),
)
