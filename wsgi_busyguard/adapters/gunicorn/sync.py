"""Workers that serve one connection at a time: the queue is the kernel's, and all share it."""

from __future__ import annotations

from typing import Any

from gunicorn.workers.sync import SyncWorker

from .worker import Guarded, counting


class GuardedSync(Guarded, SyncWorker):
    """gunicorn's sync worker, counted.

    Nothing can be answered or refused in front of it; checks are answered by the check port in the
    master (``BUSYGUARD_CHECK``). A name that ends in "SyncWorker" gunicorn would replace by its
    threaded one as soon as there are threads.
    """

    without = ("slots", "max_queue", "max_wait")

    def queue(self) -> Any:
        """Return the one place that this worker has."""
        self._gate = counting(1)
        return self._gate

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve a connection; whoever is slow to send a request takes the worker too."""
        self.standing.moved()
        slot = self._gate.take()
        try:
            self.poster.post()
            super().handle(listener, client, addr)
        finally:
            self._gate.leave(slot)
            self.poster.post()
