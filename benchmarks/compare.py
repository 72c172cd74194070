"""Whether a run is worse than another by more than the noise of both.

    python benchmarks/overhead.py --json before.json
    python benchmarks/overhead.py --json after.json       of the other version
    python benchmarks/compare.py before.json after.json   ends with 1 if a figure got worse

What is compared are ratios to something timed in the same rounds, never times. A figure is worse if
its median has moved by more than ``--least``, and by more than the noise of the two runs: their
quartiles do not overlap, or what these and the number of rounds tell of the medians
(:attr:`figures.Figure.bounds`). Two runs of the same code differ by a few per cent that no round
sees, such as where a dict happens to lie: run what is worse once more.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

from figures import MORE, Figure, read

LEAST = 0.05


class Change(NamedTuple):
    """What became of a figure.

    :param by: how much worse its median is; less than nothing if it is better.
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


def change(name: str, before: Figure, after: Figure, least: float = LEAST) -> Change:
    """Compare two runs of a figure."""
    moved = after.ratio - before.ratio
    (low, high), (then_low, then_high) = before.bounds, after.bounds
    overlap = low <= then_high and then_low <= high
    is_noise = overlap or abs(moved) <= least * abs(before.ratio)
    return Change(name, before, after, -moved if before.better == MORE else moved, is_noise)


def changes(
    before: dict[str, Figure], after: dict[str, Figure], least: float = LEAST
) -> list[Change]:
    """Compare the figures that both runs have."""
    return [change(name, before[name], after[name], least) for name in before if name in after]


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
