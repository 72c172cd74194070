"""Refuses requests as the server's threads pick them up: for a guard that is not the queue itself.

Behind a server's threads nobody can see how long one request has waited. But what stands behind it
can be read, and how long a request takes; so it is known how long the last one there will wait. If
that is too long, the thread that has just picked one up refuses it and takes the next. What is too
long is the same as for a gate: see :class:`~wsgi_busyguard.policy.Discipline`.

To read a server's queue costs more than all the rest that is done for a request. So while there is
hardly a queue the app is not behind this at all, and somebody else looks now and then, see
:class:`~wsgi_busyguard.adapters.crowd_watch.CrowdWatch`. While there is one, a look holds for a
hundredth of a second, and says how many are too many.

Nothing here knows a server. Whatever goes wrong with a look, requests are served.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from .._support.forks import Stage, after_fork
from .._support.locks import owned_lock, tried, under
from ..counters import REASONS, Counters
from ..policy import Discipline, Reason, limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..load import Load

# Between two looks. A look takes 5 to 27 us, so this is a quarter of a percent of a core at most.
LOOK_SECONDS = 0.01


class PickUp:
    """Stands around an app while requests queue in the server, and refuses those that are too many.

    :param refused: the answer, by reason.
    :param max_wait: as for :class:`~wsgi_busyguard.policy.Discipline`, and so is the next one;
        with ``math.inf`` nothing is ever refused.
    :param count: called for each that is refused.
    :param instead: in a dry run, called with how many would have been refused, and nobody is.
    :param unreadable: called when the queue could not be read, so that somebody logs it.
    :param clock: monotonic seconds.
    :ivar crowded: whether an app should be behind :meth:`around`.
    :ivar changed: called when that has changed, in whichever thread saw it.
    :ivar read: reads this process's queue, and how long a request takes; nothing is refused
        without.

    All methods may be called from any thread.
    """

    def __init__(
        self,
        refused: Callable[[Reason], WSGIApplication],
        *,
        max_wait: float | None = None,
        client_timeout: float | None = None,
        count: Callable[[], object] = bool,
        instead: Callable[[int], object] | None = None,
        unreadable: Callable[[], object] = bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.read: Callable[[], Load | None] | None = None
        self.changed: Callable[[], object] = bool
        self.is_off = max_wait == math.inf
        self.refused = refused
        self._limits = (max_wait, client_timeout)
        self._count = count
        self._instead = instead
        self._unreadable = unreadable
        self._clock = clock
        self._reset()
        after_fork(Stage.OWN, self._reset)

    def _reset(self) -> None:
        """Know of no queue, as a child does: the one that was seen is its parent's."""
        self._lock = owned_lock()
        self.crowded = self._is_broken = False
        self._discipline: Discipline | None = None
        self._ordinary = limits(1, None, *self._limits)
        self._due = -math.inf  # when to look again
        self._served = self._refusals = 0
        self._excess = 0.0  # so many of those that are picked up next are too many
        self._queued = 0  # at the last look
        self._picked_up = 0  # since the last look
        self._imagined = 0  # in a dry run: so many that stand there would have been refused

    @property
    def max_wait(self) -> float:
        """For how long the last in the queue may have to wait now."""
        rule = self._discipline or Discipline(1, None, *self._limits)
        return rule.in_force.max_wait

    def around(self, app: WSGIApplication) -> WSGIApplication:
        """Return ``app`` behind this."""

        def pick_up(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if not self._is_too_many():
                return app(environ, start_response)
            return self.refused(Reason.QUEUE_AGE)(environ, start_response)

        return pick_up

    def look(self) -> None:
        """Look at the queue. A thread that finds another one looking goes on without."""
        if tried(self._lock, self._look):
            self.changed()
        if self._is_broken:
            self._is_broken = False
            self._unreadable()

    def counts(self) -> Counters | None:
        """Return how many were refused here and how many were not, while there was a crowd.

        ``None`` if there was none yet: what passes without is counted by nobody.
        """
        served, refused = self._served, self._refusals
        if not served and not refused:
            return None
        reasons = (refused if reason is Reason.QUEUE_AGE else 0 for reason in REASONS)
        return Counters(served, served, tuple(reasons))

    def _is_too_many(self) -> bool:
        """Return whether the request that was just picked up is refused."""
        now = self._clock()
        if now >= self._due:
            self.look()
        if under(self._lock, self._take_one, now):
            self._count()
            return True
        return False

    def _take_one(self, now: float) -> bool:
        """Count one that is picked up; return whether it is one too many. Requires self._lock."""
        rule = self._discipline
        self._picked_up += 1
        if self._excess < 1:
            self._served += 1
            if rule is not None:
                rule.left()
            return False
        self._excess -= 1
        self._refusals += 1
        if rule is not None:
            rule.refused(now)
        return True

    def _look(self) -> bool:
        """Decide how many are too many; return whether ``crowded`` changed. Requires self._lock."""
        now, before = self._clock(), self.crowded
        self._due = now + LOOK_SECONDS
        try:
            load = None if self.read is None else self.read()
            known = load is not None and bool(load.capacity)
            excess = self._judge(load, now) if load is not None and known else 0.0
        except Exception:  # guarding must never be the outage
            self._is_broken, known, excess = True, False, 0.0
        if not known:
            self.crowded = False
        self._excess = excess if self._instead is None else self._imagine(excess, now)
        return self.crowded is not before

    def _judge(self, load: Load, now: float) -> float:
        """Return how many of those that wait are too many. Requires self._lock."""
        queued, service, capacity = load.queued, load.service, load.capacity or 1
        rule = self._discipline_for(capacity)
        rule.arrived(max(0, queued - self._queued + self._picked_up))
        self._queued, self._picked_up = queued, 0
        self._imagined = min(self._imagined, queued)
        queued -= self._imagined
        ahead = None if service is None else queued * service / capacity
        if not self._is_crowd(rule, queued, ahead):
            rule.spare(now)
            self.crowded = rule.tight
            return 0.0
        self.crowded = True
        rule.crowded(now, queued, ahead or 0.0)
        _, most, max_wait = rule.in_force
        # All threads may be done with theirs at once, and a look is old by the time it is used.
        most = max(most, 2 * capacity)
        return queued - min(most, max_wait * capacity / service) if service else 0.0

    def _is_crowd(self, rule: Discipline, queued: int, ahead: float | None) -> bool:
        """Return whether so many are worth watching, for they may soon be too many."""
        if not queued or rule.tight or ahead is None:
            return queued > 0
        _, max_queue, max_wait = self._ordinary
        return ahead > max_wait / 2 or queued > max_queue / 2

    def _discipline_for(self, capacity: int) -> Discipline:
        """Return the rule for so many threads, which a server may change. Requires self._lock."""
        if self._discipline is None:
            self._discipline = Discipline(capacity, None, *self._limits)
        elif capacity != self._ordinary.slots:
            self._discipline.resize(capacity)
        if capacity != self._ordinary.slots:
            self._ordinary = limits(capacity, None, *self._limits)
        return self._discipline

    def _imagine(self, excess: float, now: float) -> float:
        """Say how many would have been refused, and refuse nobody. Requires self._lock.

        From now on they are taken not to be there. The others would be served as quickly as they
        are now: all threads have something to do either way.
        """
        too_many = int(excess)
        if too_many >= 1 and self._discipline is not None and self._instead is not None:
            self._imagined += too_many
            self._discipline.refused(now)
            self._instead(too_many)
        return 0.0

    def __repr__(self) -> str:
        rule = self._discipline
        return f"<PickUp {self._queued} waiting, {'tight' if rule and rule.tight else 'loose'}>"
