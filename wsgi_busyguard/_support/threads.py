"""Threads of the guard's own: one that looks a few times a second, one that tells the listeners."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from .log import logger

if TYPE_CHECKING:
    from collections.abc import Callable

# As often as Twisted's beat; an age limit of a second is then at most a quarter too late.
INTERVAL = 0.25


class Beat:
    """Calls ``work`` every quarter of a second, on a thread of its own; it outlives what raises."""

    def __init__(self, work: Callable[[], object], interval: float = INTERVAL) -> None:
        self._work = work
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="busyguard-beat", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for it unless called by ``work`` itself."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(1)

    def _run(self) -> None:
        failing = False
        while not self._stopped.wait(self._interval):
            try:
                self._work()
                failing = False
            except Exception:
                if not failing:
                    failing = True
                    logger.exception("could not look after the queue; tried again at every beat")


class Teller:
    """Calls what is put to it, in order, on a thread of its own.

    For listeners: a thread that sees a change may hold a server's lock, or be its loop.
    """

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.put: Callable[[Callable[[], object]], object] = self._news.put
        self._thread = threading.Thread(target=self._run, name="busyguard-teller", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after what has been put so far."""
        self._news.put(None)

    def _run(self) -> None:
        while (tell := self._news.get()) is not None:
            try:
                tell()
            except Exception:
                logger.exception("%r raised", tell)
