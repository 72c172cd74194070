"""Calls to outside services: figures in, text out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._support.text_values import plain
from ..load_report import bulkhead_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..load_report import BulkheadFigures, LoadReport
    from .history import Look

# More than this make a sentence that nobody reads; docs/bulkheads.rst says how many hosts have one.
MOST_NAMED = 5


def bulkhead(one: BulkheadFigures) -> str:
    """Return how one is: ``rates: 5 of 5 in calls for up to 4.8 s, shut for 12 s``."""
    return plain(bulkhead_text(one))


def failing(shown: LoadReport, _: Sequence[Look]) -> str | None:
    """Return which calls fail at once."""
    wrong = [bulkhead(one) for one in shown.get("bulkheads", ()) if _fails(one)]
    if not wrong:
        return None
    more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
    return f"Calls to outside services fail at once: {'; '.join(wrong[:MOST_NAMED])}{more}."


def _fails(one: BulkheadFigures) -> bool:
    most = one["at_most"]
    return one["shut_for"] is not None or (most is not None and one["inside"] >= most)
