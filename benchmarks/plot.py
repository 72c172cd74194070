"""Draws the pictures of the docs from what benchmarks have written with ``--json``.

    python benchmarks/outside.py --json outside.json
    python benchmarks/plot.py outside.json docs/outside.png

The picture of the demo, ``docs/demo.png``, is drawn by ``busyguard demo`` itself.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

OURS = "bulkhead"


def draw_outside(report: dict[str, Any]) -> Any:
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
    return figure


# By the key that only the report of one benchmark has.
DRAWN = {"seconds": draw_outside}


def drawn(report: dict[str, Any]) -> Any:
    """Return the picture of a report."""
    for key, draw in DRAWN.items():
        if key in report:
            return draw(report)
    raise ValueError("there is no picture of it; there is one of outside.py")


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, metavar="REPORT.json")
    parser.add_argument("picture", type=Path, metavar="PICTURE.png")
    said = parser.parse_args()
    try:
        figure = drawn(json.loads(said.report.read_text()))
    except (OSError, ValueError) as error:
        parser.error(f"{said.report}: {error}")
    figure.savefig(said.picture, dpi=110)


if __name__ == "__main__":
    main()
