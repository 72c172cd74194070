"""The dry run: what the guard would have done, counted and reported, and not done.

Every request runs at once. Beside them a gate has the same requests come, wait, and leave when they
would have left it, so that its figures, the state and the callbacks are those of a guard that acts.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

from .._support.locks import under
from .._support.log import logger
from ..deadlines.deadline import streamed
from ..deadlines.environ import stamp
from ..gate import Gate, Slot, Ticket
from ..policy import DRAINING, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..counters import Counters
    from ..deadlines.client_timeout import Client
    from ..load import Load

# Seconds between two lines in the log, however much would have been refused.
EVERY = 60.0


class DryRun:
    """What would have been done; every figure counts from the start.

    :param clock: monotonic seconds.
    :ivar requests: requests that came to the gate.
    :ivar refused: how many of them would have been refused, by the words of ``Busyguard-Refused``.
    :ivar checks: ready checks that were answered.
    :ivar answered_busy: how many of those would have been answered by 503.

    Reports to the log when there is something to report, at most once a minute.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.requests = 0
        self.refused: Counter[str] = Counter()
        self.checks = 0
        self.answered_busy = 0
        self._clock = clock
        self._told: float | None = None
        self._renew()
        _locked.add(self)

    def _renew(self) -> None:
        self._lock = threading.RLock()  # a finalizer may come in between

    def request(self) -> None:
        """Count a request."""
        under(self._lock, self._count)

    def _count(self) -> None:
        self.requests += 1

    def refuse(self, reason: Reason) -> None:
        """Count a refusal that would have been."""
        self._tell(under(self._lock, self._count_refused, reason))

    def _count_refused(self, reason: Reason) -> bool:
        """Count it; return whether it is time for a line. Requires self._lock."""
        self.refused[reason.value] += 1
        return self._due()

    def judged(self, verdict: Verdict) -> Verdict:
        """Return what a check is told: free, unless the server is shutting down."""
        would = not verdict.ready and verdict.word != DRAINING
        self._tell(under(self._lock, self._count_check, would))
        if verdict.word == DRAINING:
            return verdict
        return Verdict("free", True, verdict.load)

    def _count_check(self, would: bool) -> bool:
        """Count a check; return whether it is time for a line. Requires self._lock."""
        self.checks += 1
        self.answered_busy += would
        return would and self._due()

    def __str__(self) -> str:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(self.refused.items()))
        return (
            f"{sum(self.refused.values())} of {self.requests} requests would have been refused"
            f"{why and f' ({why})'} and {self.answered_busy} of {self.checks} checks answered busy"
        )

    def __repr__(self) -> str:
        return f"<DryRun: {self}>"

    def _due(self) -> bool:
        """Return whether it is time for a line. Requires self._lock."""
        now = self._clock()
        if self._told is not None and now - self._told < EVERY:
            return False
        self._told = now
        return True

    def _tell(self, due: bool) -> None:
        if due:
            logger.warning("dry run: %s, since the start", str(self))


class Shadow:
    """The gate beside the requests: an adapter, as the gate is.

    A request that waits here runs already. So when it ends it has not ended here: it stays for as
    long as it has waited, or would have. What that is worth: a request is taken to need as long as
    it needed, which is true of one that waits for others, and too long for one that computes beside
    more others than a gate would have let in.
    """

    def __init__(self, gate: Gate, report: DryRun, clock: Callable[[], float]) -> None:
        self.gate = gate
        self._report = report
        self._clock = clock
        self._order = itertools.count()
        self._renew()
        _locked.add(self)

    def _renew(self) -> None:
        """Begin with nobody, as the gate does in a child."""
        self._lock = threading.RLock()  # a finalizer may come in between
        self._leaving: list[tuple[float, int, Slot]] = []  # a heap: when, and who

    def come(self, ago: float) -> Guest:
        """Take note of a request that has come."""
        self.settle()
        self._report.request()
        guest = Guest(self, ago)
        outcome = self.gate.offer(guest.ticket)
        if outcome is not None:
            guest.goes(outcome, 0.0)
        return guest

    def stay(self, slot: Slot, until: float) -> None:
        """Have a slot left when ``until`` is over."""
        under(self._lock, heapq.heappush, self._leaving, (until, next(self._order), slot))
        self.settle()

    def refuse(self, reason: Reason) -> None:
        """Take note of a refusal."""
        self._report.refuse(reason)

    def now(self) -> float:
        """Return monotonic seconds."""
        return self._clock()

    def settle(self) -> None:
        """Have those leave whose time has come, and those wait no longer who waited too long."""
        while (slot := under(self._lock, self._next_to_leave)) is not None:
            self.gate.leave(slot)
        self.gate.expire()

    def _next_to_leave(self) -> Slot | None:
        """Return the slot of one whose time has come. Requires self._lock."""
        if not self._leaving or self._leaving[0][0] > self._clock():
            return None
        return heapq.heappop(self._leaving)[2]

    def read(self) -> Load:
        """Return the figures of this instant."""
        self.settle()
        return self.gate.read()

    def counts(self) -> Counters:
        """Return what the gate has counted: what would have been."""
        self.settle()
        return self.gate.counts()

    def subscribe(self, changed: Callable[[], object]) -> None:
        """Have ``changed`` called when the state may have changed."""
        self.gate.subscribe(changed)

    @property
    def limits(self) -> Any:
        """The limits of the gate."""
        return self.gate.limits

    def __repr__(self) -> str:
        return f"<dry run of {self.gate!r}>"


class Guest:
    """One request, at the gate beside it."""

    def __init__(self, shadow: Shadow, ago: float) -> None:
        self._shadow = shadow
        self._lock = threading.RLock()  # a finalizer may come in between
        self._came = shadow.now()
        self._took: float | None = None  # none while it runs
        self._slot: Slot | None = None
        self._waited = 0.0
        self.ticket = Ticket(lambda ticket: self.goes(ticket.outcome), ago)

    def goes(self, outcome: Slot | Reason | None, waited: float | None = None) -> None:
        """Take the slot, or be counted for the reason."""
        if isinstance(outcome, Reason):
            self._shadow.refuse(outcome)
        elif outcome is not None:
            now = self._shadow.now()
            if waited is None:
                waited = now - self._came
            took = under(self._lock, self._has, outcome, waited)
            if took is not None:
                self._shadow.stay(outcome, now + took)

    def _has(self, slot: Slot, waited: float) -> float | None:
        """Take the slot; return how long the request took if it has ended. Requires self._lock."""
        self._slot, self._waited = slot, waited
        return self._took

    def end(self) -> None:
        """Take note that the request has ended; only the first call does anything."""
        now = self._shadow.now()
        if not under(self._lock, self._ends, now):
            return
        if self._slot is not None:
            self._shadow.stay(self._slot, now + self._waited)
        else:
            self._shadow.settle()

    def _ends(self, now: float) -> bool:
        """Note how long it took; return whether that was not known. Requires self._lock."""
        first = self._took is None
        if first:
            self._took = now - self._came
        return first


def rehearsing(
    app: WSGIApplication,
    shadow: Shadow,
    monitor: object,
    client_timeout: float,
    told: Callable[[Mapping[str, Any]], Client] | None = None,
) -> WSGIApplication:
    """Return ``app`` behind a gate that only counts.

    :param told: says what a request tells of its client, where that is trusted.
    """

    def hold(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        ago, patience = (0.0, client_timeout) if told is None else told(environ)
        guest = shadow.come(ago)
        until = time.monotonic() - ago + patience
        stamp(environ, monitor, ago, until)
        try:
            body = app(environ, start_response)
        except BaseException:
            guest.end()
            raise
        if isinstance(body, (list, tuple)):
            guest.end()
            return body
        passed_on = streamed(body, until, environ.get("wsgi.file_wrapper"))
        if passed_on is body:  # measured by the server, or sent by it: over, as far as can be seen
            guest.end()
            return body
        return Ending(passed_on, guest)

    return hold


class Ending:
    """A body with whose end a request ends."""

    def __init__(self, body: Any, guest: Guest) -> None:
        self._body = body
        self._guest = guest

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """Close the body."""
        try:
            self._body.close()
        finally:
            self._guest.end()

    def release(self) -> None:
        """End the request and let the body be."""
        self._guest.end()

    def __del__(self) -> None:  # dropped by a server that does not close
        self._guest.end()


_locked: weakref.WeakSet[DryRun | Shadow] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for one in list(_locked):  # another thread may have held the locks
        one._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
