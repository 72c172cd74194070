"""Which of several workers takes a connection: none that is full while others have less to do.

All workers of a master listen at one socket, and whoever takes a connection out of it keeps it: no
thread of another worker can help any more. So one that is full leaves it there for a moment. Nobody
says that another one takes it, for it may be stuck; so there is a limit to it.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ...board.processes import parent

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...board.board import Board

# Seconds between two looks at a connection that is left to others. One who is idle takes it in less
# than one; puma waits for 5 ms, for the same reason.
LOOK_SECONDS = 0.002

# For so long at the most; from then on it takes them itself, for as long as the second says.
PATIENCE_SECONDS = 0.1
DOUBT_SECONDS = 1.0

# For so long after nobody else was there nobody is looked for: a look at the board is a fifth of
# what it costs to refuse, and a worker takes longer than this to be made.
ALONE_SECONDS = 0.25


def is_sibling(pid: int) -> bool | None:
    """Return whether a process is another child of the same parent; ``None`` if nobody can say."""
    made_by = parent(pid)
    return None if made_by is None else pid != os.getpid() and made_by == os.getppid()


class Balance:
    """Says whether a worker leaves a connection to others.

    :param board: where all workers post, and those of other masters if they were told to.
    :param is_sibling: returns whether a process is another worker of the same master, or ``None``.
    :param clock: monotonic seconds.
    :param sleep: waits for so many seconds.
    """

    def __init__(
        self,
        board: Board,
        is_sibling: Callable[[int], bool | None] = is_sibling,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._board = board
        self._is_sibling = is_sibling
        self._known: dict[int, bool] = {}  # of those on the board; a number may be used again
        self._clock = clock
        self._sleep = sleep
        self._since: float | None = None  # when the first was seen of those that still wait
        self._takes_until = 0.0
        self._alone_until = 0.0

    def leaves(self, taken: int, threads: int, waits: Callable[[], bool]) -> bool:
        """Return whether to leave the next connection to others, after they had a moment for it.

        :param taken: the requests that this worker has, and those that it is about to get.
        :param waits: returns whether a connection waits still.
        """
        if taken < threads or self._clock() < self._takes_until:
            return False
        if not self.is_busier(taken, threads):
            self._since = None
            return False
        self._sleep(LOOK_SECONDS)
        now = self._clock()
        if not waits():
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since > PATIENCE_SECONDS:
            self._since, self._takes_until = None, now + DOUBT_SECONDS
        return True

    def is_busier(self, taken: int, threads: int) -> bool:
        """Return whether another worker, of those that show signs of life, has less to do."""
        now = self._clock()
        if now < self._alone_until:
            return False
        awake = self._board.awake()
        self._known = {pid: known for pid, known in self._known.items() if pid in awake}
        others = [
            (load.queued + load.active, load.capacity)
            for pid, load in awake.items()
            if load.capacity and self._may_help(pid)
        ]
        if not others:
            self._alone_until = now + ALONE_SECONDS
        return any(has * threads < taken * capacity for has, capacity in others)

    def _may_help(self, pid: int) -> bool:
        """Return whether a process is another worker here, as far as anybody can say."""
        known = self._known.get(pid)
        if known is None and (known := self._is_sibling(pid)) is not None:
            self._known[pid] = known
        return known is not False
