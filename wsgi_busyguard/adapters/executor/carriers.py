"""Carries jobs from a gate to a thread pool, and loses none whatever becomes of the pool.

The inside of :class:`~wsgi_busyguard.adapters.executor.CountingExecutor`.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from concurrent.futures import Future
from concurrent.futures.thread import BrokenThreadPool
from typing import TYPE_CHECKING, Any

from ..._support.locks import under
from ..._support.log import Logger, Streak, logger
from ..._support.periodic import Periodic
from ...gate import Gate, Refused, Slot, Ticket
from ...policy import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds between two looks at the ages of those who wait, at the most and at the least.
LONGEST_TICK_SECONDS, SHORTEST_TICK_SECONDS = 0.25, 0.01

BROKEN_MESSAGE = (
    "a thread's initializer raised, so this executor cannot be used any more; make a new one"
)
CLOSED_MESSAGE = "cannot schedule new futures after shutdown"


class QueueFull(Refused):
    """The queue has its full length, or the gate is draining; the job was not taken."""


class QueueTimeout(Refused):
    """The job waited for too long and was never run."""


class AbandonedJob(Exception):
    """A job may raise it when it finds that its client has left: it counts as dropped then.

    :cvar reason: why it counts as refused instead.
    """

    reason: Reason | None = None


class Job(Ticket, Future[Any]):
    """A future that stands in the gate's queue."""

    def __init__(self, carriers: Carriers, work: tuple[Any, ...]) -> None:
        Ticket.__init__(self, carriers.woken)
        Future.__init__(self)
        self.work: tuple[Any, ...] | None = work
        self._carriers = carriers

    def cancel(self) -> bool:
        """Cancel the job if it has not begun; its place in the queue is free at once."""
        return self.withdraw() or super().cancel()

    def withdraw(self) -> bool:
        """Cancel the job if it has no slot as yet; return whether that was so."""
        if not self._carriers.withdraw(self):
            return False
        super().cancel()
        self.give_up()
        return True

    def give_up(self, error: Exception | None = None) -> None:
        """End without having run: cancelled, or else with ``error``."""
        self.work = None
        if self.set_running_or_notify_cancel():
            self.set_exception(error)


class Carriers:
    """What stands between the gate and the pool.

    *Why nothing is lost.* The pool is not given jobs but carriers, each of which runs one job that
    has a slot, whichever is first. A carrier is given to the pool before its job stands in the
    gate, so what the stock executor promises for its queue (run before shutdown or exit, refused
    after) holds for waiting jobs too, and nothing has to be submitted when one gets its slot. There
    are at all times at least as many carriers about to take a job as there are jobs to take: a
    carrier without a job stays as long as it is needed for that, and one left over by a job that
    was refused or withdrawn serves the next.

    Nothing here refers to the executor, which goes when its user lets go of it.
    """

    def __init__(self, gate: Gate, changed: Callable[[], object] | None, ticks: bool) -> None:
        self._gate = gate
        self._changed = changed
        self._failing = Streak()  # changed(), since it last worked
        self._here = threading.local()
        # A finalizer may submit or cancel, in a thread that it interrupts in here: an RLock.
        self._lock = threading.Condition(threading.RLock())
        self._waiting: dict[Job, None] = {}  # without a slot as yet
        self._ready: deque[Job] = deque()  # with a slot, for any carrier to take
        self._unbegun: set[object] = set()  # carriers given to the pool and not begun
        self._parked = 0  # carriers begun and without a job
        self._closed = False
        self._broken = False
        self._ticks = ticks and gate.limits.max_wait != math.inf
        interval = min(LONGEST_TICK_SECONDS, max(SHORTEST_TICK_SECONDS, gate.limits.max_wait / 4))
        self._ticker = Periodic(self._tick, interval, "busyguard-executor")

    def add(self, job: Job, submit: Callable[..., object]) -> None:
        """Take a job; ``submit`` gives a carrier to the pool."""
        try:
            self._count(job, submit)
            outcome = self._gate.offer(job)
        except BaseException:
            job.cancel()
            self._settle(job)
            raise
        if outcome is None:
            if self._ticks:
                self._ticker.start()
            if job.cancelled():  # by a shutdown, before it stood in the gate
                job.cancel()
        else:
            self._settle(job)
            if not isinstance(outcome, Slot):
                raise QueueFull(outcome)
        self.tell()

    def woken(self, job: Ticket) -> None:
        """Go on with a job that has waited and has its outcome."""
        assert isinstance(job, Job)
        outcome = job.outcome  # before a carrier takes it
        self._settle(job)
        if not isinstance(outcome, Slot):
            job.give_up(QueueTimeout(Reason.QUEUE_AGE))
        self.tell()

    def withdraw(self, job: Job) -> bool:
        """Take a job out of the queue; return whether it was still there."""
        if not self._gate.withdraw(job):
            return False
        self._settle(job)
        self.tell()
        return True

    def close(self, cancel: bool) -> None:
        """Take no more jobs; cancel those that have not begun if so desired."""
        for job in under(self._lock, self._close, cancel):
            job.cancel()

    def _close(self, cancel: bool) -> list[Job]:
        """Take no more; return the jobs that are to be cancelled. Requires self._lock."""
        self._closed = True
        return [*self._ready, *self._waiting] if cancel else []

    def initialize(self, initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
        """Run a thread's initializer.

        The pool does not hear of one that raises: it would fail its jobs inside its lock. Here the
        thread goes on, and whatever is carried from now on fails.
        """
        try:
            initializer(*initargs)
        except BaseException:
            Logger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
            self._broken = True

    def current(self) -> Slot | None:
        """Return the slot of the job that runs in this thread."""
        return getattr(self._here, "slot", None)

    def tell(self) -> None:
        """Tell that the figures have changed."""
        if self._changed is None:
            return
        try:
            self._changed()
            self._failing.over()
        except Exception:
            self._failing.failed("%r raised when told of a change", self._changed, exc_info=True)

    def stop_ticker(self) -> None:
        """End the ticker; nothing waits any more."""
        self._ticker.stop(wait=True)

    def _count(self, job: Job, submit: Callable[..., object]) -> None:
        """Count a job that is to come, and see to it that there is a carrier for it."""
        carrier = object()
        if not under(self._lock, self._needs, carrier, job):
            return
        try:
            submit(self._carry, carrier)
        except BaseException:
            # The stock executor queues first and starts a thread then. If that fails, another
            # thread may have begun what is queued, which is as good; else that carrier is one too
            # many, and does no harm.
            if under(self._lock, self._forget, carrier):
                raise

    def _needs(self, carrier: object, job: Job) -> bool:
        """Count a job; return whether this carrier is needed for it. Requires self._lock."""
        if self._broken:
            raise BrokenThreadPool(BROKEN_MESSAGE)
        if self._closed:
            raise RuntimeError(CLOSED_MESSAGE)
        self._waiting[job] = None
        if len(self._unbegun) + self._parked >= len(self._ready) + len(self._waiting):
            return False
        self._unbegun.add(carrier)
        return True

    def _forget(self, carrier: object) -> bool:
        """Forget a carrier; return whether it had not begun. Requires self._lock."""
        if carrier not in self._unbegun:
            return False
        self._unbegun.remove(carrier)
        return True

    def _settle(self, job: Job) -> None:
        """Have a job carried that has got its slot; forget one that will not run."""
        under(self._lock, self._move, job)

    def _move(self, job: Job) -> None:
        """Take it out of those that wait. Requires self._lock."""
        if job not in self._waiting:
            return
        del self._waiting[job]
        if isinstance(job.outcome, Slot):
            self._ready.append(job)
        self._lock.notify()  # one parked carrier: it has a job now, or is not needed

    def _carry(self, carrier: object) -> None:
        """Run the next job. This is what the pool's threads do."""
        try:
            # The job has no name here, for the traceback of its error would keep that.
            self._run(under(self._lock, self._next, carrier))
        except BaseException:  # out of somebody's callback; the pool would swallow it
            logger.critical("a callback raised", exc_info=True)

    def _next(self, carrier: object) -> Job | None:
        """Wait for a job that has a slot; return ``None`` if this carrier is not needed.

        Requires self._lock.
        """
        self._unbegun.discard(carrier)
        while not self._ready:
            if len(self._waiting) <= len(self._unbegun) + self._parked:
                return None
            self._parked += 1
            try:
                self._lock.wait()
            finally:
                self._parked -= 1
        return self._ready.popleft()

    def _run(self, job: Job | None) -> None:
        if job is None:
            return
        slot, job.outcome = job.outcome, None  # for a future may be kept, but no slot by it
        work, job.work = job.work, None
        assert isinstance(slot, Slot)
        if not job.set_running_or_notify_cancel() or work is None:
            self._gate.forfeit(slot)
            self.tell()
            return
        since, result, error = slot.since, None, None
        try:
            self._here.slot = slot
            self.tell()
            if self._broken:
                raise BrokenThreadPool(BROKEN_MESSAGE)
            fn, args, kwargs = work
            result = fn(*args, **kwargs)
        except BaseException as raised:
            error = raised
        try:  # in which a time limit of the job's own may be raised, for all that it is too late
            self._here.slot = work = fn = args = kwargs = None
            if isinstance(error, AbandonedJob):
                self._gate.forfeit(slot, error.reason)
            else:
                self._gate.leave(slot)
            self.tell()
        except BaseException:
            if slot.since is since:  # not left as yet, and not another's by now
                self._gate.leave(slot)
            raise
        finally:
            if error is None:
                job.set_result(result)
            else:
                job.set_exception(error)
            del job, error  # the error's traceback refers to this frame

    def _tick(self) -> None:
        """Look at the ages, for as long as something waits.

        If no thread is to be had for it, they are looked at when a job gets its slot.
        """
        self._gate.expire()
        under(self._lock, self._rest)

    def _rest(self) -> None:
        """Stop to tick if nothing waits. Requires self._lock.

        A job is noted in it, before the ticker is started for that.
        """
        if not self._waiting:
            self._ticker.stop()
