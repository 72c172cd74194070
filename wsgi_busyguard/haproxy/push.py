"""Tells HAProxy without being asked, over its Runtime API: ``set maxconn server``.

An accelerator of the agent, never in its place: HAProxy forgets it at a reload, and the next line
of an agent takes its place. So both follow the same rule, and what is pushed is pushed again.
"""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING

from .._support.forks import Stage, after_fork
from .._support.locks import owned_lock, under
from .._support.log import logger
from .._support.periodic import Periodic
from ..counters import watched
from ..load import BUSY, Subscribes
from ..policy import seconds, share
from .agent import Limit
from .runtime_api import address_text, say, targets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..load import Load, Transition
    from ..monitor import Monitor
    from .runtime_api import Where

# Seconds after which a number is sent again, for HAProxy may have been restarted. A reload
# costs it the numbers; the agent, which asks more often, sets them before that.
REPEAT_SECONDS = 1.0

# Seconds until a balancer that is not there is tried again; twice as many each time, at most so
# many.
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.1, 5.0

# Seconds between two looks: at whether the server drains, and whose turn it is to push.
LOOK_SECONDS = 0.25

# The same where nobody tells of changes: other processes, and servers that can only be looked at.
LOOK_AT_OTHERS_SECONDS = 0.01

# Seconds for which a queue has to stay before it is one: HAProxy sends the next request when it has
# the answer to the last one, whose thread may not be back by then.
SETTLE_SECONDS = 0.002

# Seconds between two steps on the way back to the whole number, where requests are faster.
STEP_SECONDS = 0.05


class Push:
    """Tells balancers how many requests they may have here, at each change and over and over.

    :param monitor: knows the load; its listeners are called, and return at once.
    :param to: ``unix:PATH#BACKEND/SERVER`` or ``tcp:HOST:PORT#BACKEND/SERVER``, each the Runtime
        API of one balancer (``stats socket ... level admin``) and this server's line there. Name
        every balancer: they share.
    :param every: seconds after which a number is sent again.
    :raises ValueError, TypeError: for what is not valid.

    When the server becomes busy with what comes past its balancers, each gets a 1, the least there
    is: the next request waits there, not here. Else they get what the agent would answer.

    Each balancer has a thread, so one that hangs holds up no other. One that is not there is tried
    again, with longer and longer pauses, and logged once until it is back. Where several processes
    share a board, its leader pushes, and the next takes over when it is gone. A child that is
    forked goes on by itself where there is a board; else it pushes nothing.
    """

    def __init__(
        self, monitor: Monitor, to: Iterable[str] | str, *, every: float = REPEAT_SECONDS
    ) -> None:
        servers: dict[Where, list[str]] = {}
        for one in targets(to):
            servers.setdefault(one.where, []).append(one.server)
        watched(monitor)
        self._monitor = monitor
        self._every = seconds("every", every)
        alone = monitor.shared is None and isinstance(monitor.adapter, Subscribes)
        self._look_every = LOOK_SECONDS if alone else LOOK_AT_OTHERS_SECONDS
        self._lines = [BalancerLink(self, where, names) for where, names in servers.items()]
        self._watching = Periodic(
            self._watch,
            LOOK_SECONDS,
            "busyguard-push",
            at_once=True,
            in_children=monitor.shared is not None,
            failing="cannot tell what to push; tried again",
        )
        self._listening = False
        self._renew()
        after_fork(Stage.OWN, self._renew)

    def _renew(self) -> None:
        """Begin as if nothing had been pushed, in a child for one."""
        self._starting = owned_lock()
        self._lock = owned_lock()
        self._limit = Limit()
        self._number: int | None = None
        self._due = 0.0  # when the number is next thought over
        self._filled = False  # by others, so that 1 was sent
        self._settled: float | None = None  # when a queue that was seen counts

    @property
    def number(self) -> int | None:
        """What each balancer gets now; ``None`` if nothing is sent."""
        return self._number

    def start(self) -> Push:
        """Begin to push, on threads of its own, unless it has begun; return itself."""
        under(self._starting, self._listen_once)
        for line in self._lines:
            line.telling.start()
        self._watching.start()
        return self

    def _listen_once(self) -> None:
        """Have the monitor tell of changes, unless it does already. Requires self._starting."""
        if not self._listening:
            self._listening = True
            self._monitor.on_busy(self._changed)
            self._monitor.on_free(self._changed)

    def stop(self) -> None:
        """Send no more; what was sent last stays in force there. Waits for no balancer."""
        self._watching.stop()
        for line in self._lines:
            line.telling.stop()

    def _changed(self, change: Transition) -> None:
        """Think again, in whichever thread saw the change; nothing here waits."""
        if not self._watching.wanted or self._number is None:
            return
        if change.state is BUSY:
            self._watching.wake()
        elif self._filled:
            self._think(change.load, filled=False)

    def _watch(self) -> None:
        """Look once, and see to it when to look next."""
        self._watching.pause = LOOK_SECONDS  # if that raises
        self._watching.pause = self._look()

    def _look(self) -> float:
        """Think if there is reason to, and return the seconds until the next look."""
        if not self._monitor.is_leader():
            self._number = None
            return LOOK_SECONDS
        busy, load = self._monitor.state is BUSY, self._monitor.load
        now = time.monotonic()
        if not (busy and self._others(load) > 0):
            self._settled = None
        elif self._settled is None:
            self._settled = now + SETTLE_SECONDS
        if self._settled is not None and not self._filled:
            if now < self._settled:
                return self._settled - now
            self._think(load, filled=True)
        elif (
            self._due <= now
            or (self._filled and not busy)
            or (self._monitor.draining and self._number != 1)
        ):
            self._think(load, filled=self._filled and busy)
        return min(self._look_every, max(0.001, self._due - now))

    def _live(self) -> int:
        return max(1, sum(line.well for line in self._lines))

    def _others(self, load: Load) -> int:
        """Return how much of the queue came past the balancers.

        What is queued because shares are rounded up came from them.
        """
        if load.capacity is None:
            return 0
        live = self._live()
        return load.queued - max(0, share(load.capacity, live) * live - load.capacity)

    def _think(self, load: Load, filled: bool) -> None:
        """Note what to send from now on, and have it sent if it is something else."""
        if under(self._lock, self._decide, load, filled):
            for line in self._lines:
                line.telling.wake()

    def _decide(self, load: Load, filled: bool) -> bool:
        """Note the number; return whether it is another one. Requires self._lock."""
        now, live = time.monotonic(), self._live()
        before, entered = self._number, filled and not self._filled
        number = self._limit.share(load, live, now)
        if number is not None and (entered or self._monitor.draining):
            number = 1
        self._number, self._filled = number, filled
        whole = load.capacity is None or number == share(load.capacity, live)
        # The way back to the whole is one step in each service time, as the agent's is.
        pause = self._every if whole else max(STEP_SECONDS, load.service or 0.0)
        self._due = now + min(self._every, pause)
        return number != before

    def __repr__(self) -> str:
        return f"<Push of {self._number} to {', '.join(map(repr, self._lines))}>"


class BalancerLink:
    """The way to one balancer, and the thread that goes it.

    :ivar well: whether it took the last command, or none was tried yet.
    """

    def __init__(self, push: Push, where: Where, servers: Sequence[str]) -> None:
        self._push = weakref.ref(push)
        self._where = where
        self._servers = servers
        self._every = push._every
        self._retry_pause = RETRY_SECONDS
        self._retry_at = 0.0
        self.well = True
        self.telling = Periodic(
            self._tell_now,
            self._every,
            "busyguard-push-line",
            at_once=True,
            in_children=push._monitor.shared is not None,
        )

    def _tell_now(self) -> None:
        """Say the number, and see to it when to say it next."""
        push, now = self._push(), time.monotonic()
        number = None if push is None else push.number
        if now < self._retry_at:  # what changes meanwhile it hears when it is back
            self.telling.pause = self._retry_at - now
        elif number is None:
            self.telling.pause = LOOK_SECONDS
        else:
            wrong = self._tell(number)
            self._note(wrong)
            self._pause_after(wrong)

    def _pause_after(self, wrong: str | None) -> None:
        if wrong is None:
            self.telling.pause, self._retry_pause = self._every, RETRY_SECONDS
        else:
            self.telling.pause = self._retry_pause
            self._retry_at = time.monotonic() + self._retry_pause
            self._retry_pause = min(LONGEST_RETRY_SECONDS, 2 * self._retry_pause)

    def _tell(self, number: int) -> str | None:
        """Say the number; return what went wrong, as text that may be logged."""
        commands = [f"set maxconn server {name} {number}" for name in self._servers]
        try:
            answer = say(self._where, ";".join(commands))
        except OSError as error:
            return error.strerror or str(error) or type(error).__name__
        return repr(answer[:200]) if answer else None  # who knows who answers there

    def _note(self, wrong: str | None) -> None:
        """Log what went wrong, once until it goes well again, and that it does."""
        if wrong is not None and self.well:
            logger.warning("cannot push to %r: %s; tried again until it can", self, wrong)
        elif wrong is None and not self.well:
            logger.warning("pushing to %r again", self)
        if self.well != (wrong is None):
            self.well = wrong is None
            push = self._push()
            if push is not None:
                push._due = 0.0  # others have a share more, or a share less

    def __repr__(self) -> str:
        return address_text(self._where)
