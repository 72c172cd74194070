"""What there is to say of the processes of a host: whether they are there, and whether they get on.

Figures in, text out; see ``sentences.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..policy import ABSENT, DRAINING
from .formatting import many, span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..load_report import LoadReport, ProcessFigures
    from .history import Look

FREE, BUSY, STALLED = "free", "busy", "stalled"

READY = "ready"  # of a process

# A process beats four times a second.
SILENT_SECONDS = 5.0

# A wait that is worth a sentence: clients begin to notice.
LONG_WAIT_SECONDS = 0.5

# So many of the threads, and it is no longer some request that always takes long.
MANY_SHARE = 0.5

MOST_NAMED = 3


def shown_state(shown: LoadReport) -> str:
    """Return the state: one more than checks know, for processes that are stuck."""
    state = str(shown["state"])
    return STALLED if state in (FREE, BUSY) and shown.get("alive") is False else state


def row_state(row: ProcessFigures, shown: LoadReport) -> str:
    """Return the state of a process; one that is stuck does not post that itself."""
    state = str(row["state"])
    if state != READY:
        return state
    stuck = shown_state(shown) == STALLED or (row["beat"] or 0.0) > SILENT_SECONDS
    return STALLED if stuck else state


def absent(shown: LoadReport, _: Sequence[Look]) -> str | None:
    """Say that none has been there to serve for a while."""
    if shown["state"] != ABSENT:
        return None
    starting = sum(row["state"] == "starting" for row in shown.get("processes", ()))
    soon = f" {many(starting, 'process is', 'processes are')} starting." if starting else ""
    return f"No process is there to serve: does the app start at all? See the server's log.{soon}"


def empty(shown: LoadReport, _: Sequence[Look]) -> str | None:
    """Say that none is there, as checks do not yet."""
    if shown["state"] in (ABSENT, DRAINING) or not deserted(shown):
        return None
    return "No process is there to serve. Checks will say so, if none comes in a moment."


def deserted(shown: LoadReport) -> bool:
    """Return whether there is no process at all now."""
    return shown.get("processes") == [] and shown["capacity"] is None and not shown["active"]


def stalled(shown: LoadReport, _: Sequence[Look]) -> str | None:
    """Say that none makes progress."""
    if shown_state(shown) != STALLED:
        return None
    beats = [row["beat"] or 0.0 for row in ready(shown)]
    since = f" for {span(min(beats))}" if beats else ""
    return (
        f"No process has made any progress{since}: is the machine out of memory, are they stopped,"
        " or does a call keep the interpreter's lock? A restart may help."
    )


def ready(shown: LoadReport) -> list[ProcessFigures]:
    """Return those that say they are ready."""
    return [row for row in shown.get("processes", ()) if row["state"] == READY]


def held(shown: LoadReport) -> bool:
    """Return whether it is processes that make no progress which keep requests in the app."""
    rows = ready(shown)
    moving = [row for row in rows if row_state(row, shown) != STALLED]
    room = sum(row["capacity"] or 0 for row in moving)
    return len(moving) < len(rows) and sum(row["active"] for row in moving) < MANY_SHARE * room


def silent(shown: LoadReport, _: Sequence[Look]) -> str | None:
    """Say which make no progress, where others do."""
    silent = [row for row in ready(shown) if row_state(row, shown) == STALLED]
    if not silent or shown_state(shown) == STALLED:
        return None
    silent.sort(key=lambda row: -(row["beat"] or 0.0))
    names = ", ".join(str(row["pid"]) for row in silent[:MOST_NAMED])
    more = f" and {len(silent) - MOST_NAMED} more" if len(silent) > MOST_NAMED else ""
    if len(silent) == 1:
        return f"Process {names} has made no progress for {span(silent[0]['beat'])}."
    least = min(row["beat"] or 0.0 for row in silent)
    return f"Processes {names}{more} have made no progress for {span(least)} and longer."


def uneven(shown: LoadReport, _: Sequence[Look]) -> str | None:
    """Say that some have too much to do and others too little."""
    rows = [row for row in ready(shown) if row_state(row, shown) == READY]
    behind = [row for row in rows if row["queued"] and row["waited"] >= LONG_WAIT_SECONDS]
    idle = sum(row["idle"] or 0 for row in rows if not row["queued"])
    if not behind or not idle:
        return None
    queued = sum(row["queued"] for row in behind)
    waits = "request waits" if queued == 1 else "requests wait"
    where = f"{len(behind)} of {len(rows)} processes"
    threads = many(idle, "thread is", "threads are")
    return f"{queued} {waits} in {where} while {threads} idle in others."


def coming_and_going(shown: LoadReport, _: Sequence[Look]) -> str | None:
    """Say how many start and stop."""
    if shown["state"] in (ABSENT, DRAINING):
        return None
    states = [row["state"] for row in shown.get("processes", ())]
    parts = [
        f"{many(states.count(state), 'process is', 'processes are')} {state}"
        for state in ("starting", "stopping")
        if state in states
    ]
    return f"{' and '.join(parts)}." if parts else None
