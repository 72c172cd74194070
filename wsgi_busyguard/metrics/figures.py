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
from typing import TYPE_CHECKING, Any, NamedTuple

from ..counters import BOUNDS, CHECKS, REASONS, SECOND, Counters
from ..policy import DAMPED, DRAINING, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ..counters import Change
    from ..load import Load

    Shown = Mapping[str, Any]
    Samples = Iterable[tuple[tuple[str, ...], float]]

VERSION = 1

GAUGE, COUNTER, HISTOGRAM = KINDS = ("gauge", "counter", "histogram")

REQUESTS, TIME, NONE = "requests", "seconds", ""


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
    read: Callable[[Shown], Iterable[tuple[tuple[str, ...], Any]]]


def look(
    monitor: Any, agent: Any = None, ready: str = DAMPED, patience: float = PATIENCE
) -> dict[str, Any]:
    """Return every figure, as ``/load`` shows them.

    :param monitor: a :class:`~wsgi_busyguard.Monitor`, or what watches several processes.
    :param agent: knows the balancers that ask, if anybody does.
    :param ready: the policy that ``ready`` follows; ``patience`` is for it.
    """
    verdict = monitor.check(ready, patience, count=False)
    shown = {
        "version": VERSION,
        "at": round(time.time(), 3),
        "state": verdict.word,
        "ready": verdict.ready,
        **of_load(verdict.load),
    }
    if hasattr(monitor, "adapter"):
        shown["reads"] = repr(monitor.adapter)
    _look_back(monitor, shown)
    if agent is not None:
        shown["balancers"] = agent.balancers()
    shown["processes"] = _rows(monitor, shown)
    return shown


def _rows(monitor: Any, shown: Shown) -> list[dict[str, Any]]:
    """Return a row for each process: of a board, or of this one alone."""
    shared = getattr(getattr(monitor, "adapter", None), "shared", None)
    rows = getattr(monitor, "rows", None) or getattr(shared, "rows", None)
    if rows is not None:
        return [_of_row(row) for row in rows()]
    counts = shown.get("counts") or {}
    refused = counts.get("refused")
    return [
        {
            "pid": os.getpid(),
            "slot": 0,
            "state": "stopping" if monitor.draining else "ready",
            **{key: shown[key] for key in LOAD},
            "beat": None,
            "admitted": counts.get("admitted"),
            "served": counts.get("served"),
            "refused": None if refused is None else sum(refused.values()),
            "dropped": counts.get("dropped"),
        }
    ]


LOAD = ("queued", "active", "capacity", "delay", "idle", "waited", "service", "lag")


def of_load(load: Load) -> dict[str, Any]:
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


def _look_back(monitor: Any, shown: dict[str, Any]) -> None:
    """Show what has been, as far as the monitor remembers."""
    counts = getattr(monitor, "counts", None)
    if counts is None:
        return
    shown["counts"] = _of_counts(counts())
    changes = monitor.changes()
    shown["transitions"] = {"busy": changes.to_busy, "free": changes.to_free}
    shown["busy_seconds"] = round(changes.busy_seconds, 3)
    shown["changes"] = [_of_change(change) for change in changes.recent]
    shown["checks"] = [
        {"policy": policy, "answer": word, "ready": ready, "count": count}
        for (policy, word, ready), count in zip(CHECKS, monitor.asked(), strict=True)
    ]


def _of_counts(counts: Counters | None) -> dict[str, Any] | None:
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


def _of_times(counts: Sequence[int], total_ns: int) -> dict[str, Any]:
    return {"bounds": BOUNDS, "counts": counts, "total": total_ns / SECOND}


def _of_change(change: Change) -> dict[str, Any]:
    lasted = change.lasted
    return {
        "state": change.state.value,
        "at": round(change.at, 3),
        "lasted": None if lasted is None else round(lasted, 3),
        **of_load(change.load),
    }


def _of_row(row: Any) -> dict[str, Any]:
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


def _plain(key: str) -> Callable[[Shown], Samples]:
    def read(shown: Shown) -> Samples:
        value = shown.get(key)
        return [] if value is None else [((), value)]

    return read


def _truth(key: str, *values: object) -> Callable[[Shown], Samples]:
    return lambda shown: [((), int(shown[key] in values))]


def _counted(key: str) -> Callable[[Shown], Samples]:
    def read(shown: Shown) -> Samples:
        counts = shown.get("counts")
        return [] if counts is None else [((), counts[key])]

    return read


def _times(key: str) -> Callable[[Shown], Iterable[tuple[tuple[str, ...], Times]]]:
    def read(shown: Shown) -> Iterable[tuple[tuple[str, ...], Times]]:
        counts = shown.get("counts")
        return [] if counts is None else [((), Times(**counts[key]))]

    return read


def _refused(shown: Shown) -> Samples:
    counts = shown.get("counts")
    return [] if counts is None else [((why,), n) for why, n in counts["refused"].items()]


def _transitions(shown: Shown) -> Samples:
    return [((to,), n) for to, n in shown.get("transitions", {}).items()]


def _checks(shown: Shown) -> Samples:
    return [
        ((check["policy"], check["answer"], "200" if check["ready"] else "503"), check["count"])
        for check in shown.get("checks", ())
    ]


def _balancers(shown: Shown) -> Samples:
    asking = shown.get("balancers")
    return [] if asking is None else [((), len(asking))]


def _processes(shown: Shown) -> Samples:
    rows = shown.get("processes")
    if rows is None:
        return []
    states = [row["state"] for row in rows]
    return [((state,), states.count(state)) for state in ("starting", "ready", "stopping")]


def _each(key: str) -> Callable[[Shown], Samples]:
    def read(shown: Shown) -> Samples:
        rows = shown.get("processes", ())
        return [((str(row["slot"]),), row[key]) for row in rows if row[key] is not None]

    return read


FIGURES = (
    Figure("queued", GAUGE, REQUESTS, "Requests that wait for a slot.", (), _plain("queued")),
    Figure("active", GAUGE, REQUESTS, "Requests in the application.", (), _plain("active")),
    Figure(
        *("capacity", GAUGE, REQUESTS, "Requests that may be in the application at once."),
        *((), _plain("capacity")),
    ),
    Figure(
        *("waited", GAUGE, TIME, "For how long no queued request has got a thread."),
        *((), _plain("waited")),
    ),
    Figure(
        *("delay", GAUGE, TIME, "How long a request that arrives now would wait."),
        *((), _plain("delay")),
    ),
    Figure(
        *("lag", GAUGE, TIME, "How late new connections are taken in."),
        *((), _plain("lag")),
    ),
    Figure(
        *("is_busy", GAUGE, NONE, "1 while the state is busy, else 0."),
        *((), lambda shown: [((), int(_is_busy(shown)))]),
    ),
    Figure(
        *("is_ready", GAUGE, NONE, "1 while ready checks are answered 200, else 0."),
        *((), _truth("ready", True)),
    ),
    Figure(
        *("is_draining", GAUGE, NONE, "1 while the server is shutting down, else 0."),
        *((), _truth("state", DRAINING)),
    ),
    Figure("busy", COUNTER, TIME, "Time in the state busy.", (), _plain("busy_seconds")),
    Figure(
        *("transitions", COUNTER, NONE, "Changes of the state, by the state entered."),
        *(("to",), _transitions),
    ),
    Figure("admitted", COUNTER, NONE, "Requests that got a slot.", (), _counted("admitted")),
    Figure("served", COUNTER, NONE, "Requests that the app is done with.", (), _counted("served")),
    Figure(
        *("refused", COUNTER, NONE, "Requests refused; queue-age: expired, having waited long."),
        *(("reason",), _refused),
    ),
    Figure(
        *("dropped", COUNTER, NONE, "Requests whose client left before the app was called."),
        *((), _counted("dropped")),
    ),
    Figure(
        *("checks", COUNTER, NONE, "Ready checks answered, by the policy and the answer."),
        *(("policy", "answer", "status"), _checks),
    ),
    Figure(
        *("service_time", HISTOGRAM, TIME, "How long requests held their slots."),
        *((), _times("service_time")),
    ),
    Figure(
        *("queue_time", HISTOGRAM, TIME, "How long admitted requests waited for their slots."),
        *((), _times("queue_time")),
    ),
    Figure(
        *("balancers", GAUGE, NONE, "Balancers that ask the agent port."),
        *((), _balancers),
    ),
    Figure(
        *("processes", GAUGE, NONE, "Processes on the board, by how they are."),
        *(("state",), _processes),
    ),
    Figure(
        *("process_queued", GAUGE, REQUESTS, "Requests that wait for a slot in one process."),
        *(("slot",), _each("queued")),
    ),
    Figure(
        *("process_active", GAUGE, REQUESTS, "Requests in the application in one process."),
        *(("slot",), _each("active")),
    ),
    Figure(
        *("process_capacity", GAUGE, REQUESTS, "Requests that may be in it at once."),
        *(("slot",), _each("capacity")),
    ),
    Figure(
        *("process_beat", GAUGE, TIME, "How long ago a process showed that it makes progress."),
        *(("slot",), _each("beat")),
    ),
)


def _is_busy(shown: Shown) -> bool:
    """Return whether the state is busy, also while a server that drains says so instead."""
    transitions = shown.get("transitions")
    if transitions is None:
        return bool(shown["state"] == "busy")
    return bool(transitions["busy"] > transitions["free"])
