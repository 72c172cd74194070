"""The dry run: each request runs at once, and a calculation says whether a gate would refuse it.

An estimate. It takes each request to need as long as requests have needed lately.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from typing import TYPE_CHECKING

from .._support.forks import Stage, after_fork
from .._support.locks import owned_lock, under
from .._support.log import logger
from ..deadlines.environ import WAITED
from ..load import service_time, smoothed
from ..policy import Discipline, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOG_INTERVAL_SECONDS = 60.0


class DryRun:
    """What a gate would have refused, by estimate; every figure counts from the start.

    :param discipline: of that gate; without one somebody else estimates, see :meth:`refuse`.
    :param clock: monotonic seconds.
    :ivar requests: requests that came.
    :ivar refused: how many of them a gate would have refused, by ``Busyguard-Refused``.

    Logs a line when there is something to report, at most once a minute.
    """

    def __init__(
        self, discipline: Discipline | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.requests = 0
        self.refused: Counter[str] = Counter()
        self._discipline = discipline or Discipline(1)
        self._clock = clock
        self._renew_lock()
        self._mean: float | None = None  # seconds that a request takes
        self._running: dict[object, float] = {}  # those that a gate would serve, since when
        self._free_at = [
            0.0
        ] * self._discipline.in_force.slots  # a heap: when each slot would be free
        self._begins: deque[float] = deque()  # when those that would wait would get a slot
        self._logged: float | None = None
        after_fork(Stage.OWN, self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = owned_lock()  # a finalizer may come in between

    def arrive(self, request: object, ago: float = 0.0) -> None:
        """Count a request, as any object that stands for it.

        :param ago: seconds for which it has waited elsewhere.
        """
        if under(self._lock, self._arrive, request, ago):
            logger.warning("dry run: %s, since the start", str(self))

    def come(self) -> None:
        """Count a request of which nothing else is estimated here."""
        under(self._lock, self._come)

    def refuse(self, count: int) -> None:
        """Count that so many would have been refused at pick-up."""
        if under(self._lock, self._refuse, Reason.QUEUE_AGE, count):
            logger.warning("dry run: %s, since the start", str(self))

    def leave(self, request: object) -> None:
        """Take note that a request has ended."""
        under(self._lock, self._leave, request)

    def _arrive(self, request: object, ago: float) -> bool:
        """Count it; return whether it is time for a line. Requires self._lock."""
        now = self._clock()
        self._come()
        reason = self._reason(now, ago)
        if reason is None:
            self._running[request] = now
            return False
        return self._refuse(reason, 1)

    def _come(self) -> None:
        self.requests += 1

    def _refuse(self, reason: Reason, count: int) -> bool:
        """Count them; return whether it is time for a line. Requires self._lock."""
        now = self._clock()
        self.refused[reason.value] += count
        if self._logged is not None and now - self._logged < LOG_INTERVAL_SECONDS:
            return False
        self._logged = now
        return True

    def _reason(self, now: float, ago: float) -> Reason | None:
        """Return why a gate would refuse a request; let it in if not. Requires self._lock."""
        discipline, slots = self._discipline, self._discipline.in_force.slots
        if not self._running:  # idle, so what was calculated was too much: one took unusually long
            self._free_at = [now] * slots
            self._begins.clear()
        while self._begins and self._begins[0] <= now:
            self._begins.popleft()
            discipline.left()
        ages = [now - since for since in self._running.values()]
        service = service_time(self._mean, ages[:slots]) or 0.0  # the others would wait
        begin = max(now, self._free_at[0])
        queued = len(ages) - slots  # the slots are taken if that is not below 0
        if queued >= 0:
            begin = max(begin, now + (queued + 1) * service / slots)
        if begin > now or queued >= 0:
            reason = self._turned_away(now, max(len(self._begins), queued), begin - now, ago)
            if reason is not None:
                return reason
            self._begins.append(begin)
        else:
            discipline.spare(now)
        heapq.heapreplace(self._free_at, begin + service)
        return None

    def _turned_away(self, now: float, queued: int, wait: float, ago: float) -> Reason | None:
        """Return why one would be refused that finds so many waiting, ``None`` if it would not.

        It would wait for about as long as the first of them has. Requires self._lock.
        """
        discipline = self._discipline
        discipline.arrived()
        discipline.crowded(now, queued + 1, wait)
        _, max_queue, max_wait = discipline.in_force
        reason = Reason.QUEUE_AGE if wait + ago > max_wait else None
        if queued >= max_queue:
            reason = Reason.QUEUE_FULL
        if reason is Reason.QUEUE_FULL or wait > max_wait:  # not for what it brought
            discipline.refused(now)
        return reason

    def _leave(self, request: object) -> None:
        """Learn how long it took. Requires self._lock."""
        since = self._running.pop(request, None)
        if since is not None:
            self._mean = smoothed(self._mean, self._clock() - since)

    def __str__(self) -> str:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(self.refused.items()))
        return (
            f"about {sum(self.refused.values())} of {self.requests} requests would have been"
            f" refused{why and f' ({why})'}"
        )

    def __repr__(self) -> str:
        return f"<DryRun: {self}>"


def counted(app: WSGIApplication, dry_run: DryRun) -> WSGIApplication:
    """Return ``app``, each call of which a dry run counts."""

    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = object()
        try:
            dry_run.arrive(request, environ.get(WAITED, 0.0))
            return app(environ, start_response)
        finally:
            dry_run.leave(request)

    return call


def passed(app: WSGIApplication, dry_run: DryRun) -> WSGIApplication:
    """Return ``app``, each call of which is only counted."""

    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        dry_run.come()
        return app(environ, start_response)

    return call
