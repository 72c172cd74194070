"""The standard library's thread pool behind a gate.

``concurrent.futures`` knows neither how long its queue is nor how many threads are idle, and its
queue has no end. Nothing here knows a server.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ...adaptive import adapted
from ...gate import Gate, Slot
from ...monitor import Monitor
from ...options import is_disabled
from ...policy import flag, whole
from .carriers import Carriers, Job

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...counters import Counters
    from ...load import Listener, Load

P = ParamSpec("P")
R = TypeVar("R")


class CountingExecutor(ThreadPoolExecutor):
    """A :class:`~concurrent.futures.ThreadPoolExecutor` behind a gate; also an adapter.

    :param max_workers: threads at the most: the capacity; ``None`` is the standard library's
        default, four more than there are processors and 32 at the most.
    :param thread_name_prefix: as in the stock executor.
    :param initializer: likewise.
    :param initargs: likewise.
    :param max_queue: how many jobs may wait at most, ``math.inf`` no bound; ``None`` is as many as
        the :class:`~wsgi_busyguard.policy.Discipline` says: 400 in a burst, in an overload at most
        ``4 * max_workers``.
    :param max_wait: seconds that a job may wait at most, ``math.inf`` no limit; ``None`` is four
        fifths of ``client_timeout`` in a burst, one fifth in an overload.
    :param client_timeout: seconds after which a client gives up; ``None`` is 5.
    :param most_queued: how many may wait whatever the limits, where each job holds something open.
    :param adaptive: whether fewer jobs run at once while they only compete for the interpreter.
    :param on_busy: called with a :class:`~wsgi_busyguard.load.Transition`, in the thread that
        saw the change.
    :param on_free: likewise.
    :param changed: called with nothing, outside any lock, after each change of the figures: a job
        was queued, begun, ended or taken out. One that raises is logged once a streak.
    :param ticker: whether a thread of its own looks at the ages while something waits, so that
        jobs time out although every thread is stuck. ``False`` where a loop calls :meth:`expire`.
    :ivar gate: the :class:`~wsgi_busyguard.gate.Gate`. Its slots are the jobs'; look, do not enter.
    :ivar monitor: the :class:`~wsgi_busyguard.monitor.Monitor` over it.

    Everything else is as in the stock executor: waiting jobs run before :meth:`shutdown` returns
    and before the process ends, unless they are cancelled. A job's slot is left just before its
    future has the result, so whoever waited for that finds the slot free. ``map()`` submits all its
    jobs at once where it is not given a ``buffersize`` (Python 3.14), and stops with
    :exc:`QueueFull` at the one for which there is no place.

    All methods may be called from any thread. *After a fork* the child has none of the threads, as
    with the stock executor: make one after the fork.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_queue: float | None = None,
        max_wait: float | None = None,
        client_timeout: float | None = None,
        most_queued: float = math.inf,
        adaptive: bool = True,
        on_busy: Listener | None = None,
        on_free: Listener | None = None,
        changed: Callable[[], object] | None = None,
        ticker: bool = True,
    ) -> None:
        if max_workers is None:
            # Documented for ThreadPoolExecutor; process_cpu_count() from Python 3.13 on.
            processors = getattr(os, "process_cpu_count", os.cpu_count)()
            max_workers = min(32, (processors or 1) + 4)
        whole("max_workers", max_workers, least=1)
        if changed is not None and not callable(changed):
            raise TypeError(f"changed must be callable with nothing, not {changed!r}")
        if is_disabled():  # as the stock executor: what is submitted waits for its turn
            max_queue = max_wait = math.inf
            adaptive = False
        gate = Gate(
            max_workers,
            max_queue,
            max_wait,
            client_timeout=client_timeout,
            most_queued=most_queued,
        )
        self.gate = adapted(gate, flag("adaptive", adaptive))
        self._carriers = Carriers(self.gate, changed, flag("ticker", ticker))
        if callable(initializer):  # else the stock executor says what it expected
            initializer, initargs = partial(self._carriers.initialize, initializer), (initargs,)
        super().__init__(max_workers, thread_name_prefix, initializer, initargs)
        self.monitor = Monitor(self.gate, on_busy=on_busy, on_free=on_free)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have ``fn`` run in a thread, and return the future of its result.

        The future gets :exc:`QueueTimeout` if the job has waited for too long.

        :raises QueueFull: if there is no place in the queue.
        :raises RuntimeError: after :meth:`shutdown`, and when an initializer has raised.
        """
        job = Job(self._carriers, (fn, args, kwargs))
        self._carriers.add(job, super().submit)
        return job

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; those that were taken still run, unless cancelled."""
        self._carriers.close(cancel_futures)
        super().shutdown(wait)
        if wait:
            self._carriers.stop_ticker()

    def expire(self) -> None:
        """Time out the jobs that have waited for too long. For a loop, a few times a second."""
        self.gate.expire()

    def current(self) -> Slot | None:
        """Return the slot of the job that runs in this thread, ``None`` outside of jobs."""
        return self._carriers.current()

    def read(self) -> Load:
        """Return the figures of this instant. Callable from any thread."""
        return self.gate.read()

    def counts(self) -> Counters:
        """Return what has been counted of the jobs."""
        return self.gate.counts()

    def subscribe(self, changed: Callable[[], object]) -> None:
        """Have ``changed`` called, outside any lock, when the state may have changed."""
        self.gate.subscribe(changed)

    def __repr__(self) -> str:
        load = self.read()
        return f"<CountingExecutor {load.active}/{load.capacity} with {load.queued} waiting>"
