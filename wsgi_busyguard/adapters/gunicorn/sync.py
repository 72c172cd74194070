"""Workers that serve one connection at a time: the queue is the kernel's, and all share it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gunicorn.workers.sync import SyncWorker

from ...deadlines.environ import stamping
from ...policy import Reason
from .worker import GuardedWorker, counting

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ...gate import Slot
    from ...options import GuardOptions
    from ..front.progress import Upload


class GuardedSync(GuardedWorker, SyncWorker):
    """gunicorn's sync worker, counted; it refuses what it has picked up while too many wait.

    Nothing can be answered or refused in front of it; checks are answered by the check port in the
    master (``BUSYGUARD_CHECK``). A name that ends in "SyncWorker" gunicorn would replace by its
    threaded one as soon as there are threads.
    """

    picks_up = True

    _client: Upload | None = None
    _slot: Slot | None = None

    @classmethod
    def without(cls, options: GuardOptions) -> dict[str, str]:
        """Return what has no effect."""
        reason = "a worker has one place, and the queue is in the kernel: use GuardedThreads"
        return dict.fromkeys(("slots", "max_queue"), reason)

    def queue(self) -> Any:
        """Return the one place that this worker has."""
        self._gate = counting(1)
        return self._gate

    def guarded(self, app: WSGIApplication) -> WSGIApplication:
        """Return the guarded app behind what a request's headers tell of its client."""
        guard = super().guarded(self.at_pick_up(app, self.load.portion, self._forfeit))
        if self.read_client is None:
            return guard
        return stamping(guard, self.monitor, self.options.timeout, self.read_client)

    def handle(self, *arguments: Any) -> None:
        """Serve a connection; whoever is slow to send a request takes the worker too."""
        self._safely(self._begin, *arguments)
        try:
            super().handle(*arguments)
        finally:
            self._safely(self._finish)

    def handle_request(self, *arguments: Any) -> Any:
        """Serve a request, whose client has to get on with what it still sends."""
        self._safely(self._watch, *arguments)
        return super().handle_request(*arguments)

    def _begin(self, listener: Any, client: Any, addr: Any) -> None:
        self.standing.moved()
        self._slot = self._gate.take()
        self._client = served = self.clients.watched(client)
        if not self.cfg.is_ssl:  # else the socket is soon replaced by another one
            served.await_head()
        self.clients.begin(served)
        self.publisher.post()

    def _watch(self, listener: Any, req: Any, client: Any, addr: Any) -> None:
        unreader = req.unreader
        self._unwatch()
        self._client = unreader.sock = self.clients.watched(client)
        self.clients.begin(self._client)

    def _unwatch(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            self.clients.end(client)

    def _finish(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            self._gate.leave(slot)
        self._unwatch()
        self.publisher.post()

    def _forfeit(self) -> None:
        """Count the request that is being served as refused, and not by how long it took."""
        if self._slot is not None:
            self._gate.forfeit(self._slot, Reason.QUEUE_AGE)

    def work(self) -> tuple[Any, ...]:
        """Also cut those off who do not get on."""
        return (self.clients.cut_the_stalled, *super().work())
