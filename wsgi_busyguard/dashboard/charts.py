"""Small charts of the last minutes, as SVG: values in, text out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .history import KEPT_LOOKS

if TYPE_CHECKING:
    from collections.abc import Sequence

# Units of the drawing, which is stretched to fit.
WIDE, HIGH = KEPT_LOOKS, 60

# A chart is at least so many seconds wide: less is no course of anything.
LEAST_SECONDS = 30.0

# What is further apart than this was not looked at in between.
GAP_SECONDS = 3.0


def chart(
    ages: Sequence[float],
    values: Sequence[float | None],
    top: float,
    *,
    line: Sequence[float | None] = (),
    second: Sequence[float | None] = (),
    says: str,
) -> str:
    """Return a drawing of ``values`` as far back as they go, five minutes at most.

    :param ages: how many seconds ago each of them was, the oldest first.
    :param top: the value at the upper edge.
    :param line: a limit to draw above them; ``second``: values that are drawn as the bad ones.
    :param says: the drawing as text, for who cannot see it.
    """
    top = top or 1.0
    drawn = [f'<path class="area" d="{_area(run)}"/>' for run in _runs(ages, values, top)]
    drawn += [f'<path class="line" d="{_path(run)}"/>' for run in _runs(ages, values, top)]
    drawn += [f'<path class="limit" d="{_path(run)}"/>' for run in _runs(ages, line, top)]
    drawn += [f'<path class="second" d="{_path(run)}"/>' for run in _runs(ages, second, top)]
    return (
        f'<svg viewBox="0 -2 {WIDE} {HIGH + 4}" preserveAspectRatio="none" role="img"'
        f' aria-label="{says}">{"".join(drawn)}</svg>'
    )


def reach(ages: Sequence[float]) -> float:
    """Return how many seconds a chart of these looks shows."""
    return min(float(KEPT_LOOKS), max([LEAST_SECONDS, *ages]))


def _runs(
    ages: Sequence[float], values: Sequence[float | None], top: float
) -> list[list[tuple[float, float]]]:
    """Return the points, cut where a value is missing or nobody looked."""
    runs: list[list[tuple[float, float]]] = []
    before, wide = None, reach(ages)
    for age, value in zip(ages, values, strict=False):
        if value is None or age > KEPT_LOOKS:
            before = None
            continue
        if before is None or before - age > GAP_SECONDS:
            runs.append([])
        runs[-1].append((WIDE * (1 - age / wide), HIGH * (1 - min(value / top, 1.0))))
        before = age
    return [run for run in runs if len(run) > 1]


def _path(run: Sequence[tuple[float, float]]) -> str:
    """Return the line through these points, without those that change nothing."""
    kept = [
        point
        for n, point in enumerate(run)
        if n in (0, len(run) - 1) or not run[n - 1][1] == point[1] == run[n + 1][1]
    ]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in kept)


def _area(run: Sequence[tuple[float, float]]) -> str:
    return f"{_path(run)}L{run[-1][0]:.1f} {HIGH}L{run[0][0]:.1f} {HIGH}Z"
