"""Draws the pictures of the docs from the JSON that a run has written with ``--json``.

    python benchmarks/outside.py --json outside.json
    python benchmarks/plot.py outside.json docs/outside.png
    busyguard demo --json demo.json
    python benchmarks/plot.py demo.json docs/demo.png

``docs/page.png`` is no figure of a run but a photograph of the page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from wsgi_busyguard.demo.acts import Act
from wsgi_busyguard.demo.figures import (
    AskedCheck,
    BalancersSeen,
    PageVisit,
    QueuePeak,
    Record,
    Timeline,
)
from wsgi_busyguard.demo.picture import draw

OURS = "bulkhead"


def draw_outside(report: dict[str, Any], picture: Path) -> None:
    """Draw what part of the quick views was served in each second, with an axis a server."""
    servers = report["seconds"]
    figure, axes = pyplot.subplots(
        len(servers), 1, figsize=(9, 2.8 * len(servers)), squeeze=False, layout="tight"
    )
    for axis, (server, run) in zip(axes[:, 0], servers.items(), strict=True):
        for kind, served in run["served"].items():
            if "all well" not in kind:
                axis.plot(served, label=kind, lw=2.5 if kind == OURS else 1.2)
        axis.axvspan(*run["hangs"], color="0.93")
        axis.set(ylim=(-3, 103), ylabel="% served", title=f"{server}: views that do not call it")
    axes[-1, 0].set_xlabel("s; grey: the outside service hangs")
    axes[0, 0].legend(fontsize=8, ncols=2)
    figure.savefig(picture, dpi=110)


def draw_demo(report: dict[str, Any], picture: Path) -> None:
    """Draw what ``busyguard demo`` draws at its end."""
    records = []
    for act in report["acts"]:
        seen = act["series"]
        record = Record(Timeline(**report["timeline"]), report["patience"])
        record.visits = [PageVisit(*each) for each in seen["visits"]]
        record.checks = [AskedCheck(*each) for each in seen["checks"]]
        record.queues = [QueuePeak(*each) for each in seen["queues"]]
        record.balances = [BalancersSeen(*each) for each in seen["balancers"]]
        records.append(record)
    acts = [Act(act["name"], act["title"], act["text"]) for act in report["acts"]]
    draw(acts, records, picture)


# By the key that only the report of one benchmark has.
DRAWN = {"acts": draw_demo, "seconds": draw_outside}


def draw_report(report: dict[str, Any], picture: Path) -> None:
    """Draw the picture of a report."""
    for key, draw_it in DRAWN.items():
        if isinstance(report.get(key), (dict, list)):
            return draw_it(report, picture)
    raise ValueError("there is no picture of it; there are those of outside.py and of the demo")


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, metavar="REPORT.json")
    parser.add_argument("picture", type=Path, metavar="PICTURE.png")
    said = parser.parse_args()
    try:
        draw_report(json.loads(said.report.read_text()), said.picture)
    except (OSError, ValueError) as error:
        parser.error(f"{said.report}: {error}")


if __name__ == "__main__":
    main()
