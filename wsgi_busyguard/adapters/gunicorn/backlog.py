"""Takes in what waits in the kernel while requests wait in a worker, too.

Those who stand in the kernel's queue get older, and nobody refuses them. If the worker takes them
out of it no faster than others come, all that it ever serves are dead.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# How many connections are accepted in one go. By gunicorn's loop it is one, and each turn of the
# loop needs the interpreter three times more, which others may be using.
AT_ONCE = 16

# For so long after requests have waited in the worker, those who come may have waited in the
# kernel.
CROWD_SECONDS = 1.0


class Backlog:
    """Knows whether others may wait in the kernel, and takes them in.

    :param queued: returns how many requests wait in the worker.
    :param clock: monotonic seconds.
    """

    def __init__(
        self, queued: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queued = queued
        self._clock = clock
        self._crowded_at = -math.inf

    def stands(self) -> bool:
        """Return whether requests wait in the worker, or did a moment ago."""
        now = self._clock()
        if self._queued():
            self._crowded_at = now
        return now - self._crowded_at < CROWD_SECONDS

    def take_in(self, accept: Callable[[], bool]) -> None:
        """Accept one, and others with it while requests wait.

        :param accept: accepts one if there is one; returns whether there may be more.
        """
        for _ in range(AT_ONCE):
            if not accept() or not self.stands():
                return
