"""granian: reads the queue of one worker, which its main process tells on the metrics port.

The queue is in Rust and cannot be seen from Python. Who is in the app is counted by the guards.
"""

from __future__ import annotations

import http.client
import re
import time
from typing import TYPE_CHECKING

from ..._support.threads import Beat
from ...load import Load
from ...policy import whole
from .in_flight import inside

if TYPE_CHECKING:
    from collections.abc import Callable

# A worker tells its figures once a second at most, --metrics-scrape-interval 1, and the beat asks
# four times a second. Its age is told in whole seconds, of which one may stand there twice: so what
# has not changed for longer than this is not told any more.
STALE = 2.5

# Seconds; on loopback the answer takes half a millisecond.
TIMEOUT = 0.2

# What is told is a line of 50 bytes for each of some twenty figures of each worker.
LONGEST = 1_000_000


class GranianAdapter:
    """Reads the load of one granian worker, in the process of that worker.

    :param capacity: how many blocking threads the worker has.
    :param worker: the number of the worker; the first is 1.
    :param port: where granian tells its metrics, ``--metrics-port``.
    :param host: ``--metrics-address``.
    :param active: returns how many requests are in the app now; by default, how many calls are
        inside guards. A thread that iterates a body after its call counts as free.

    ``queued`` is exact, but of up to 1.25 s ago, with ``--metrics --metrics-scrape-interval 1``; it
    is 0 while a thread is free, for nobody waits then. The load is unknown while nothing new has
    been told for 2.5 s: with the default interval of 15 s nearly always. A thread of its own asks.
    """

    def __init__(
        self,
        capacity: int,
        worker: int = 1,
        port: int = 9090,
        host: str = "127.0.0.1",
        *,
        active: Callable[[], int] = inside,
    ) -> None:
        self._capacity = int(whole("capacity", capacity, least=1))
        self._worker = int(whole("worker", worker, least=1))
        self._host, self._port = host, port
        self._active = active
        self._figures = re.compile(
            rb'^granian_(worker_lifetime|blocking_queue)\{worker="%d"\} (\d+)' % worker, re.M
        )
        self._age: bytes | None = None
        # Nothing can have queued in a worker that has just begun.
        self._told = (0, time.monotonic())
        self._beat = Beat(self.look)
        self._beat.start()

    def read(self) -> Load | None:
        """Return the figures of this instant; ``None`` if the queue has not been told of late."""
        queued, at = self._told
        if time.monotonic() - at > STALE:
            return None
        active = min(self._active(), self._capacity)
        # Whoever finds a thread free does not wait: what was told is over.
        return Load(queued if active == self._capacity else 0, active, self._capacity)

    def look(self) -> None:
        """Ask for the figures and keep them; for the thread of its own, since it waits."""
        try:
            told = dict(self._figures.findall(self._metrics()))
        except (OSError, http.client.HTTPException):
            return
        age = told.get(b"worker_lifetime")
        if age != self._age and b"blocking_queue" in told:
            self._age = age
            self._told = int(told[b"blocking_queue"]), time.monotonic()

    def _metrics(self) -> bytes:
        line = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT)
        try:
            line.request("GET", "/metrics")
            return line.getresponse().read(LONGEST)
        finally:
            line.close()

    def stop(self) -> None:
        """Ask no more."""
        self._beat.stop()

    def __repr__(self) -> str:
        where = f"{self._host}:{self._port}"
        return f"<GranianAdapter of {self._capacity} threads, worker {self._worker} at {where}>"
