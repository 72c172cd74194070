"""What a benchmark says in JSON: ratios with their quartiles, which are all that can be compared.

A file of a run has ``"figures"``, and there by name ``ratio``, ``low``, ``high``, what is
``better``: ``"less"``, which is meant where nothing is said, or ``"more"``, and, where it was
measured in several processes, the median of each as ``medians``.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

LESS, MORE = "less", "more"


class Figure(NamedTuple):
    """A median of ratios and its quartiles.

    :param better: whether less of it is better, or more.
    :param medians: those of several processes. Where a dict lies, and in what order a set is,
        makes a process a few per cent slower in all its rounds, so these tell what no round can.
    """

    ratio: float
    low: float
    high: float
    better: str = LESS
    medians: tuple[float, ...] = ()


def figure(values: Iterable[float], better: str = LESS) -> Figure | None:
    """Return the median and the quartiles of the ratios of a run; None of none."""
    found = list(values)
    if not found:
        return None
    if len(found) == 1:
        found *= 2
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return Figure(middle, low, high, better)


def as_json(figures: dict[str, Figure | None]) -> dict[str, Any]:
    """Return the figures as a file has them; those of which nothing was seen are left out."""
    return {name: each._asdict() for name, each in figures.items() if each is not None}


def machine() -> dict[str, Any]:
    """Return what there is to know of the machine and the day."""
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def read(file: str | Path) -> dict[str, Figure]:
    """Return the figures of a file that a benchmark has written with ``--json``."""
    found = json.loads(Path(file).read_text()).get("figures")
    if not isinstance(found, dict):
        raise ValueError(f"{file} has no figures: write it with a benchmark's --json")
    fields = Figure._fields
    return {
        name: Figure(**{field: said[field] for field in fields if field in said})
        for name, said in found.items()
    }
