"""gevent workers: a greenlet a connection, on a hub that one busy request can stop."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from gevent import sleep
from gunicorn.workers.ggevent import GeventWorker

from ...gate import Gate
from ...gate.gated_app import holding
from ...policy import Reason, loose_limits
from ...responses import Responses
from ..front.descriptors import (
    SPARE_DESCRIPTORS,
    Room,
    default_max_queue,
    eviction_order,
    excess,
    hang_up,
    is_open,
    most_connections,
    overdrawn,
)
from .hub_load import HubLoad
from .worker import GuardedWorker, counting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ...options import GuardOptions
    from ...policy import Limits
    from ..front.progress import Upload


class GuardedGevent(GuardedWorker, GeventWorker):
    """gunicorn's gevent worker, with its requests counted.

    A limit of 1000 greenlets says nothing about the app; ``BUSYGUARD_SLOTS`` does, and then
    the guard is the queue in each worker. Beats come from the hub, so that one that is stuck shows.
    """

    loop = picks_up = True

    @classmethod
    def without(cls, options: GuardOptions) -> dict[str, str]:
        """Return what has no effect."""
        reason = "without BUSYGUARD_SLOTS the queue is in the kernel: set it, too"
        return {"max_queue": reason} if options.slots is None else {}

    @classmethod
    def bounds(cls, cfg: Any, options: GuardOptions) -> Limits | None:
        """Return the limits of the gate in a worker, ``None`` where there is none."""
        if options.slots is None:
            return None
        return loose_limits(
            options.slots, **options.some("max_queue", "max_wait", "client_timeout")
        )

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # Connections by which no request is being served, the oldest first, and whether one was.
        self._idle: dict[Any, bool] = {}
        self._open = 0
        self._room: Room[Any] = Room(self._end, is_open)

    def handle(self, *arguments: Any) -> None:
        """Serve a connection; one that asks for nothing makes room when there are too many."""
        self._open += 1
        self._safely(self._met, *arguments)
        try:
            super().handle(*arguments)
        finally:
            self._open -= 1
            self._safely(self._forget, *arguments)

    def handle_http2(self, *arguments: Any, **named: Any) -> Any:
        """Serve a connection of HTTP/2, which is known to be idle to nobody here."""
        self._safely(self._forget, *arguments)
        return super().handle_http2(*arguments, **named)

    def _met(self, listener: Any, client: Any, *_: Any) -> None:
        self.standing.moved()
        self._room.make(max(self._crowd(), excess(client.fileno())), self._in_turn)
        self._idle[client] = False

    def _forget(self, listener: Any, client: Any, *_: Any) -> None:
        self._idle.pop(client, None)

    def work(self) -> tuple[Any, ...]:
        """Also make room if nobody could go when the last one came."""
        return (self._look_for_room, self.clients.cut_the_stalled, *super().work())

    def queue(self) -> Any:
        """Return the gate of the requests, which without a limit only counts."""
        options = self.options
        # As many as there are file descriptors for: gevent accepts a hundred before one is served.
        self.worker_connections = most_connections(self.cfg.worker_connections, SPARE_DESCRIPTORS)
        if options.slots is None:
            self._gate = counting(self.worker_connections)
        else:
            room = max(0, self.worker_connections - options.slots - SPARE_DESCRIPTORS)
            waits = options.some("max_queue", "max_wait", "client_timeout")
            if options.max_queue is None:
                waits["most_queued"] = min(default_max_queue(options.slots), room)
            self._gate = self.gate = Gate(options.slots, **waits)
            self._gate.subscribe(lambda: self.publisher.post())
        return self._gate

    def guarded(self, app: WSGIApplication) -> WSGIApplication:
        """Return the app behind the gate, and that behind the guard."""
        timeout = self.options.timeout
        self._hub_load = HubLoad(self.load.portion)
        refused = Responses(**self.options.some("refusal", "retry_after")).refused
        app = holding(
            self._posting(app), self._gate, self.monitor, refused, timeout, self.read_client
        )
        if self.options.slots is None:
            count = partial(self._gate.lose, Reason.QUEUE_AGE)
            app = self.at_pick_up(app, self._hub_load.read, count)
        return super().guarded(app)

    def handle_request(self, *arguments: Any) -> Any:
        """Serve a request, and post when it is over. Others have their turn before the next one.

        What a client has sent ahead is read without a wait, and whoever asks for many checks and
        reads no answer would stop the hub until its buffers are full, some ten seconds.
        """
        watched = self._safely(self._watched, *arguments)
        try:
            kept = super().handle_request(*arguments)
        finally:
            if watched is not None:
                self._safely(self._unwatch, watched, *arguments)
            self.publisher.post()
        sleep(0)
        return kept

    def _watched(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Upload:
        self._idle.pop(sock, None)
        unreader, watched = req.unreader, self.clients.watched(sock)
        unreader.sock = watched
        self.clients.begin(watched)
        return watched

    def _unwatch(self, watched: Upload, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        self.clients.end(watched)
        req.unreader.sock = sock  # by which gunicorn waits for the next request
        self._idle[sock] = True  # the last, from now on

    def _crowd(self) -> int:
        """Return how many connections are too many to accept another; gevent has a bound."""
        most: int = self.worker_connections
        return self._open + 1 - most

    def _look_for_room(self) -> None:
        self._room.make(max(self._crowd(), overdrawn()), self._in_turn)

    def _in_turn(self) -> list[Any]:
        silent = [client for client, was_served in self._idle.items() if not was_served]
        idle = [client for client, was_served in self._idle.items() if was_served]
        return eviction_order(silent, idle, [])

    def _end(self, client: Any) -> None:
        del self._idle[client]
        # Its greenlet finds the end, and closes it; gevent's own shutdown() would raise there.
        hang_up(getattr(client, "_sock", client))

    def _posting(self, app: WSGIApplication) -> WSGIApplication:
        """Return ``app``, with a post when a request has got in: the hub may be stuck from then."""

        def posting(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            self._hub_load.admitted += 1
            self.publisher.post()
            return app(environ, start_response)

        return posting
