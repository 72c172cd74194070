"""What ``busyguard top`` shows: looks in, something that Rich can draw out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Group
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from ..._support.text_values import plain
from ...dashboard.facts import facts
from ...dashboard.formatting import grouped, of, span
from ...dashboard.history import lately, rates
from ...dashboard.processes import READY, STALLED, row_state
from ...dashboard.sentences import NOTE, WRONG, stack_lines, summary
from .details import lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import JustifyMethod, RenderableType

    from ...load_report import LoadKey, LoadReport, ProcessFigures
    from .hosts import HostLook

BLOCKS = "\N{LOWER ONE EIGHTH BLOCK}\u2582\u2583\u2584\u2585\u2586\u2587\N{FULL BLOCK}"

STYLES = {
    "free": "bold green",
    "busy": "bold yellow",
    "draining": "bold blue",
    "absent": "bold red",
    "stalled": "bold red",
}
SERIOUS = ("free", "draining", "busy", "absent", "stalled")

ROWS = {READY: "", STALLED: "bold red"}

KINDS = {WRONG: "bold", NOTE: "dim"}

KEYS = "s sort  t threads  q quit"

COLUMN_GAP = 2

# A name that is cut further says nothing.
SHORTEST_NAME = 15


class Order(NamedTuple):
    """What the keys have chosen.

    :param column: by which column; 0 for the order given.
    :param stacks: whether it is shown in which lines the requests of one host are.
    """

    column: int = 0
    stacks: bool = False


class Column(NamedTuple):
    """A column of a table.

    :param least: the width of the terminal from which on it is shown.
    :param key: what to sort by, the most first.
    """

    name: str
    least: int
    cell: Callable[[Any], Text | str]
    key: Callable[[Any], float]
    is_text: bool = False


def view(hosts: Sequence[HostLook], order: Order, width: int, height: int) -> Group:
    """Return the whole view for a terminal of this size."""
    if len(hosts) == 1:
        return Group(*_host(hosts[0], order, width, height))
    return Group(*_hosts(hosts, order, width, height))


def columns(several: bool, width: int) -> list[Column]:
    """Return the columns that there are to sort by."""
    return [column for column in (HOSTS if several else PROCESSES) if column.least <= width]


# Several hosts


def _hosts(
    hosts: Sequence[HostLook], order: Order, width: int, height: int
) -> Iterable[RenderableType]:
    yield _table(columns(True, width), hosts, order, max(3, height - 3), width)
    yield Text(KEYS, "dim", no_wrap=True, overflow="ellipsis")
    room = height - len(hosts) - 5
    for seen in hosts:
        for text in _wrong(seen):
            if room > 0:
                room -= 1 + (len(seen.name) + len(text) + 2) // width
                yield Text.assemble((f"{seen.name}: ", "dim"), text)


def _wrong(seen: HostLook) -> list[str]:
    if seen.shown is None:
        return [_unanswered(seen)] if seen.number else []
    return [sentence.text for sentence in seen.sentences if sentence.kind == WRONG]


def _unanswered(seen: HostLook) -> str:
    if not seen.number:
        return "It has just been asked."
    last = "" if seen.silent is None else f"; the last answer came {span(seen.silent)} ago"
    return f"no answer: {seen.why}{last}. Trying again every second."


def _state(seen: HostLook) -> Text:
    if seen.shown is None:
        return Text(seen.state, "bold red" if seen.number else "dim", no_wrap=True)
    status = "" if seen.shown["ready"] else " (503)"
    return Text(f"{seen.state}{status}", STYLES.get(seen.state, "bold"), no_wrap=True)


def _figure(key: LoadKey) -> Callable[[HostLook], Text]:
    return lambda seen: _aged(seen, "" if seen.figures is None else grouped(seen.figures[key]))


def _inside(seen: HostLook) -> Text:
    shown = seen.figures
    return _aged(seen, "" if shown is None else of(shown["active"], shown["capacity"]))


def _wait(seen: HostLook) -> Text:
    shown = seen.figures
    if shown is None or seen.state == STALLED:  # then nobody can tell
        return Text("")
    return _aged(seen, span(shown["delay"]))


def _aged(seen: HostLook, text: str) -> Text:
    """Return a figure, greyed where it is the last one of a host that no longer answers."""
    return Text(text, "dim" if seen.shown is None else "")


def _flow(which: int) -> Callable[[HostLook], float]:
    def flow(seen: HostLook) -> float:
        if seen.shown is None or len(seen.looks) < 2:
            return -1.0
        last = rates(seen.looks[-2:])[which][-1]
        return -1.0 if last is None else last

    return flow


def _lost(seen: HostLook) -> float:
    recent = lately(seen.looks) if seen.shown is not None else None
    return -1.0 if recent is None else float(sum(recent.refused.values()))


def _rate(number: float) -> str:
    """Return a number a second; below 0 it is not known."""
    if number < 0:
        return ""
    return f"{number:.1f}" if 0 < number < 9.95 else grouped(number)


def _number(key: LoadKey) -> Callable[[HostLook], float]:
    return lambda seen: -1.0 if seen.shown is None else float(seen.shown[key] or 0)


def _seriousness(seen: HostLook) -> float:
    if seen.shown is None:
        return len(SERIOUS)
    return SERIOUS.index(seen.state) if seen.state in SERIOUS else len(SERIOUS)


def _spark(key: str) -> Callable[[HostLook], Text]:
    return lambda seen: spark([getattr(look, key) for look in seen.looks], 30)


HOSTS = (
    Column("host", 0, lambda seen: Text(seen.name, no_wrap=True), lambda seen: 0.0, is_text=True),
    Column("state", 0, _state, _seriousness, is_text=True),
    Column("queued", 0, _figure("queued"), _number("queued")),
    Column("in the app", 0, _inside, _number("active")),
    Column("wait", 0, _wait, _number("delay")),
    Column("served/s", 80, lambda seen: _rate(_flow(0)(seen)), _flow(0)),
    Column("refused/s", 80, lambda seen: _rate(_flow(1)(seen)), _flow(1)),
    Column("refused/min", 96, lambda seen: _rate(_lost(seen)), _lost),
    Column("queue, 30 s", 132, _spark("queued"), _number("queued"), is_text=True),
    Column("in the app, 30 s", 168, _spark("active"), _number("active"), is_text=True),
)


# One host


def _host(seen: HostLook, order: Order, width: int, height: int) -> Iterable[RenderableType]:
    state = _state(seen)
    yield Text.assemble(state, "  ", (seen.name, "dim"), "  ", (KEYS, "dim"))
    shown = seen.figures
    if seen.shown is None:
        yield Text(_unanswered(seen))
    if shown is None:
        return
    figures = Group(*_figures(seen, shown, order, width, height))
    yield figures if seen.shown is not None else Styled(figures, "dim")


def _figures(
    seen: HostLook, shown: LoadReport, order: Order, width: int, height: int
) -> Iterable[RenderableType]:
    """Return the figures of one host: those of now, or the last there were."""
    known = facts(shown)
    short = summary(shown)
    used = 5 + len(short) // width + len(known) // width
    yield Text(known, "dim")
    yield Text(short)
    for sentence in seen.sentences:
        used += 1 + (len(sentence.text) + len(sentence.do) + 3) // width
        kind = KINDS.get(sentence.kind, "")
        yield Text.assemble((f"  {sentence.text}", kind), f" {sentence.do}" if sentence.do else "")
    for line in _stacks(shown) if order.stacks else ():
        used += 1 + (len(line) + 2) // width
        yield Text(f"  {line}")
    yield Text()
    charts = _charts(seen, width)
    yield from charts
    last = lines(seen, shown)
    rows = _rows(shown)
    used += len(charts) + sum(1 + len(line) // width for line in last) + 3
    if rows:
        yield Text()
        yield _table(columns(False, width), rows, order, max(3, height - used), width)
    yield Text()
    yield from last


def _stacks(shown: LoadReport) -> list[str]:
    off = "Not to be seen: the server has no show_stacks, or its check port is another process."
    return [plain(line) for line in stack_lines(shown)] or [off]


def _charts(seen: HostLook, width: int) -> list[Text]:
    looks = seen.looks
    served, refused = rates(looks)
    lines: list[tuple[str, Sequence[float | None], Callable[[Any], str]]] = [
        ("queue", [look.queued for look in looks], grouped),
        ("in the app", [look.active for look in looks], grouped),
        ("wait", [look.delay for look in looks], span),
        ("served/s", served, _rate),
        ("refused/s", refused, _rate),
    ]
    room = max(10, min(width - 36, 120))
    drawn = []
    for name, values, say in lines:
        known = [value for value in values if value is not None]
        if known and not (name == "wait" and seen.state == STALLED):
            line = Text.assemble((f"{name:<11}", "dim"), f"{say(known[-1]):>10} ", no_wrap=True)
            drawn.append(line + spark(values, room) + Text(f" {say(max(known))}", "dim"))
    return drawn


def _rows(shown: LoadReport) -> list[ProcessFigures]:
    return [{**row, "state": row_state(row, shown)} for row in shown.get("processes") or ()]


def _beat(row: ProcessFigures) -> str:
    return "" if row["beat"] is None else f"{span(row['beat'])} ago"


def _row_state(row: ProcessFigures) -> Text:
    return Text(row["state"], ROWS.get(row["state"], "bold"))


def _row_wait(row: ProcessFigures) -> str:
    return span(row["waited"]) if row["queued"] else ""


def _row_service(row: ProcessFigures) -> str:
    return "" if row["service"] is None else span(row["service"])


PROCESSES = (
    Column("process", 0, lambda row: str(row["pid"]), lambda row: 0.0, is_text=True),
    Column("state", 0, _row_state, lambda row: float(row["state"] != READY), is_text=True),
    Column("queued", 0, lambda row: grouped(row["queued"]), lambda row: row["queued"]),
    Column(
        "in the app", 0, lambda row: of(row["active"], row["capacity"]), lambda row: row["active"]
    ),
    Column("no thread", 0, _row_wait, lambda row: row["waited"] if row["queued"] else 0.0),
    Column("takes", 80, _row_service, lambda row: row["service"] or 0.0),
    Column("served", 80, lambda row: grouped(row["served"]), lambda row: row["served"] or 0),
    Column("refused", 80, lambda row: grouped(row["refused"]), lambda row: row["refused"] or 0),
    Column("left", 96, lambda row: grouped(row["dropped"]), lambda row: row["dropped"] or 0),
    Column("progress", 96, _beat, lambda row: row["beat"] or 0.0),
)


# Both


def _table(
    shown: Sequence[Column], rows: Sequence[Any], order: Order, room: int, width: int
) -> Table:
    """Return a table, the chosen column marked, of as many rows as there is room for."""
    chosen = shown[order.column % len(shown)] if order.column else None
    if chosen is not None:
        rows = sorted(rows, key=chosen.key, reverse=True)
    heads = [f"{column.name}{'*' if column is chosen else ''}" for column in shown]
    body: list[list[Text | str]] = [[column.cell(row) for column in shown] for row in rows[:room]]
    if len(rows) > room:
        body.append([Text(f"{len(rows) - room} more", "dim"), *[""] * (len(shown) - 1)])
    wide = [max(map(len, cells)) for cells in zip(heads, *body, strict=True)]
    table = Table(box=None, pad_edge=False, padding=(0, COLUMN_GAP, 0, 0), header_style="dim")
    kept = _fitting(wide, width)
    for column, head, least in zip(shown[:kept], heads, wide, strict=False):
        justify: JustifyMethod = "left" if column.is_text else "right"
        if column is shown[0]:  # the one that is cut, where there is no room for all of it
            least = min(least, width - sum(COLUMN_GAP + each for each in wide[1:kept]))
        table.add_column(head, justify=justify, no_wrap=True, width=least)
    for cells in body:
        table.add_row(*cells[:kept])
    return table


def _fitting(wide: Sequence[int], width: int) -> int:
    """Return how many columns fit, the first of which can be cut, but not to nothing."""
    kept = len(wide)
    least = min(wide[0], SHORTEST_NAME)
    while kept > 1 and least + sum(COLUMN_GAP + each for each in wide[1:kept]) > width:
        kept -= 1
    return kept


def spark(values: Sequence[float | None], width: int) -> Text:
    """Return a line of blocks, the newest on the right; nothing is a space, and any is seen."""
    last = list(values)[-width:]
    top = max([value for value in last if value is not None], default=0.0)
    blocks = [" " if not value else BLOCKS[min(7, int(value / top * 8))] for value in last]
    return Text("".join(blocks).rjust(width), "cyan", no_wrap=True)
