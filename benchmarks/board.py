"""What a look at the board costs, and what it costs to post.

Run ``python benchmarks/board.py``. A look takes no lock and waits for nobody, so what it takes is
what it computes; here that is CPU time of one thread, as in overhead.py. The unit is a look at one
gate, which is what a process without a board reads.

The rows are of this process, and the clock stands still, so that it stays as it is called: "beat
just now" are processes of which nothing need be known, "silent" are those of which it was looked
up in the last quarter of a second that they are there. "Looked for" is such a look itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from itertools import repeat
from typing import TYPE_CHECKING, Any

from interleaved import Case, Figures, compare

from wsgi_busyguard import Board, Gate, Load, Monitor
from wsgi_busyguard.board.processes import born, is_gone
from wsgi_busyguard.board.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable

GATE, MOST = "one gate, without a board", "1000 processes, beat just now"
SIZES = (1, 4, 32, 256, 1000)


class Crowd:
    """A server that has much to do."""

    def read(self) -> Load:
        """Return the same figures every time."""
        return Load(3, 10, 10, 0.1, 0.05)


class Clock:
    """Stands still."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the same moment every time."""
        return self.now


def posted(processes: int, silent: bool = False, slots: int | None = None) -> list[Publisher]:
    """Return the posters of so many processes on a board of their own."""
    clock = Clock()
    board = Board(slots=slots or processes, clock=clock)
    posters = [Publisher(board, Crowd()) for _ in range(processes)]
    for publisher in posters:
        publisher.join()
        publisher.ready()
    if silent:
        clock.now += 1
    return posters


def repeated(function: Callable[[], Any]) -> Callable[[int], None]:
    """Return a loop that calls ``function``."""

    def run(times: int) -> None:
        for _ in repeat(None, times):
            function()

    return run


def cases(kept: list[Any]) -> list[Case]:
    """Return the cases; what they need to stay alive is put into ``kept``."""
    gate = Gate(10)
    found = {GATE: gate.read}
    for size in SIZES:
        posters = posted(size)
        kept.append(posters)
        found[f"{size} processes, beat just now"] = posters[0].board.read
    silent, sparse, mine = posted(1000, silent=True), posted(4, slots=1000), posted(4)
    publisher = mine[0]
    kept += [silent, sparse, mine]
    pid, since = os.getpid(), born(os.getpid(), 0)
    found |= {
        "1000 processes, silent": silent[0].board.read,
        "4 processes, 1000 slots": sparse[0].board.read,
        "1000 processes, their rows": kept[len(SIZES) - 1][0].board.rows,
        "one process, looked for": lambda: is_gone(pid, since),
        "post": publisher.post,
        "check, one gate": Monitor(gate).check,
        "check, a publisher among 4": Monitor(publisher).check,
    }
    return [Case(name, repeated(function), GATE) for name, function in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description="How long does a look at the board take?")
    parser.add_argument("--rounds", type=int, default=100, help="default: %(default)s")
    parser.add_argument(
        "--slice",
        type=float,
        default=4,
        metavar="MS",
        help="CPU for each case in a round; default: %(default)s ms",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    args = parser.parse_args()
    kept: list[Any] = []
    found = compare(cases(kept), args.rounds, args.slice)
    print(f"{platform.python_implementation()} {platform.python_version()}; {args.rounds} rounds\n")
    print(f"{'a look at':34}{'us':>9}{'ratio':>9}  quartiles")
    for name, (us, ratio, low, high, _) in found.items():
        print(f"{name:34}{us:9.2f}{ratio:9.1f}  {low:.1f} - {high:.1f}")
    took = found[MOST].us
    print(f"\nmust: {MOST}: {took:.0f} us, at most 1000: {'met' if took <= 1000 else 'MISSED'}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"figures": {n: Figures(*f)._asdict() for n, f in found.items()}}, file)


if __name__ == "__main__":
    main()
