"""How late the reactor is. Knows the reactor's clockwork and nothing of the web."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ...load import LAG_FREE

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...load import Load

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

    def added(self, load: Load) -> Load:
        """Return a load with this lag, where it is the larger one."""
        lag = self.lag
        return load if lag < max(LAG_FREE, load.lag) else load._replace(lag=lag)

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
