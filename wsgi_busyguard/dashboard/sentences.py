"""What is wrong, in plain English: figures in, sentences out.

For a person who has been woken up. A sentence says what is seen, with its figures; where it only
guesses at the cause, it asks. Nothing here reads a clock or knows where the figures come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .._support.text_values import plain
from ..load import LAG_BUSY
from ..policy import ABSENT, DRAINING, Reason
from .bulkheads import failing
from .formatting import many, of, span
from .history import gone, lately, stuck_for
from .limits import disabled, fewer
from .processes import (
    BUSY,
    FREE,
    MANY_SHARE,
    MOST_NAMED,
    STALLED,
    absent,
    coming_and_going,
    deserted,
    empty,
    held,
    ready,
    shown_state,
    silent,
    stalled,
    uneven,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..load_report import LineFigures, LoadReport, StackFigures
    from .history import Look

    Rule = Callable[[LoadReport, Sequence[Look]], "str | None"]

WRONG, NOTE, WELL = "wrong", "note", "well"

# Seconds after which threads that do not come back are worth a sentence, if requests are mostly
# quicker; and after which they are whatever is usual.
STUCK_SECONDS, STUCK_ANYHOW_SECONDS = 5.0, 30.0

# What to do where requests do not come back.
LOOK_INSIDE = (
    "show_stacks=True shows the lines they are in; give calls to other services a timeout, and a"
    " bulkhead."
)

# What to do where somebody said busyguard drain.
AFTER_DRAINING = "Stop it once its balancers have left, or take it back with busyguard drain --off."

# So many changes of the state within a minute are a nuisance to balancers: ``damped`` is made to
# stay below two as they see them.
RESTLESS_CHANGES = 6


class Sentence(NamedTuple):
    """Something to say.

    :param kind: ``"wrong"``; ``"note"`` for what may be all right; ``"well"``.
    :param do: what to do next, where there is anything.
    """

    kind: str
    text: str
    do: str = ""


def sentences(shown: LoadReport, looks: Sequence[Look] = ()) -> list[Sentence]:
    """Return what there is to say, what is wrong first.

    :param shown: what ``/load`` shows.
    :param looks: the last minutes, the oldest first.
    """
    found = [Sentence(kind, text, do) for kind, rule, do in RULES if (text := rule(shown, looks))]
    if not any(sentence.kind == WRONG for sentence in found) and shown["state"] == FREE:
        found.insert(0, Sentence(WELL, _all_well(shown)))
    return found


def stack_lines(shown: LoadReport) -> list[str]:
    """Return in which lines the requests are, those with the most first."""
    stacks = shown.get("stacks")
    if stacks is None:
        return []
    if stacks["why"] is not None:
        return [f"Not to be seen: {stacks['why']}."]
    return [stack_line(line, stacks) for line in stacks["lines"]] or ["No request is in the app."]


def stack_line(line: LineFigures, stacks: StackFigures) -> str:
    """Return as text how many threads are in a line, and for how long."""
    least = "" if stacks["complete"] else "at least "
    oldest = "" if line["oldest"] is None else f", oldest {span(line['oldest'])}"
    return f"{line['threads']} of {least}{stacks['threads']} in {line['at']}{oldest}"


def summary(shown: LoadReport) -> str:
    """Return the figures that matter most, and what balancers make of them, in a sentence."""
    queued, delay = shown["queued"], shown["delay"]
    waits = "nobody waits" if not queued else f"{many(queued, 'request')} waiting"
    answer = "ready (200)" if shown["ready"] else "not ready (503)"
    state, stuck = shown["state"], shown_state(shown) == STALLED
    # What comes now is refused in a shutdown, and of processes that are stuck nobody can tell.
    late = f", one that comes now waits {span(delay)}" if delay and state != DRAINING else ""
    inside = of(shown["active"], shown["capacity"])
    if stuck:
        inside, late, answer = f"When last heard of: {inside}", "", f"{answer}; live: no (503)"
    return f"{inside} in the app, {waits}{late}. Balancers are told: {answer}."


def _all_well(shown: LoadReport) -> str:
    queued = shown["queued"]
    return "Nothing is wrong." if not queued else "Nothing is wrong: the queue is moving."


def _drain_was_asked(shown: LoadReport, _: Sequence[Look]) -> str | None:
    # A process that shuts down says so itself.
    if shown["state"] != DRAINING or not ready(shown):
        return None
    return "The server was told to drain: every check says so, and requests are served as before."


def _shutting_down(shown: LoadReport, _: Sequence[Look]) -> str | None:
    if shown["state"] != DRAINING or ready(shown):
        return None
    left = shown["active"] + shown["queued"]
    rest = f"{many(left, 'request')} to finish" if left else "no request is left to finish"
    return f"The server is shutting down: {rest}. New ones should go elsewhere."


def _stuck(shown: LoadReport, looks: Sequence[Look]) -> str | None:
    if shown_state(shown) == STALLED:
        return None  # then nothing comes out of anywhere
    usual = _usual(shown)
    if usual is None:  # nothing has ever come out; it is worse where somebody waits for it
        least = (
            STUCK_SECONDS if shown["state"] == BUSY and shown["queued"] else STUCK_ANYHOW_SECONDS
        )
    else:
        least = max(STUCK_SECONDS, min(STUCK_ANYHOW_SECONDS, 3 * usual))
    full, many_of_them = stuck_for(looks), stuck_for(looks, MANY_SHARE)
    if full >= least:
        which = "The only thread" if shown["capacity"] == 1 else "Every thread"
        return f"{which} has been in the app for more than {span(int(full))}: the outside service?"
    if many_of_them >= least and not held(shown):
        inside = of(shown["active"], shown["capacity"])
        return (
            f"Nothing has come out of the app for {span(int(many_of_them))}, with {inside} threads"
            " in it: the outside service?"
        )
    return None


def _usual(shown: LoadReport) -> float | None:
    counts = shown.get("counts")
    if not counts:
        return None
    times = counts["service_time"]
    served = sum(times["counts"])
    return float(times["total"]) / served if served else None


def _slow(shown: LoadReport, looks: Sequence[Look]) -> str | None:
    """Where nobody counts what comes back, the age of what is inside is all there is."""
    service, idle = shown.get("service"), shown["idle"]
    counted = bool(looks) and looks[-1].served is not None
    if counted or idle is None or idle > 0 or service is None or service < STUCK_SECONDS:
        return None
    return f"Every thread is in the app and a request takes {span(service)}: the outside service?"


def _queue(shown: LoadReport, looks: Sequence[Look]) -> str | None:
    if shown["state"] != BUSY or not shown["queued"]:
        return None
    # Not one request's wait: those who wait may have given up and been replaced meanwhile.
    since = f"; nobody has got one for {span(shown['waited'])}" if shown.get("waited") else ""
    verb = "waits" if shown["queued"] == 1 else "wait"
    return f"{many(shown['queued'], 'request')} {verb} for a thread{since}."


def _full(shown: LoadReport, looks: Sequence[Look]) -> str | None:
    if shown_state(shown) != BUSY or shown["queued"] or (shown.get("lag") or 0.0) >= LAG_BUSY:
        return None
    if _stuck(shown, looks) or _slow(shown, looks):
        return None  # which says more
    return "Every thread is in the app, and nobody waits: the queue has just gone."


def _late(shown: LoadReport, _: Sequence[Look]) -> str | None:
    lag = shown.get("lag") or 0.0
    if lag < LAG_BUSY:
        return None
    if shown["queued"] and shown["idle"] == 0:
        why = "every thread is in the app, or something computes"
    else:
        why = "something computes, or no file descriptor or connection is left"
    return f"The server takes new connections in {span(lag)} late: {why}."


def _refused(shown: LoadReport, looks: Sequence[Look]) -> str | None:
    recent = lately(looks)
    if recent is None or not any(recent.refused.values()):
        return None
    if shown["state"] == DRAINING and not any(
        n for why, n in recent.refused.items() if why != GOES
    ):
        return None  # which is as it should be
    total = sum(recent.refused.values())
    whys = [(n, _WHY[why]) for why, n in recent.refused.items() if n]
    why = whys[0][1] if len(whys) == 1 else "; ".join(f"{n} as {why}" for n, why in whys)
    within = f"in {_within(recent.seconds)}"
    within += f" ({total / (total + recent.served):.0%})" if recent.served else ", and none served"
    return f"{many(total, 'request was', 'requests were')} refused {within}: {why}."


GOES = Reason.DRAINING.value

_WHY = {
    Reason.QUEUE_FULL.value: "the queue was full",
    Reason.QUEUE_AGE.value: "the wait was too long",
    GOES: "the server is shutting down",
}


def _within(seconds: float) -> str:
    return "the last minute" if seconds > 55 else f"the last {span(max(1, round(seconds)))}"


def _left(shown: LoadReport, looks: Sequence[Look]) -> str | None:
    recent = lately(looks)
    if recent is None or not recent.dropped:
        return None
    clients = many(recent.dropped, "client")
    return f"{clients} left in {_within(recent.seconds)} before being served."


def _restless(shown: LoadReport, _: Sequence[Look]) -> str | None:
    at = shown["at"]
    recent = [c for c in shown.get("changes", ()) if 0 <= at - c["at"] <= 60]
    if len(recent) < RESTLESS_CHANGES:
        return None
    return f"The state has changed {len(recent)} times in the last minute, between free and busy."


def _unasked(shown: LoadReport, looks: Sequence[Look]) -> str | None:
    recent = lately(looks)
    if recent is None or recent.seconds < 55 or looks[-1].asked is None:
        return None
    if recent.asked or shown.get("balancers"):
        return None
    return "Nobody has asked for the state in the last minute: does a balancer check this server?"


def _no_balancer(shown: LoadReport, looks: Sequence[Look]) -> str | None:
    lost = None if shown.get("balancers") else _balancers_gone(looks)
    return f"No balancer asks the agent any more: {lost}" if lost else None


def _fewer_balancers(shown: LoadReport, looks: Sequence[Look]) -> str | None:
    lost = _balancers_gone(looks) if shown.get("balancers") else None
    return f"Balancers that no longer ask the agent: {lost}" if lost else None


def _balancers_gone(looks: Sequence[Look]) -> str | None:
    lost = gone(looks)
    if not lost:
        return None
    names = ", ".join(
        f"{plain(name)} (last seen {span(ago)} ago)" for name, ago in lost[:MOST_NAMED]
    )
    more = f" and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
    return f"{names}{more}."


def _unlimited(shown: LoadReport, _: Sequence[Look]) -> str | None:
    if shown["capacity"] is not None or shown["state"] == ABSENT or deserted(shown):
        return None
    if shown.get("processes"):
        return "How many requests may be in the app at once is not known for every process."
    return "How many requests may be in the app at once is not known: checks say free."


RULES: tuple[tuple[str, Rule, str], ...] = (
    (WRONG, absent, ""),
    (WRONG, empty, "If none comes, read the server's log."),
    (WRONG, stalled, ""),
    (NOTE, disabled, "When the trouble is over, take the variable away and restart the server."),
    (NOTE, _drain_was_asked, AFTER_DRAINING),
    (NOTE, _shutting_down, ""),
    (WRONG, _stuck, LOOK_INSIDE),
    (WRONG, _slow, LOOK_INSIDE),
    (WRONG, failing, "See how that service is; calls go out again by themselves once it is well."),
    (WRONG, _late, "See what computes (show_stacks), and the log for 'Too many open files'."),
    (WRONG, _queue, "If it stays: more servers, or less work for each request."),
    (NOTE, _full, ""),
    (WRONG, _refused, "If it goes on, add servers: utilisation in /load says how many it takes."),
    (WRONG, silent, "If that goes on, end it: its server puts another one in its place."),
    (WRONG, uneven, "Keep-alive holds clients to one process: turn it off, or use GuardedThreads."),
    (WRONG, _no_balancer, "See whether the balancers run, and reach the agent port."),
    (NOTE, _fewer_balancers, "See whether they run, and reach the agent port."),
    (NOTE, fewer, "Nothing is to be done: more at once would all be slower."),
    (NOTE, _left, "If there are many, set client_timeout to what your clients really wait."),
    (NOTE, _restless, "ready=damped, the default, spares the balancers that."),
    (NOTE, coming_and_going, ""),
    (NOTE, _unlimited, "Give slots=, or serve with a server whose queue the guard can read."),
    (NOTE, _unasked, "If one should, let it ask OPTIONS / or /readyz."),
)
