"""The one table of what is counted and measured, for those who send figures elsewhere.

:data:`FIGURES` has a line for each, with how to take it out of the dictionary that
:func:`~.report.look` returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..policy import DRAINING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..load_report import LoadReport

    TimeKey = Literal["service_time", "queue_time"]
    ProcessKey = Literal["queued", "active", "capacity", "beat"]
    BulkheadKey = Literal["inside", "at_most", "oldest", "shut_for", "made", "slow", "refused"]
    Samples = Iterable[tuple[tuple[str, ...], float]]
    Read = Callable[[LoadReport], Iterable[tuple[tuple[str, ...], Any]]]

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
    :param read: returns the values, each with those of the labels, from what
        :func:`~.report.look` showed; nothing where it is not known. A histogram's are
        :class:`Times`.
    """

    name: str
    kind: str
    unit: str
    says: str
    labels: tuple[str, ...]
    read: Read


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
    _gauge("utilisation", "Requests here, and as many as are refused meanwhile, by the capacity."),
    _gauge("waited", "For how long no queued request has got a thread.", TIME),
    _gauge("delay", "How long a request that arrives now would wait.", TIME),
    _gauge("lag", "How late new connections are taken in.", TIME),
    _gauge("is_busy", "1 while the state is busy, else 0.", read=_busy),
    _gauge("is_ready", "1 while ready checks are answered 200, else 0.", read=_ready),
    _gauge("is_draining", "1 while checks say draining, else 0.", read=_draining),
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
