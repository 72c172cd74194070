"""What waits for a worker that serves all its connections in one loop, and for how long it will."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...load import Load

# Over so many seconds it is seen how fast a worker takes requests in.
RATE_SECONDS = 2.0


class HubLoad:
    """Reads what waits in the kernel for a worker, with how fast the worker takes it in.

    How many places there are says nothing of that. Where requests wait for others there are as many
    as there are requests; where they compute, one.

    :param read: reads the worker's figures.
    :param clock: monotonic seconds.
    :ivar admitted: how many requests have got in; counted by whoever lets them in.
    """

    def __init__(
        self, read: Callable[[], Load | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.admitted = 0
        self._read = read
        self._clock = clock
        self._since: float | None = None  # since when somebody has been waiting
        self._before = 0.0  # how many had got in by then

    def read(self) -> Load | None:
        """Return the worker's figures, with the service time by which its queue takes as long."""
        load, now = self._read(), self._clock()
        if load is None or not load.queued or not load.capacity:
            self._since = None
            return load
        if self._since is None:
            self._since, self._before = now, self.admitted
        lasts, count = now - self._since, self.admitted - self._before
        if lasts > RATE_SECONDS:  # what was a while ago counts for less and less
            self._since, self._before = now - lasts / 2, self.admitted - count / 2
        # Each of those inside may be about to go.
        return load._replace(service=load.capacity * lasts / (count + max(1, load.active)))
