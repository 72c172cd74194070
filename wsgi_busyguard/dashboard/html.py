"""The parts of the page: figures in, HTML out, everything escaped."""

from __future__ import annotations

from html import escape
from time import gmtime, strftime
from typing import TYPE_CHECKING, Literal

from .._support.text_values import plain
from ..policy import DRAINING, share
from .facts import facts, where
from .formatting import DASH, grouped, length, many, of, span
from .history import lengths
from .last_minutes import minutes
from .limits import in_force
from .processes import READY, STALLED, row_state, shown_state
from .sentences import sentences, stack_lines, summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..load_report import LoadReport
    from .history import Look


KNOWN = ("free", "busy", "draining", "absent", STALLED)

# More rows than this make a page that nobody reads; the busiest come first then.
MOST_ROWS = 64


PROCESS_HEADS = (
    "process",
    "state",
    "queued",
    "in the app",
    "no thread for",
    "a request takes",
    "served",
    "refused",
    "left",
    "progress",
)


COUNTED_CALLS: tuple[Literal["made", "slow", "refused"], ...] = ("made", "slow", "refused")


def parts(shown: LoadReport, looks: Sequence[Look]) -> dict[str, str]:
    """Return the parts of the page by their ids.

    :param shown: what ``/load`` shows.
    :param looks: the last minutes, the oldest first.
    """
    return {
        "state": _state(shown),
        "sentences": _sentences(shown, looks),
        "stacks": _stacks(shown),
        "charts": minutes(shown, looks),
        "lengths": _lengths(looks),
        "processes": _processes(shown),
        "changes": _changes(shown),
        "bulkheads": _bulkheads(shown),
        "balancers": _balancers(shown),
        "counts": _counts(shown),
        "limits": _limits(shown),
    }


def title(shown: LoadReport) -> str:
    """Return what the browser's tab says: the state first, for there is little room."""
    named = [plain(name) for name in (where(shown), shown.get("app")) if name]
    return " \N{MIDDLE DOT} ".join([shown_state(shown), *named, "busyguard"])


def _state(shown: LoadReport) -> str:
    state = shown_state(shown)
    kind = state if state in KNOWN else "busy"
    return (
        f'<div class="state {kind}"><h1>{escape(state)}</h1>'
        f'<p class="facts">{escape(facts(shown))}</p>'
        f"<p>{escape(summary(shown))}</p>"
        f'<p class="at">{_time(shown["at"])} UTC</p></div>'
    )


def _sentences(shown: LoadReport, looks: Sequence[Look]) -> str:
    items = [
        f'<li class="{s.kind}">{escape(s.text)}{_do(s.do)}</li>' for s in sentences(shown, looks)
    ]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _do(what: str) -> str:
    return f' <span class="do">{escape(what)}</span>' if what else ""


def _stacks(shown: LoadReport) -> str:
    lines = stack_lines(shown)
    if not lines:
        return ""
    items = "".join(f"<li>{escape(plain(line))}</li>" for line in lines)
    return _section("What holds the slots", f"<ul>{items}</ul>")


def _processes(shown: LoadReport) -> str:
    rows = shown.get("processes")
    if rows is None:
        return ""
    hidden = len(rows) - MOST_ROWS
    if hidden > 0:
        rows = sorted(rows, key=lambda row: (-row["queued"], -row["active"]))[:MOST_ROWS]
    body = [
        [
            escape(str(row["pid"])),
            _row_state(row_state(row, shown)),
            grouped(row["queued"]),
            _bar(row["active"], row["capacity"]) + of(row["active"], row["capacity"]),
            span(row["waited"]) if row["queued"] else DASH,
            DASH if row["service"] is None else span(row["service"]),
            *(grouped(row[key]) for key in ("served", "refused", "dropped")),
            DASH if row["beat"] is None else f"{span(row['beat'])} ago",
        ]
        for row in rows
    ]
    more = f"<p>{hidden} more, with less to do.</p>" if hidden > 0 else ""
    none = "<p>There is none.</p>" if not rows else ""
    name = f"Processes: {len(shown['processes'])}"
    note = _note(
        "Queued: accepted, and no thread has it yet. In the app: a thread works on it. No thread"
        " for: how long nobody in the queue has got one. Left: the client hung up before its turn."
        " Progress: when the process last showed that it runs."
    )
    table = _table(PROCESS_HEADS, body, 2) + note if rows else ""
    return _section(name, table + none + more)


def _row_state(state: str) -> str:
    if state == READY:
        return state
    return f'<b class="bad">{state}</b>' if state == STALLED else f"<b>{escape(state)}</b>"


def _bar(part: int, whole: int | None) -> str:
    if not whole:
        return ""
    width = 40 * min(part / whole, 1.0)
    return (
        '<svg class="bar" viewBox="0 0 40 8" aria-hidden="true"><rect class="room" width="40"'
        f' height="8"/><rect class="taken" width="{width:.1f}" height="8"/></svg>'
    )


def _changes(shown: LoadReport) -> str:
    changes = shown.get("changes")
    if changes is None:
        return ""
    times = shown["transitions"]
    text = (
        f"<p>Busy {many(times['busy'], 'time')}, {span(shown['busy_seconds'])} in all.</p>"
        if times["busy"]
        else "<p>It has never been busy.</p>"
    )
    heads = ("at (UTC)", "became", "after", "queued", "in the app", "wait")
    body = [
        [
            _time(change["at"]),
            escape(change["state"]),
            DASH if change["lasted"] is None else span(change["lasted"]),
            grouped(change["queued"]),
            of(change["active"], change["capacity"]),
            span(change["delay"]),
        ]
        for change in reversed(changes)
    ]
    note = _note("Busy: more requests are queued than threads are idle. Free: less again.")
    table = _table(heads, body, 2) if body else ""
    return _section("Changes of the state", text + table + note)


def _bulkheads(shown: LoadReport) -> str:
    bulkheads = shown.get("bulkheads")
    if not bulkheads:
        return ""
    body = [
        [
            escape(plain(one["name"])),
            of(one["inside"], one["at_most"]),
            span(one["oldest"]) if one["inside"] else DASH,
            DASH if one["shut_for"] is None else f"<b>{span(one['shut_for'])}</b>",
            *(grouped(one[key]) for key in COUNTED_CALLS),
        ]
        for one in bulkheads
    ]
    heads = ("service", "in calls", "for up to", "shut for", "calls made", "slow", "not made")
    note = _note("Shut: the service was slow, so calls fail at once, and one at a time probes it.")
    return _section("Calls to outside services", _table(heads, body, 1) + note)


def _balancers(shown: LoadReport) -> str:
    balancers = shown.get("balancers")
    if balancers is None:
        return ""
    if not balancers:
        return _section("Balancers that ask the agent", "<p>None does.</p>")
    body = [
        [escape(plain(one["name"])), f"{span(one['asked'])} ago", f"every {span(one['period'])}"]
        for one in sorted(balancers, key=lambda one: str(one["name"]))
    ]
    heads = ("balancer", "asked", "usually")
    name = f"Balancers that ask the agent: {len(balancers)}"
    return _section(name, _share(shown) + _table(heads, body, 1))


def _share(shown: LoadReport) -> str:
    """Return what the balancers hear, as far as can be known without being one."""
    capacity = shown["capacity"]
    if capacity is None:
        return ""
    if shown["state"] == DRAINING:
        return "<p>Each is told to have 1 request here at once.</p>"
    most = many(share(capacity, len(shown["balancers"])), "request")
    return f"<p>Each may have up to {most} here at once, fewer while others fill the server.</p>"


def _counts(shown: LoadReport) -> str:
    tables = f'<div class="beside">{_requests(shown)}{_checks(shown)}</div>'
    note = _note("Refused: answered 503 without running the app, because a limit was reached.")
    return _section("Counted since the start", tables + note)


def _lengths(looks: Sequence[Look]) -> str:
    took, waited = lengths(looks, "service"), lengths(looks, "waits")
    if took == (None, None):
        return ""
    body = [["in the app", *map(length, took)], ["waiting for a thread", *map(length, waited)]]
    last = looks[-1].at - looks[0].at
    when = "5 minutes" if last > 290 else span(round(last))
    table = _table(("of the requests", "half took", "99 of 100"), body, 1)
    return _section(f"How long requests took in the last {when}", table)


def _limits(shown: LoadReport) -> str:
    tables = [
        f"<div><p>{escape(alike.name)}</p>"
        f"{_table(('limit', 'now', 'from'), [map(escape, row) for row in alike.rows], 1)}</div>"
        for alike in in_force(shown)
    ]
    beside = f'<div class="beside">{"".join(tables)}</div>'
    note = _note(
        "Slots: how many requests may be in the app at once; fewer than given while they only take"
        " Python's interpreter from each other. max_queue and max_wait: how many may queue, and for"
        " how long, in an overload; the rest is refused. ready: when a check says 503."
    )
    return _section("In force", beside + note) if tables else ""


def _requests(shown: LoadReport) -> str:
    counts = shown.get("counts")
    if not counts:
        return "<p>Requests are not counted here: the guard is no gate.</p>"
    body = [
        ["let in", grouped(counts["admitted"])],
        ["served", grouped(counts["served"])],
        *([f"refused: {escape(why)}", grouped(n)] for why, n in counts["refused"].items()),
        ["left before their turn", grouped(counts["dropped"])],
    ]
    return _table(("requests", ""), body, 1)


def _checks(shown: LoadReport) -> str:
    checks = [check for check in shown.get("checks", ()) if check["count"]]
    body = [
        [
            escape(check["policy"]),
            f"{200 if check['ready'] else 503} {escape(check['answer'])}",
            grouped(check["count"]),
        ]
        for check in checks
    ]
    if body:
        return _table(("checks", "answered", ""), body, 2)
    return "<p>Nobody has asked whether it is ready.</p>" if "checks" in shown else ""


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'


def _section(name: str, body: str) -> str:
    return f"<h2>{name}</h2>{body}"


def _table(heads: Iterable[str], body: Iterable[Iterable[str]], texts: int) -> str:
    """Return a table of what is HTML already; the first ``texts`` columns are no numbers."""
    top = "".join(f'<th scope="col">{head}</th>' for head in heads)
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
    kind = f"texts{texts}"
    return (
        f'<div class="table" tabindex="0"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _time(at: float) -> str:
    """Return the time of day in UTC, as logs of several machines have it."""
    return strftime("%H:%M:%S", gmtime(at))
