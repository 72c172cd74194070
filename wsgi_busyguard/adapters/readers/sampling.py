"""Estimates how long a request takes on a server that does not say, by timing one now and then.

Nothing is timed while nobody waits, and no request pays for it but the one that is timed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol
from weakref import ref

from ...counters import counts_of
from ...load import Load, Progresses, service_time, smoothed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ...counters import Counters
    from ...load import Adapter


class Calls(Protocol):
    """What can have a call be timed."""

    def time_next(self, sampled: SamplingAdapter) -> object:
        """Have the next call tell ``sampled`` when it begins and ends; return what is to be it."""

    def is_next(self, timed: object) -> bool:
        """Return whether that is the next call still."""


class Call:
    """A call that is being timed, for as long as somebody has this."""

    __slots__ = ("__weakref__",)


class SamplingAdapter:
    """Reads what an adapter reads, and adds what it does not know: ``service`` and ``waited``.

    :param adapter: knows neither. If it has a ``progress()``, that is a number which changes when a
        request has ended in whichever process.
    :param calls: the guard behind which the app runs; set later where it is not known yet.
    :param clock: monotonic seconds.

    A look that finds somebody waiting has the next call be timed. When that begins, somebody has
    got a thread; until it does, nobody has, and that is what ``waited`` says. It is not the age of
    the oldest in the queue, which nobody knows, but never more than that. Bodies that are iterated
    after the call are not timed.

    Looks and calls may come from any thread. Nothing here is locked: two looks at once may both
    have the next call be timed, and then both are.
    """

    def __init__(
        self,
        adapter: Adapter,
        calls: Calls | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calls = calls
        self._adapter = adapter
        self._progresses = adapter if isinstance(adapter, Progresses) else None
        self._clock = clock
        self._next: object = None  # what will be timed
        self._queued = 0  # at the last look
        self._still_since = 0.0  # since when nobody has got a thread, as far as is known
        self._progress: object = None
        # When those that are being timed began. One that was interrupted by an exception out of
        # nowhere may never say that it has ended, and its age would grow for ever.
        self._running: dict[ref[Call], float] = {}
        self._mean: float | None = None

    def read(self) -> Load | None:
        """Return the figures of this instant."""
        load = self._adapter.read()
        if load is None or load.service is not None or self.calls is None:
            return load
        now, before, self._queued = self._clock(), self._queued, load.queued
        if load.queued < before:  # somebody has got a thread, in whichever process
            self._still_since = now
        if not load.queued:
            return load
        self._look_out(self.calls, now)
        service = self._service(load.active, now)
        return load._replace(waited=max(load.waited, now - self._still_since), service=service)

    def timing(self, app: WSGIApplication) -> WSGIApplication:
        """Return ``app`` for the call that is to be timed."""

        def timed(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            call = self.begin()
            try:
                return app(environ, start_response)
            finally:
                self.end(call)

        return timed

    def begin(self) -> Call:
        """Note that a call begins; return what :meth:`end` is to be told."""
        self.moved()
        call = Call()
        self._running[ref(call, self._running.pop)] = self._clock()
        return call

    def end(self, call: Call) -> None:
        """Note that it has ended."""
        self._mean = smoothed(self._mean, self._clock() - self._running.pop(ref(call)))

    def moved(self) -> None:
        """Note that somebody has got a thread."""
        self._next = None

    def counts(self) -> Counters | None:
        """Return what is counted where the load is read."""
        return counts_of(self._adapter)

    def __repr__(self) -> str:
        return repr(self._adapter)

    def _look_out(self, calls: Calls, now: float) -> None:
        """Have a call be timed, and see whether anybody has got on since the last look."""
        if self._next is None or not calls.is_next(self._next):
            # One has come, or one that came just then has put back what it had found before.
            self._next = calls.time_next(self)
            self._still_since = now
        if self._progresses is not None:
            ended = self._progresses.progress()
            if ended != self._progress:
                self._progress = ended
                self._still_since = now

    def _service(self, active: int, now: float) -> float | None:
        """Return the seconds that a request takes, those that run counted at their age."""
        ages = [now - since for since in list(self._running.values())]
        if self._mean is not None:  # those who are not timed are taken to be like the others
            ages += [0.0] * (active - len(ages))
        return service_time(self._mean, ages)
