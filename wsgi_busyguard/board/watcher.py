"""Says how a host is by its board, for a process that serves nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..counters import ABSENT as NOBODY
from ..counters import BUSY_NOT, BUSY_READY, RefusalRate, asked, no_checks
from ..counters import DRAINING as GOING
from ..counters import FREE as IS_FREE
from ..load import UNKNOWN, Load
from ..policy import ABSENT, DAMPED, DAMPED_PATIENCE, DRAINING, Verdict, is_ready, known_policy
from .layout import READY
from .processes import began
from .table import BORN

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..counters import Changes, Counters
    from ..state_log import StackView
    from .board import Board
    from .row import Row


class Watcher:
    """Says how a host is by its board, from a process that serves nothing itself.

    :param board: where the others post.
    :param queued: returns how many requests wait in the kernel, if it knows; they are added.
    :param draining: returns whether the host is shutting down, if anybody knows. Else it is taken
        to be when every process that is there is stopping, as they also are for a moment when
        others are about to take their place.
    :param stall_after: seconds without progress in any process after which all are stuck.

    For one thread, and also for a process that was forked and executes nothing new: it takes no
    lock, which another thread might have held at the fork, logs nothing and imports nothing.
    """

    def __init__(
        self,
        board: Board,
        *,
        queued: Callable[[], int | None] | None = None,
        draining: Callable[[], bool] | None = None,
        stall_after: float = 30.0,
    ) -> None:
        self.board = board
        self.app: str | None = None
        self.stall_after = stall_after
        self._queued = queued
        self._draining = draining
        #: How many checks it has answered, by policy.
        self._asked = no_checks()
        self.refusals = RefusalRate()
        #: Says in which lines the requests of those processes are, where that is wanted.
        self.stacks: StackView | None = None

    @property
    def load(self) -> Load:
        """The load of the host now, with what waits in the kernel.

        Where all are stopping, what they have left to do.
        """
        return self._read(DAMPED_PATIENCE)

    def _read(self, patience: float) -> Load:
        load = self.board.read()
        if load is UNKNOWN and self.board.stopping():
            load = self.board.left()
        more = None if self._queued is None else self._queued()
        if more:
            load = load._replace(queued=load.queued + more)
        if load.queued and (silent := self.board.silent()) >= patience:
            # What waits in the kernel has no age. But where no process gets to run, be it stopped
            # or in C code that keeps the interpreter, nobody takes it in, though all be idle.
            load = load._replace(lag=max(load.lag, silent))
        return load

    @property
    def since(self) -> float | None:
        """The time of day at which the oldest of those that serve has begun."""
        _, ready, columns = self.board._look(READY)
        return began(min(columns[BORN][row] for row in ready)) if ready else None

    @property
    def draining(self) -> bool:
        """Whether the host is shutting down, or was told to drain."""
        going = self.board.stopping if self._draining is None else self._draining
        return self.board.draining or going()

    def check(
        self, ready: str = DAMPED, patience: float = DAMPED_PATIENCE, count: bool = True
    ) -> Verdict:
        """Return the answer to a check under the policy ``ready``.

        :param patience: seconds of delay that ``damped`` bears, and for which it may be that no
            process is ready to serve.
        :param count: whether somebody asks, and does not only look.
        :raises ValueError: for an unknown policy.
        """
        verdict = self._judged(known_policy(ready), patience)
        if count:
            self._asked[ready][_WHICH[verdict.word, verdict.ready]] += 1
        return verdict

    def _judged(self, ready: str, patience: float) -> Verdict:
        board, load = self.board, self._read(patience)
        if self.draining:
            return Verdict(DRAINING, False, load)
        if self.absent(patience):
            return Verdict(ABSENT, False, load)
        state = board.judge(load)
        well = is_ready(ready, state, load, patience, board.was_ready)
        if ready == DAMPED:
            board.was_ready = well
        return Verdict(state.value, well, load)

    def absent(self, patience: float) -> bool:
        """Return whether nobody is there to serve, and has not been for ``patience`` seconds."""
        return self.board.absent(patience)

    def is_leader(self) -> bool:
        """Return whether this process speaks for the host, as whoever only watches it does."""
        return True

    def alive(self) -> bool:
        """Return whether any process makes progress, or none is there that could be stuck."""
        return not self.board.stalled(self.stall_after)

    def rows(self) -> list[Row]:
        """Return what each process that is there has posted."""
        return self.board.rows()

    def counts(self) -> Counters:
        """Return what the processes have counted."""
        return self.board.counts()

    def asked(self) -> list[int]:
        """Return how many checks were answered, here and by them; see ``counters.CHECKS``."""
        here = asked(self._asked)
        return [mine + theirs for mine, theirs in zip(here, self.board.asked(), strict=True)]

    def changes(self) -> Changes:
        """Return how often the state has changed."""
        return self.board.changes()


_WHICH = {
    ("free", True): IS_FREE,
    ("busy", True): BUSY_READY,
    ("busy", False): BUSY_NOT,
    (DRAINING, False): GOING,
    (ABSENT, False): NOBODY,
}
