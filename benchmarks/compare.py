"""Whether a run is worse than another by more than the noise of both.

    python benchmarks/overhead.py --json before.json
    python benchmarks/overhead.py --json after.json       of the other version
    python benchmarks/compare.py before.json after.json   ends with 1 if a figure got worse

What is compared are ratios to something timed in the same rounds, never times. A figure is worse if
it has moved by more than ``--least``, and by more than the noise of the two runs. Where each run
was of several processes (overhead.py), the noise is how far their medians are apart: Welch's t test
says by how much those of equal code would differ, and Holm's rule allows for there being forty
figures, so that of forty comparisons of equal code one calls anything worse. A bootstrap of the
rounds would not do: a process is off by some per cent in all of its rounds. Where there was one
process, the quartiles must not overlap.
"""

from __future__ import annotations

import argparse
import math
import sys
from statistics import mean, variance
from typing import NamedTuple

from figures import MORE, Figure, read

LEAST = 0.05

# How likely equal code may be to have any of its figures called worse, or better.
CHANCE = 0.05


class Change(NamedTuple):
    """What became of a figure.

    :param by: how much worse it is; less than nothing if it is better.
    :param is_noise: whether that may be chance.
    """

    name: str
    before: Figure
    after: Figure
    by: float
    is_noise: bool

    @property
    def is_worse(self) -> bool:
        """Whether it is worse by more than the noise."""
        return self.by > 0 and not self.is_noise

    @property
    def is_better(self) -> bool:
        """Whether it is better by more than the noise."""
        return self.by < 0 and not self.is_noise


def changes(
    before: dict[str, Figure], after: dict[str, Figure], least: float = LEAST
) -> list[Change]:
    """Compare the figures that both runs have."""
    common = {name: (before[name], after[name]) for name in before if name in after}
    moved = apart({name: chance(*pair) for name, pair in common.items()})
    found = []
    for name, (then, now) in common.items():
        by = then.ratio - now.ratio if then.better == MORE else now.ratio - then.ratio
        is_noise = name not in moved or abs(by) <= least * abs(then.ratio)
        found.append(Change(name, then, now, by, is_noise))
    return found


def chance(before: Figure, after: Figure) -> float:
    """Return how likely two runs of equal code are to be so far apart, in either direction."""
    one, other = before.medians, after.medians
    if min(len(one), len(other)) < 2:
        return float(before.low <= after.high and after.low <= before.high)
    parts = [variance(medians) / len(medians) for medians in (one, other)]
    off = abs(mean(other) - mean(one))
    if not sum(parts):
        return float(not off)
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / (len(one) - 1) + parts[1] ** 2 / (len(other) - 1))
    return 2 * beyond(off / math.sqrt(sum(parts)), degrees)


def beyond(t: float, degrees: float, steps: int = 200) -> float:
    """Return how much of Student's distribution lies beyond ``t``, by Simpson's rule."""
    low = math.atan(t / math.sqrt(degrees))
    width = (math.pi / 2 - low) / steps
    heights = [math.cos(low + n * width) ** (degrees - 1) for n in range(steps)]  # at the end: 0
    area = width / 3 * (heights[0] + 4 * sum(heights[1::2]) + 2 * sum(heights[2::2]))
    log = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    return area * math.exp(log) / math.sqrt(math.pi)


def apart(chances: dict[str, float]) -> set[str]:
    """Return those that are no chance, by Holm's rule (1979) for so many at once."""
    found: set[str] = set()
    for name in sorted(chances, key=chances.__getitem__):
        if chances[name] > CHANCE / (len(chances) - len(found)):
            break
        found.add(name)
    return found


def table(found: list[Change]) -> str:
    """Return the comparison in lines, what got worse first."""
    lines = [f"{'':58}{'before':>9}{'quartiles':>17}{'after':>9}{'quartiles':>17}"]
    for each in sorted(found, key=lambda each: (not each.is_worse, each.is_noise)):
        verdict = "WORSE" if each.is_worse else "better" if each.is_better else ""
        numbers = _cells(each.before) + _cells(each.after)
        lines.append(f"{each.name:58}{numbers}  {verdict}".rstrip())
    return "\n".join(lines)


def _cells(figure: Figure) -> str:
    return f"{figure.ratio:9.3g}{f'{figure.low:.3g} - {figure.high:.3g}':>17}"


def main() -> None:
    """Compare two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", metavar="BEFORE.json")
    parser.add_argument("after", metavar="AFTER.json")
    parser.add_argument(
        "--least",
        type=float,
        default=LEAST,
        metavar="SHARE",
        help="less than this share of a figure is nothing; default: %(default)s",
    )
    said = parser.parse_args()
    try:
        before, after = read(said.before), read(said.after)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    found = changes(before, after, said.least)
    if not found:
        parser.error("the two files have no figure in common")
    print(table(found))
    gone = [name for name in before if name not in after]
    if gone:
        print(f"not in {said.after}: {', '.join(gone)}")
    worse = [each.name for each in found if each.is_worse]
    sys.exit(f"worse: {', '.join(worse)}" if worse else 0)


if __name__ == "__main__":
    main()
