"""Numbers and times as a person reads them."""

from __future__ import annotations

from math import inf

from ..counters import BOUNDS

MINUTE, HOUR, DAY = 60, 3600, 86400

DASH = "\N{EN DASH}"  # for what is not known


def span(seconds: float | None) -> str:
    """Return a length of time in the unit that fits, as ``840 ms`` or ``2 h 5 min``."""
    if seconds is None:
        return "not known"
    if isinstance(seconds, int) and seconds < 2 * MINUTE:
        return f"{seconds} s"
    if seconds < 0.0005:
        return "0 s"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, less, its in ((DAY, "d", HOUR, "h"), (HOUR, "h", MINUTE, "min")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // less} {its}"
    return f"{whole // MINUTE} min {whole % MINUTE} s" if whole >= 2 * MINUTE else f"{whole} s"


def many(count: int, one: str, more: str | None = None) -> str:
    """Return a count with its noun: ``1 request``, ``7 requests``."""
    return f"{grouped(count)} {one if count == 1 else more or one + 's'}"


def grouped(number: float | None) -> str:
    """Return a number with its thousands apart; a dash where it is not known."""
    return DASH if number is None else f"{number:,.0f}".replace(",", "\N{NO-BREAK SPACE}")


def of(part: int, whole: int | None) -> str:
    """Return ``3 of 8``, or ``3`` where nobody knows of how many."""
    return grouped(part) if whole is None else f"{grouped(part)} of {grouped(whole)}"


def length(seconds: float | None) -> str:
    """Return a time that is one of those that are counted in buckets."""
    if seconds is None:
        return DASH
    return f"more than {span(BOUNDS[-1])}" if seconds == inf else span(seconds)
