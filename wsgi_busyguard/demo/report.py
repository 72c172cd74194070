"""The figures of the acts side by side, as a table and as JSON, and what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from .figures import WELL, WINDOW, Record, Summary, summary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .acts import Act

MARGIN = 0.01  # a difference in goodput that is less than this is none

Rows = dict[str, "Callable[[Record, Summary], str]"]


def table(acts: Sequence[Act], records: Sequence[Record]) -> Table:
    """Return the table."""
    told = Table(title="What visitors and balancers saw", title_justify="left")
    told.add_column()
    for act in acts:
        told.add_column(f"Act {act.name}:\n{act.title}", justify="right")
    both = [(record, summary(record)) for record in records]
    for name, cell in ROWS.items():
        told.add_row(name, *(cell(record, figures) for record, figures in both))
    return told


def small_print(patience: float, possible: float) -> str:
    """Return what the words in the table mean.

    :param possible: the share of the visits that can be served in the blip.
    """
    return (
        f"goodput: of those who arrive then, the share who get the page within {patience:.0f} s, a"
        f" second try included\n"
        f"in the blip: with the outside service the servers can serve {possible:.0%} of the visits"
        f" then, and those who try again after it; in the last act a page comes without it\n"
        f"{WELL:.0%} again: from when on {WELL:.0%} of those who arrive in the next {WINDOW:.0f} s"
        f" get it, and {WELL:.0%} of all who arrive later\n"
        f"p99: of the pages that came, 99 of 100 within that time\n"
        f"calls for people who left: seconds that threads waited for the outside service after"
        f" their visitor had left\n"
        f"servers taken out: each time by one of the balancers"
    )


def verdicts(acts: Sequence[Act], records: Sequence[Record]) -> list[str]:
    """Say of each act whether it is better than the one before."""
    told = []
    shares = [record.goodput(record.timeline.before, record.timeline.end) for record in records]
    for n in range(1, len(acts)):
        more = shares[n] - shares[n - 1]
        word = "better" if more >= MARGIN else "WORSE" if more <= -MARGIN else "NO better"
        told.append(
            f"Act {acts[n].name} ({acts[n].title}) is {word} than act {acts[n - 1].name}: from the"
            f" blip on, {_percent(shares[n])} of the visitors got their page, not"
            f" {_percent(shares[n - 1])}."
        )
    return told


def as_json(acts: Sequence[Act], records: Sequence[Record], **about: object) -> dict[str, Any]:
    """Return everything that was seen, for ``--json``."""
    return {
        **about,
        "timeline": records[0].timeline._asdict(),
        "acts": [
            {
                **act._asdict(),
                **summary(record)._asdict(),
                "series": {
                    "visits": [
                        [_short(v.arrived), v.took and _short(v.took)] for v in record.visits
                    ],
                    "checks": [
                        [_short(c.asked), _short(c.took), c.answered] for c in record.checks
                    ],
                    "queues": [[_short(q.at), q.server, q.queued] for q in record.queues],
                    "balancers": [[_short(b.at), b.waiting, b.up, b.of] for b in record.balances],
                },
            }
            for act, record in zip(acts, records, strict=True)
        ],
        "verdicts": verdicts(acts, records),
    }


def _recovery(record: Record, figures: Summary) -> str:
    if figures.recovery is None:
        return f"not in {record.timeline.after:.0f} s"
    return f"{figures.recovery:.1f} s"


def _slowest_check(record: Record, figures: Summary) -> str:
    # One that was never answered took longer than anybody watched.
    slowest = max(record.checks, key=lambda check: check.took, default=None)
    mark = "> " if slowest is not None and not slowest.answered else ""
    return mark + seconds(figures.slowest_check)


def _percent(share: float) -> str:
    return f"{share:.0%}"


def seconds(value: float | None) -> str:
    """Return a time as the tables have it."""
    if value is None:
        return "none came"
    return f"{value * 1000:.0f} ms" if value < 0.1 else f"{value:.2f} s"


def _short(number: float) -> float:
    return round(number, 4)


ROWS: Rows = {
    "goodput before": lambda _, figures: _percent(figures.goodput_before),
    "goodput in the blip": lambda _, figures: _percent(figures.goodput_during),
    "goodput after": lambda _, figures: _percent(figures.goodput_after),
    f"{WELL:.0%} again after": _recovery,
    "p99 of the pages before": lambda _, figures: seconds(figures.p99_before),
    "p99 of the pages after": lambda _, figures: seconds(figures.p99_after),
    "pages for health checks": lambda _, figures: str(figures.pages_for_checks),
    "pages for people who left": lambda _, figures: str(figures.pages_for_nobody),
    "calls for people who left": lambda _, figures: f"{figures.calls_for_nobody:.0f} s",
    "longest queue in a server": lambda _, figures: str(figures.longest_queue),
    "slowest health check": _slowest_check,
    "servers taken out": lambda _, figures: str(figures.times_down),
}
