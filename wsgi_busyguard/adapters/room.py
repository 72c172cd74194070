"""Whether a server has threads enough for a gate behind it: numbers in, words or limits out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..policy import Limits

# One thread for a check and one for a refusal, while all others are in the app or in the queue.
SPARE = 2


def needed(limits: Limits) -> float:
    """Return how many threads a server needs for checks and refusals always to get through."""
    return limits.slots + limits.max_queue + SPARE


def too_few(limits: Limits, threads: float, server: str) -> str | None:
    """Return what is wrong with a gate of these limits on so many threads, ``None`` if nothing."""
    slots, queue, _ = limits
    if threads == 1:
        return (
            f"slots={slots} makes no sense on {server}, which runs one request at a time in each"
            " process: nothing can queue here; start the server with threads, or leave slots out"
        )
    if threads >= needed(limits):
        return None
    few = f"threads={threads:.0f} is too few for slots={slots} and max_queue={queue}"
    if queue == math.inf:
        return f"{few}: make max_queue {max(0, threads - slots - SPARE):.0f} or less"
    return f"{few}: start the server with at least {needed(limits)} threads, or lower max_queue"


def lowered(limits: Limits, threads: float) -> Limits:
    """Return limits under which two of so many threads are left, or as near as one can get.

    What goes first is the queue; slots go only where there are not even threads enough for them.
    """
    slots = int(min(limits.slots, max(1, threads - SPARE)))
    queue = max(0, min(limits.max_queue, threads - slots - SPARE))
    return limits._replace(slots=slots, max_queue=queue)
