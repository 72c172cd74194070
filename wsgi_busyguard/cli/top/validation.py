"""What of an answer can be shown: figures that are figures, and words that give no orders.

A host that is asked may be anything, and what it says is drawn on a terminal. Values in, values
out; what is not of this form is a ValueError, and what is not known here is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ...dashboard.formatting import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ...load_report import LoadReport

    Kind = Callable[[Any], Any]

# More than any count of ours in a lifetime; what is longer is drawn over other things.
MOST_NUMBER = 10**15

LONGEST_NAME = 64
LONGEST_SENTENCE = 200

# A board has a thousand and some slots, sixteen changes are kept, and sixty-four balancers.
MOST_ROWS = 4096

# What a check port has always shown; without it the answer is something else.
NEEDED = {"state", "ready", "at", "queued", "active", "capacity", "delay", "idle"}


def understood(value: Any) -> LoadReport:
    """Return what can be shown of the JSON at ``/load``.

    A figure that is missing is missing: versions differ.

    :raises ValueError: for anything else.
    """
    if not isinstance(value, dict) or not value.keys() >= NEEDED:
        raise ValueError("expected what /load shows")
    shown = {key: kind(value[key]) for key, kind in SHOWN.items() if key in value}
    return cast("LoadReport", shown)


def number(value: Any) -> Any:
    """Return a number as it came; two clocks may have made it a little less than nothing."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) < MOST_NUMBER
    ):
        raise ValueError("expected a number")
    return max(0, value)


def text(value: Any) -> str:
    """Return a word of printable characters."""
    if not isinstance(value, str):
        raise ValueError("expected a word")
    return plain(value[:LONGEST_NAME])


def sentence(value: Any) -> str:
    """Return a text of printable characters, which may be longer; nothing if it is missing."""
    return "" if value is None else plain(str(value)[:LONGEST_SENTENCE])


def truth(value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def maybe(kind: Kind) -> Kind:
    """Return the kind that may also be unknown."""
    return lambda value: None if value is None else kind(value)


def record(**fields: Kind) -> Kind:
    """Return the kind that has these fields; one that is missing is unknown."""

    def kind(value: Any) -> dict[str, Any]:
        return {key: field(_object(value).get(key)) for key, field in fields.items()}

    return kind


def several(kind: Kind) -> Kind:
    """Return the kind that is a list of another."""

    def several(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) > MOST_ROWS:
            raise ValueError("expected a list")
        return [kind(each) for each in value]

    return several


def numbers(value: Any) -> dict[str, Any]:
    """Return numbers by their names."""
    return {text(key): number(each) for key, each in _object(value).items()}


def texts(value: Any) -> dict[str, str]:
    """Return words by their names."""
    return {text(key): text(each) for key, each in _object(value).items()}


def _name(value: Any) -> str:
    return str(value) if isinstance(value, int) and abs(value) < MOST_NUMBER else text(value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    return value


_unsure = maybe(number)

_LOAD: Mapping[str, Kind] = {
    **dict.fromkeys(("queued", "active"), number),
    **dict.fromkeys(("capacity", "delay", "idle", "waited", "service", "lag"), _unsure),
}

_ROW = record(
    pid=_name,
    state=text,
    **{**_LOAD, "waited": number},
    **dict.fromkeys(("beat", "served", "refused", "dropped"), _unsure),
)

_COUNTS = record(
    **dict.fromkeys(("served", "dropped"), number),
    refused=numbers,
    service_time=record(total=number, counts=several(number)),
    queue_time=maybe(record(counts=several(number))),
)

_BULKHEAD = record(
    name=text,
    **dict.fromkeys(("inside", "oldest", "made", "slow", "refused"), number),
    **dict.fromkeys(("at_most", "shut_for"), _unsure),
)

_LIMITS = record(
    **dict.fromkeys(("processes", "client_timeout", "patience"), number),
    **dict.fromkeys(("acts", "ready"), text),
    why=sentence,
    **dict.fromkeys(("slots", "at_most", "max_queue", "max_wait"), _unsure),
    origins=texts,
)

_STACKS = record(
    threads=number,
    complete=truth,
    lines=several(record(threads=number, at=sentence, oldest=_unsure)),
    why=maybe(sentence),
)

SHOWN: Mapping[str, Kind] = {
    "state": text,
    "ready": truth,
    "alive": maybe(truth),
    "at": number,
    **dict.fromkeys(("host", "port", "release"), text),
    "app": maybe(text),
    "since": _unsure,
    **_LOAD,
    "processes": several(_ROW),
    "limits": several(_LIMITS),
    "counts": maybe(_COUNTS),
    "checks": several(record(count=number)),
    "changes": several(record(state=text, at=number)),
    "transitions": record(busy=number),
    "busy_seconds": number,
    "bulkheads": several(_BULKHEAD),
    "balancers": several(record(name=text, asked=number, period=number)),
    "stacks": _STACKS,
}
