"""The lines below the figures of one host: how long requests took, what has changed, who asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from ...dashboard.bulkheads import bulkhead
from ...dashboard.formatting import grouped, length, span
from ...dashboard.history import lengths
from ...dashboard.limits import in_force
from ...policy import DRAINING, share

if TYPE_CHECKING:
    from ...load_report import LoadReport
    from .hosts import HostLook


def lines(seen: HostLook, shown: LoadReport) -> list[Text]:
    """Return them all."""
    asking = [*_bulkheads(shown), *_balancers(shown)]
    return [*_lengths(seen), *_changes(shown), *asking, *_limits(shown)]


def _lengths(seen: HostLook) -> list[Text]:
    half, most = lengths(seen.looks, "service")
    if half is None or most is None:
        return []
    when = span(round(seen.looks[-1].at - seen.looks[0].at))
    text = f"half took {length(half)}, 99 of 100 {length(most)} (last {when})"
    return [_line("requests", text)]


def _changes(shown: LoadReport) -> list[Text]:
    times = shown.get("transitions")
    if times is None:
        return []
    busy = f"busy {grouped(times['busy'])} x, {span(shown.get('busy_seconds'))} in all"
    recent = [
        f"{change['state']} {span(max(0.0, shown['at'] - change['at']))} ago"
        for change in reversed(shown.get("changes", ())[-3:])
    ]
    return [_line("changes", "; ".join([busy, *recent]))]


def _bulkheads(shown: LoadReport) -> list[Text]:
    return [_line("calls", bulkhead(one)) for one in shown.get("bulkheads") or ()]


def _balancers(shown: LoadReport) -> list[Text]:
    balancers = shown.get("balancers")
    if balancers is None:
        return []
    if not balancers:
        return [_line("balancers", "none asks the agent")]
    text = f"{len(balancers)} ask"
    if shown["capacity"] is not None and shown["state"] != DRAINING:
        text += f", each for up to {grouped(share(shown['capacity'], len(balancers)))} at once"
    known = sorted(balancers, key=lambda one: str(one["name"]))
    names = ", ".join(f"{one['name']} {span(one['asked'])} ago" for one in known)
    line = _line("balancers", f"{text}: {names}")
    line.no_wrap = False  # a name that is cut off might be the one that is missing
    return [line]


def _limits(shown: LoadReport) -> list[Text]:
    lines = [_line("in force", str(alike)) for alike in in_force(shown)]
    for line in lines:
        line.no_wrap = False
    return lines


def _line(name: str, text: str) -> Text:
    return Text.assemble((f"{name:<11}", "dim"), text, no_wrap=True, overflow="ellipsis")
