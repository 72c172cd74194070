"""How late the reactor is. Knows the reactor's clockwork and nothing of the web."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ...load import LAG_FREE, Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...counters import Counters
    from ...gate import Gate

INTERVAL_SECONDS = 0.25


class ReactorBeat:
    """Calls ``work`` in the reactor every quarter of a second and knows how late that is.

    A starved reactor takes no requests in, so no queue would show that it is stuck.
    """

    def __init__(self, reactor: Any, work: Callable[[], object]) -> None:
        self._reactor = reactor
        self._work = work
        self._late = 0.0
        self._last: float | None = None
        self._call: Any = None

    @property
    def lag(self) -> float:
        """Seconds by which the last beat was late, or the next one already is.

        Readable from any thread: it grows while the reactor is stuck.
        """
        last = self._last
        if last is None:
            return 0.0
        return max(self._late, time.monotonic() - last - INTERVAL_SECONDS)

    def start(self) -> None:
        """Begin to beat. In the reactor thread, once it runs."""
        self._last = time.monotonic()
        self._call = self._reactor.callLater(INTERVAL_SECONDS, self._beat)

    def stop(self) -> None:
        """Stop beating, and know of no lag any more."""
        self._last = None
        self._late = 0.0
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _beat(self) -> None:
        now = time.monotonic()
        if self._last is not None:
            self._late = max(0.0, now - self._last - INTERVAL_SECONDS)
        self._last = now
        self._call = self._reactor.callLater(INTERVAL_SECONDS, self._beat)
        self._work()


class LateGate:
    """A gate in front of which a reactor may be late: the adapter of a guarded site.

    :ivar added: returns a load with those who cannot get in.
    """

    added: Callable[[Load], Load]

    def __init__(self, gate: Gate, beat: ReactorBeat) -> None:
        self._gate = gate
        self._beat = beat
        self.added = _as_it_is

    def read(self) -> Load:
        """Return the gate's load with the reactor's lag."""
        load, lag = self.added(self._gate.read()), self._beat.lag
        return load if lag < max(LAG_FREE, load.lag) else load._replace(lag=lag)

    def counts(self) -> Counters:
        """Return what the gate has counted."""
        return self._gate.counts()

    def subscribe(self, changed: Callable[[], object]) -> None:
        """Have ``changed`` called when the gate's state may have changed."""
        self._gate.subscribe(changed)

    def __repr__(self) -> str:
        return f"{self._gate!r} behind a reactor {self._beat.lag:.2f} s late"


def _as_it_is(load: Load) -> Load:
    return load
