"""What has been counted in a process, added to what stands in its row. One thread at a time."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ..counters import Counters, asked, counts_of, no_checks
from .layout import COUNTS
from .memory import MOST_WORD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..load import Adapter
    from .row import RowPlace


class Tally:
    """Sums up what an adapter counts, and the checks.

    :param heard: the counts of checks; may grow.
    """

    def __init__(self, heard: Sequence[Mapping[str, Sequence[int]]]) -> None:
        self._heard = heard
        self._last = Counters().flat()  # as last read of the adapter
        self._before: tuple[RowPlace, list[int]] | None = None  # what stood in a row at first

    def store(self, place: RowPlace, adapter: Adapter) -> None:
        """Add to what the row's last owner left what was counted since it is ours."""
        tally = self._summed(adapter)
        known, before = self._before or (None, [])
        if known is not place:
            before = [place.get(COUNTS + n) - count for n, count in enumerate(tally)]
            self._before = place, before
        for n, count in enumerate(tally):
            place.put(COUNTS + n, before[n] + count & MOST_WORD)

    def _summed(self, adapter: Adapter) -> list[int]:
        # If the adapter raises, the next look at the load says what is wrong.
        with suppress(Exception):
            self._last = (counts_of(adapter) or Counters()).flat()
        checks = [asked(heard) for heard in (*self._heard, no_checks())]
        return [*self._last, *map(sum, zip(*checks, strict=True))]
