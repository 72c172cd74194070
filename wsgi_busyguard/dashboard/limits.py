"""What is in force in the guards of a host, as a person reads it; figures in, text out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..load import ADAPTED, DISABLE, DISABLED, LIMITED, GuardLimits, does
from .formatting import many, of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..load_report import LimitFigures, LoadReport
    from .history import Look


class LimitsGroup(NamedTuple):
    """What is in force in processes that differ at most in how many slots they have now.

    :param name: what the guard does there; and in how many processes, if other guards do otherwise.
    :param rows: the name of each limit, its value, and where it is from.
    """

    name: str
    rows: list[tuple[str, str, str]]

    def __str__(self) -> str:
        parts = [f"{name} {value} ({origin})" for name, value, origin in self.rows]
        return f"{self.name}: {', '.join(parts)}"


def in_force(shown: LoadReport) -> list[LimitsGroup]:
    """Return what is in force, once for all processes in which it is the same."""
    together: dict[GuardLimits, list[LimitFigures]] = {}
    for figures in shown.get("limits", ()):
        together.setdefault(_known(figures, figures["at_most"], ""), []).append(figures)
    return [_alike(each, len(together) > 1) for each in together.values()]


def disabled(shown: LoadReport, _: Sequence[Look]) -> str | None:
    """Say that the guard is switched off."""
    off = [each["processes"] for each in shown.get("limits", ()) if each["acts"] == DISABLED]
    if not off:
        return None
    text = f"guard is disabled by {DISABLE}: it answers checks, and does nothing else."
    every = sum(off) == _processes(shown)
    return f"The {text}" if every else f"In {of(sum(off), _processes(shown))} processes the {text}"


def fewer(shown: LoadReport, _: Sequence[Look]) -> str | None:
    """Say why there are fewer slots than were given."""
    adapted = [limits for limits in shown.get("limits", ()) if limits["why"]]
    if not adapted:
        return None
    which = min(adapted, key=lambda limits: limits["slots"] or 0)
    if _processes(shown) == 1:
        return f"{which['why'][:1].upper()}{which['why'][1:]}."
    count = sum(limits["processes"] for limits in adapted)
    return f"In {of(count, _processes(shown))} processes {which['why']}."


def _processes(shown: LoadReport) -> int:
    """Return for how many processes it is known what is in force."""
    return sum(limits["processes"] for limits in shown["limits"])


def _known(figures: LimitFigures, slots: int | None, slots_from: str) -> GuardLimits:
    origins = {**figures["origins"], "slots": slots_from}
    given: dict[str, Any] = {**figures, "slots": slots, "why": ""}
    given["origins"] = tuple(origins.get(name, "") for name in LIMITED)
    return GuardLimits(*(given[name] for name in GuardLimits._fields))


def _alike(each: list[LimitFigures], is_one_of_several: bool) -> LimitsGroup:
    slots = sorted({figures["slots"] or 0 for figures in each})
    now = " to ".join(map(str, dict.fromkeys([slots[0], slots[-1]])))
    origins = [figures["origins"].get("slots", "") for figures in each]
    known = _known(each[0], each[0]["slots"], ADAPTED if ADAPTED in origins else origins[0])
    name = does(known.acts)
    if is_one_of_several:
        processes = sum(figures["processes"] for figures in each)
        name = f"{many(processes, 'process', 'processes')}: {name}"
    return LimitsGroup(name, known.rows(now))
