"""What of an answer can be shown: figures that are figures, and text without orders.

A host that is asked may be anything, and what it says is drawn on a terminal. So it is held to the
form of the report. Values in, values out; what is not known here is left out.
"""

from __future__ import annotations

from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints, is_typeddict

from ..._support.text_values import plain
from ...load_report import LoadReport

# More than any count of ours in a lifetime; what is longer is drawn over other things.
MOST_NUMBER = 10**15

LONGEST_TEXT = 200

# A board has a thousand and some slots, sixteen changes are kept, and sixty-four balancers.
MOST_ROWS = 4096

# What a check port has always shown; without it the answer is something else.
NEEDED = {"state", "ready", "at", "queued", "active", "capacity", "delay", "idle"}


def understood(value: Any) -> LoadReport:
    """Return what can be shown of the JSON at ``/load``.

    A part that is missing is missing: versions differ.

    :raises ValueError: for anything else.
    """
    if not isinstance(value, dict) or not value.keys() >= NEEDED:
        raise ValueError("expected what /load shows")
    fields = _fields(LoadReport).items()
    shown = {name: _shown(kind, value[name]) for name, kind in fields if name in value}
    return cast("LoadReport", shown)


@lru_cache
def _fields(form: Any) -> dict[str, Any]:
    return get_type_hints(form)


def _shown(kind: Any, value: Any) -> Any:
    if isinstance(kind, UnionType):
        kinds = get_args(kind)
        if value is None and NoneType in kinds:
            return None
        kind = str if isinstance(value, str) and str in kinds else kinds[0]
    if is_typeddict(kind):
        given = _of(dict, value)
        return {name: _shown(each, given.get(name)) for name, each in _fields(kind).items()}
    if get_origin(kind) is dict:
        _, each = get_args(kind)
        return {_text(name): _shown(each, one) for name, one in _of(dict, value).items()}
    if get_origin(kind) in (list, tuple):
        return [_shown(get_args(kind)[0], each) for each in _of(list, value)[:MOST_ROWS]]
    if kind is str:
        return _text(_of(str, value))
    return _of(bool, value) if kind is bool else _number(value)


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"expected a {kind.__name__}, not {value!r:.60}")
    return value


def _text(value: str) -> str:
    return plain(value[:LONGEST_TEXT])


def _number(value: Any) -> Any:
    """Return a number as it came; two clocks may have made it a little less than nothing."""
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not abs(value) < MOST_NUMBER:
        raise ValueError(f"expected a number, not {value!r:.60}")
    return max(0, value)
