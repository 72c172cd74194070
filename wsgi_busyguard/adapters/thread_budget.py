"""Whether a server has threads enough for a gate behind it: numbers in, text or limits out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..policy import Limits

# One thread for a check and one for a refusal, while all others are in the app or in the queue.
SPARE_THREADS = 2


def needed(limits: Limits) -> float:
    """Return how many threads a server needs for checks and refusals always to get through."""
    return limits.slots + limits.max_queue + SPARE_THREADS


def too_few(limits: Limits, threads: float, server: str, start: str = "") -> str | None:
    """Return what is wrong with a gate of these limits on so many threads, ``None`` if nothing.

    :param start: how the server is started with more threads, ``{0}`` of them.
    """
    slots, queue, _ = limits
    if threads >= needed(limits):
        return None
    more = _more(limits, start)
    if threads == 1:
        return (
            f"slots={slots} makes no sense on {server}, which runs one request at a time in each"
            f" process: nothing can queue here; {more}, or leave slots out"
        )
    few = f"threads={threads:.0f} is too few for slots={slots} and max_queue={queue}"
    if queue == math.inf and threads >= slots + SPARE_THREADS:
        return f"{few}: make max_queue {threads - slots - SPARE_THREADS:.0f} or less"
    return f"{few}: {more}, or leave slots out"


def _more(limits: Limits, start: str) -> str:
    first = "start the server with"
    if limits.max_queue == math.inf:
        limits = limits._replace(max_queue=4 * limits.slots)
        first = f"make max_queue {limits.max_queue} and {first}"
    enough = needed(limits)
    how = f" ({start.format(enough)})" if start else ""
    return f"{first} at least {enough} threads{how}"
