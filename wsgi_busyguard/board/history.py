"""The changes of state that are kept on a board. Reads and writes words; takes no lock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..counters import SECOND, Change
from ..load import BUSY, FREE
from .layout import BUSY_FOR, BUSY_FROM, CHANGE, CHANGES, RECENT, STATE, change, changed
from .memory import MOST_WORD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..load import Load


def note_change(words: memoryview, number: int, now: int, load: Load) -> None:
    """Note a change of state. Requires the table's lock.

    The number is the one word that several processes read and write anew. One that is stopped
    between the two would write an old one when it goes on, and the changes since be undone.
    """
    number &= MOST_WORD
    at = CHANGES + number % RECENT * CHANGE
    for offset, word in enumerate(change(number, now, time.time_ns(), load)):
        words[at + offset] = word
    if number & 1:
        words[BUSY_FROM] = max(0, now - words[BUSY_FOR])
    else:
        words[BUSY_FOR] = max(words[BUSY_FOR], now - words[BUSY_FROM])
    words[STATE] = number


def recent_changes(words: memoryview, last: int) -> Iterator[Change]:
    """Yield the last changes, the oldest first."""
    before: int | None = None  # when the one before was
    for number in range(max(1, last - RECENT + 1), last + 1):
        at = CHANGES + number % RECENT * CHANGE
        known, when, wall, load = changed(words[at : at + CHANGE].tolist())
        if known != number:  # just being written over
            before = None
            continue
        lasted = None if before is None else max(0, when - before) / SECOND
        yield Change(BUSY if number & 1 else FREE, wall / SECOND, lasted, load)
        before = when
