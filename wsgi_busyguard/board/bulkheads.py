"""The bulkheads of a process as words of its row, and those of several added up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..counters import SECOND
from .memory import text_in, text_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..load_report import BulkheadFigures

# Bulkheads that a row has room for: those that are used most.
MOST_BULKHEADS = 8

NAME_WORDS = 4
BULKHEAD_WORDS = NAME_WORDS + 6
COLUMNS = MOST_BULKHEADS * BULKHEAD_WORDS

COUNT_BITS = 21
UNKNOWN = (1 << COUNT_BITS) - 1

_known: list[Callable[[], Iterable[BulkheadFigures]]] = []


def post_bulkheads_of(figures: Callable[[], Iterable[BulkheadFigures]]) -> None:
    """Have the bulkheads of this process, which the board knows nothing of, be posted."""
    _known[:] = [figures]


def calls_now(now: int) -> list[int]:
    """Return the words for the bulkheads of this process."""
    return packed(_known[0]() if _known else (), now)


def packed(bulkheads: Iterable[BulkheadFigures], now: int) -> list[int]:
    """Return the words for these; a name that is empty ends them."""
    used = sorted(bulkheads, key=lambda one: (-one["made"] - one["refused"], one["name"]))
    words: list[int] = []
    for one in used[:MOST_BULKHEADS]:
        most = UNKNOWN if one["at_most"] is None else min(one["at_most"], UNKNOWN - 1)
        words += text_words(one["name"] or "?", NAME_WORDS)
        words.append(min(one["inside"], UNKNOWN) << COUNT_BITS | most)
        words.append(now - int(one["oldest"] * SECOND) if one["inside"] else 0)
        words.append(0 if one["shut_for"] is None else max(1, now - int(one["shut_for"] * SECOND)))
        words += (one["made"], one["slow"], one["refused"])
    return words + [0] * (COLUMNS - len(words))


def unpacked(words: Sequence[int], now: int) -> tuple[BulkheadFigures, ...]:
    """Return the bulkheads that these words stand for."""
    found: list[BulkheadFigures] = []
    for at in range(0, COLUMNS, BULKHEAD_WORDS):
        *name, figures, since, shut, made, slow, refused = words[at : at + BULKHEAD_WORDS]
        if not name[0]:
            break
        most = figures & UNKNOWN
        found.append(
            {
                "name": text_in(name),
                "inside": figures >> COUNT_BITS,
                "at_most": None if most == UNKNOWN else most,
                "oldest": round(max(0, now - since) / SECOND, 3) if since else 0.0,
                "shut_for": round(max(0, now - shut) / SECOND, 3) if shut else None,
                "made": made,
                "slow": slow,
                "refused": refused,
            }
        )
    return tuple(found)


def together(several: Iterable[Sequence[BulkheadFigures]]) -> list[BulkheadFigures]:
    """Return those of several processes by their names: calls are added up, ages the longest."""
    found: dict[str, BulkheadFigures] = {}
    for one in (one for each in several for one in each):
        other = found.get(one["name"])
        found[one["name"]] = one if other is None else _both(one, other)
    return [found[name] for name in sorted(found)]


def _both(one: BulkheadFigures, other: BulkheadFigures) -> BulkheadFigures:
    mosts, shuts = (one["at_most"], other["at_most"]), (one["shut_for"], other["shut_for"])
    shut = [seconds for seconds in shuts if seconds is not None]
    most = [number for number in mosts if number is not None]
    return {
        "name": one["name"],
        "inside": one["inside"] + other["inside"],
        "at_most": sum(most) if most else None,
        "oldest": max(one["oldest"], other["oldest"]),
        "shut_for": max(shut) if shut else None,
        "made": one["made"] + other["made"],
        "slow": one["slow"] + other["slow"],
        "refused": one["refused"] + other["refused"],
    }
