"""The picture: goodput, queues and checks over time, a column for each act."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MultipleLocator,
    NullLocator,
    PercentFormatter,
)

from .narration import outcome
from .story import SLOWER

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .acts import Act
    from .figures import Record

BIN = 1.0  # seconds that a step of the goodput stands for
SIZE, DPI = (16, 9), 100
GREEN, BLUE, ORANGE, RED = "#2a7f3f", "#1f5fa8", "#c96a00", "#c03030"
SHADE = "#f6dcdc"
TICKS = {0.001: "1 ms", 0.01: "10 ms", 0.1: "0.1 s", 1: "1 s", 10: "10 s", 100: "100 s"}


def draw(acts: Sequence[Act], records: Sequence[Record], file: Path) -> None:
    """Draw it."""
    with mpl.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes: Any = figure.subplots(3, len(acts), sharex=True, sharey="row", squeeze=False)
        for column, (act, record) in enumerate(zip(acts, records, strict=True)):
            _column(axes[:, column], act, record)
        axes[0, 0].set_ylabel("goodput: visitors of that\nsecond who got the page")
        axes[1, 0].set_ylabel("requests that wait")
        axes[2, 0].set_ylabel("a health check takes")
        title = f"An outside service is {SLOWER} x slower for {records[0].timeline.blip:.0f} s"
        figure.suptitle(title, fontsize=16, fontweight="bold")
        figure.savefig(file, format="png")


def _column(axes: Any, act: Act, record: Record) -> None:
    goodput, queue, check = axes
    timeline = record.timeline
    for one in axes:
        one.axvspan(timeline.before, timeline.well_again, color=SHADE, zorder=0)
        one.grid(axis="y", color="#e4e4e4")
        one.set_axisbelow(True)
        one.tick_params(labelleft=True)
    goodput.set_title(f"Act {act.name}: {act.title}\n\n", fontweight="bold")
    above = {"transform": goodput.transAxes, "ha": "center", "fontsize": 11}
    goodput.text(0.5, 1.11, act.text, **above)
    color = RED if record.recovery() is None else GREEN
    goodput.text(0.5, 1.03, outcome(record), color=color, fontweight="bold", **above)
    _goodput(goodput, record)
    _queues(queue, record)
    _checks(check, record)
    check.set_xlabel("seconds")
    check.set_xlim(0, timeline.end)
    check.xaxis.set_major_locator(MultipleLocator(5 if timeline.end > 30 else 3))


def _goodput(axes: Any, record: Record) -> None:
    timeline = record.timeline
    starts = [step * BIN for step in range(int(timeline.end / BIN))]
    shares = [record.goodput(start, start + BIN) for start in starts]
    axes.stairs(shares, [*starts, starts[-1] + BIN], color=GREEN, linewidth=2, baseline=None)
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    middle = timeline.before + timeline.blip / 2
    axes.text(middle, 0.93, "slower", ha="center", va="center", color=RED)
    seconds = record.recovery()
    if seconds is not None:
        axes.axvline(timeline.well_again + seconds, color=GREEN, linestyle=":")


def _queues(axes: Any, record: Record) -> None:
    for server in sorted({queue.server for queue in record.queues}):
        own = [queue for queue in record.queues if queue.server == server]
        axes.plot(
            [queue.at for queue in own],
            [queue.queued for queue in own],
            color=ORANGE,
            alpha=1 if server == 0 else 0.55,
            linewidth=1.8,
            label=f"in server {server + 1}",
        )
    axes.plot(
        [balance.at for balance in record.balances],
        [balance.waiting for balance in record.balances],
        color=BLUE,
        linewidth=1.5,
        label="in all HAProxies",
    )
    axes.legend(loc="upper left", fontsize=10, frameon=False)


def _checks(axes: Any, record: Record) -> None:
    answered = [check for check in record.checks if check.answered]
    missing = [check for check in record.checks if not check.answered]
    axes.plot(
        [check.asked for check in answered],
        [check.took for check in answered],
        "o",
        color=BLUE,
        markersize=4,
        label="answered",
    )
    if missing:
        axes.plot(
            [check.asked for check in missing],
            [check.took for check in missing],
            "^",
            color=RED,
            markersize=5,
            label="not answered while we watched",
        )
        axes.legend(loc="lower right", fontsize=10, frameon=False)
    axes.axhline(2, color="#808080", linewidth=1, linestyle="--")
    axes.text(0.3, 2.2, "HAProxy gives up at 2 s", color="#606060", fontsize=10, va="bottom")
    axes.set_yscale("log")
    axes.set_ylim(0.0005, 100)
    axes.yaxis.set_major_locator(FixedLocator(list(TICKS)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: TICKS.get(seconds, "")))
