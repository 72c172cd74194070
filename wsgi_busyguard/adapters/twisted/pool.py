"""Twisted's thread pools: one that is read, and one that tells when it becomes busy or free."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from twisted.python.threadpool import ThreadPool

from ..._support.locks import under
from ...load import Load, service_time, smoothed
from ...monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...load import Listener


class BusyThreadPool(ThreadPool):
    """A thread pool that calls back when it becomes busy and when it becomes free again.

    :param minthreads: threads to start with.
    :param maxthreads: threads at the most: the capacity.
    :param name: for the threads' names.
    :param on_busy: called with a :class:`~wsgi_busyguard.load.Transition`, in the reactor thread.
    :param on_free: likewise.
    :param reactor: the reactor to call back in; the global one if not given.

    Busy is when more jobs are queued than threads are idle. It counts every job given to it, not
    only requests, and bounds nothing.
    """

    def __init__(
        self,
        minthreads: int = 5,
        maxthreads: int = 20,
        name: str | None = None,
        *,
        on_busy: Listener | None = None,
        on_free: Listener | None = None,
        reactor: Any = None,
    ) -> None:
        super().__init__(minthreads, maxthreads, name)
        self._reactor = reactor
        self._counts = _JobCounters()
        self.monitor = Monitor(self, on_busy=on_busy, on_free=on_free, deliver=self._in_reactor)

    def callInThreadWithCallback(
        self,
        onResult: Any,
        func: Callable[..., Any],
        *args: Any,
        **kw: Any,
    ) -> None:
        """Run ``func`` in a thread; see the method of Twisted's own pool."""
        if self.joined:
            return  # as Twisted does; what will never run must not be counted
        counts = self._counts
        job = object()

        def counted() -> Any:
            counts.start(job)
            try:
                return func(*args, **kw)
            finally:
                if counts.finish(job) == self.max - 1:
                    self._changed()

        outstanding = counts.submit()
        try:
            super().callInThreadWithCallback(onResult, counted)
        except BaseException:  # a thread could not be started, and the job is lost
            counts.forget()
            raise
        if outstanding > self.max:
            self._changed()

    def adjustPoolsize(self, *args: Any, **kw: Any) -> None:
        """Change the pool's size; the state is judged anew."""
        super().adjustPoolsize(*args, **kw)
        if hasattr(self, "monitor"):
            self.monitor.refresh()

    def read(self) -> Load:
        """Return the pool's figures, exact and from one instant. Callable from any thread."""
        outstanding, mean, ages = self._counts.look()
        active = min(outstanding, self.max)
        queued = outstanding - active
        return Load(queued, active, self.max, service=service_time(mean, ages))

    def subscribe(self, changed: Callable[[], object]) -> None:
        """Have ``changed`` called when the state may have changed; there can be one."""
        self._changed = changed

    def __setstate__(self, state: Any) -> None:
        # Twisted runs ThreadPool.__init__ with the two sizes and keeps nothing else.
        BusyThreadPool.__init__(self, state["min"], state["max"])

    def __repr__(self) -> str:
        load = self.read()
        return f"<BusyThreadPool {load.active}/{load.capacity} with {load.queued} waiting>"

    def _in_reactor(self, tell: Callable[[], None]) -> None:
        reactor = self._reactor
        if reactor is None:
            from twisted.internet import reactor  # installs one, so not before it is needed
        reactor.callFromThread(tell)


class _JobCounters:
    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._outstanding = 0
        self._running: dict[object, float] = {}
        self._mean: float | None = None

    def submit(self) -> int:
        return under(self._lock, self._add, 1)

    def forget(self) -> None:
        under(self._lock, self._add, -1)

    def _add(self, jobs: int) -> int:
        self._outstanding += jobs
        return self._outstanding

    def start(self, job: object) -> None:
        under(self._lock, self._running.__setitem__, job, time.monotonic())

    def finish(self, job: object) -> int:
        return under(self._lock, self._finish, job)

    def _finish(self, job: object) -> int:
        self._mean = smoothed(self._mean, time.monotonic() - self._running.pop(job))
        return self._add(-1)

    def look(self) -> tuple[int, float | None, list[float]]:
        return under(self._lock, self._look)

    def _look(self) -> tuple[int, float | None, list[float]]:
        now = time.monotonic()
        return self._outstanding, self._mean, [now - start for start in self._running.values()]
