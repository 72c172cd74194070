"""The pool of a threaded worker: its jobs are connections, and it knows whose they are."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any

from ..._support.request_head import read_head
from ...deadlines.deadline import call_until, timed
from ...deadlines.environ import stamp
from ...options import is_disabled
from ...policy import CLIENT_TIMEOUT, Reason, limits, loose_limits, own_max_wait
from ..executor.carriers import AbandonedJob, Job
from ..executor.executor import CountingExecutor
from ..front.descriptors import SPARE_CONNECTIONS, default_max_queue
from ..front.progress import STALL_SECONDS, Answers, Upload, cut_off
from ..front.sockets import disconnected, has_left, peek
from .request_heads import read_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ...deadlines.client_timeout import Client
    from ...monitor import Monitor
    from ...options import GuardOptions
    from ...policy import Limits

    ReadClient = Callable[[Mapping[str, Any]], Client]


def queue_bound(options: GuardOptions, threads: int, connections: int) -> float:
    """Return how many requests may wait in a worker that accepts so many connections.

    :raises ValueError: if more than it accepts are asked for.
    """
    room = max(0, connections - threads - SPARE_CONNECTIONS)
    if options.max_queue is None or options.max_queue == math.inf:
        return min(default_max_queue(threads) if options.max_queue is None else room, room)
    if options.max_queue > room:
        raise ValueError(
            f"worker_connections={connections} is too few for threads={threads} and"
            f" BUSYGUARD_MAX_QUEUE={options.max_queue}: start gunicorn with --worker-connections"
            f" {threads + int(options.max_queue) + SPARE_CONNECTIONS} at least, or lower the queue"
        )
    return options.max_queue


def pool_limits(options: GuardOptions, cfg: Any) -> Limits:
    """Return the limits of a worker's pool.

    :raises ValueError: if more may wait than a worker of this configuration accepts.
    """
    if options.disabled:  # gunicorn itself accepts no more than so many
        return limits(cfg.threads, math.inf, math.inf)
    waits = options.some("max_queue", "max_wait", "client_timeout")
    waits["most_queued"] = queue_bound(options, cfg.threads, cfg.worker_connections)
    return loose_limits(cfg.threads, **waits)


class ClientGone(AbandonedJob):
    """Whoever asked has left; raised for gunicorn to close the connection."""


class QueuedTooLong(AbandonedJob):
    """It has waited for longer than its client says that it would; raised for it to be refused."""

    reason = Reason.QUEUE_AGE


class ConnectionPool(CountingExecutor):
    """The executor of one worker, which knows whose requests it has."""

    def __init__(
        self, *arguments: Any, progress_timeout: float = STALL_SECONDS, **named: Any
    ) -> None:
        super().__init__(*arguments, **named)
        self.monitor.quiet = True  # the host's writes the log
        self._most = progress_timeout
        self._answers = Answers(progress_timeout)
        self._seen = threading.local()
        self._disabled = is_disabled()
        self._read_client: ReadClient | None = None
        self._timeout = CLIENT_TIMEOUT
        self._connections: dict[Job, Any] = {}

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Job:
        """Take in a call of the worker's ``handle``."""
        job = super().submit(fn, *args, **kwargs)
        assert isinstance(job, Job)
        self._connections[job] = args[0]
        job.add_done_callback(self._forget)
        return job

    def drop_the_gone(self) -> None:
        """Take out those who wait and have left."""
        if self._disabled:
            return
        connections = self._connections.copy()
        left = disconnected(conn.sock for conn in connections.values())
        # Not who has a slot: it may have closed its half only, and waited for nobody.
        for job, conn in connections.items():
            if conn.sock in left:
                job.withdraw()

    def cut_the_stalled(self) -> None:
        """Cut those off who keep a thread waiting and do not get on."""
        conns = [conn for future, conn in self._connections.copy().items() if future.running()]
        stalled = set(self._answers.stalled([conn.sock for conn in conns]))
        for conn in conns:
            if self._has_stalled(conn) or conn.sock in stalled:
                cut_off(conn.sock)

    def _has_stalled(self, conn: Any) -> bool:
        upload = getattr(getattr(conn.parser, "unreader", None), "sock", None)
        if isinstance(upload, Upload):
            return upload.cut_if_stalled()
        # Its first head, and the handshake before it, have one time together.
        is_first = not getattr(conn, "is_http2", False) and hasattr(conn, "since")
        return is_first and time.monotonic() - conn.since > self._most

    def look_again(self, conn: Any) -> AbandonedJob | None:
        """Look at a connection that has a thread now; return what is to be raised of it, if any.

        Whether its client has left while it waited, or has waited for longer than it says that it
        would.
        """
        conn.since = time.monotonic()
        slot = self.current()
        if slot is None or not slot.waited or self._disabled:
            return None
        if has_left(conn.sock):
            return ClientGone()
        return QueuedTooLong() if self._is_too_late(conn, slot.waited) else None

    def watch(self, req: Any, conn: Any) -> None:
        """Look after who sends a request whose head is there."""
        conn.since = math.inf
        sock = getattr(getattr(req, "unreader", None), "sock", None)  # over HTTP/2 it has none
        if sock is not None and not isinstance(sock, Upload):
            req.unreader.sock = Upload(sock, self._most)

    def _is_too_late(self, conn: Any, waited: float) -> bool:
        if self._read_client is None:
            return False
        try:
            head = read_head(read_ahead(conn) + (peek(conn.sock) or b""))
        except ValueError:  # it is encrypted, say, or speaks the PROXY protocol
            head = None
        if head is None:
            return False
        peer = conn.client[0] if isinstance(conn.client, tuple) else ""
        ago, patience = self._read_client({**head.headers, "REMOTE_ADDR": peer})
        in_force = self.gate.discipline.in_force
        return max(ago, waited) > own_max_wait(in_force, self._timeout, patience)

    def stamped(
        self,
        app: WSGIApplication,
        monitor: Monitor,
        timeout: float,
        read_client: ReadClient | None = None,
    ) -> WSGIApplication:
        """Return the app with the guard's stamps in its environ.

        :param read_client: says what a request's headers tell of its client.
        """
        if self._disabled:
            return app
        self._read_client, self._timeout, seen = read_client, timeout, self._seen

        def stamped(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            slot = self.current()
            since, waited = time.monotonic(), 0.0
            # A connection of HTTP/2 has one slot for many requests; only the first has waited.
            if slot is not None and getattr(seen, "since", None) != slot.since:
                seen.since = since = slot.since or since
                waited = slot.waited
            ago, patience = (0.0, timeout) if read_client is None else read_client(environ)
            waited = max(waited, ago)  # in the proxy and here
            until = since - waited + patience
            stamp(environ, monitor, waited, until)
            body = call_until(until, app, environ, start_response)
            return timed(body, until, monitor)

        return stamped

    def _forget(self, job: Any) -> None:
        self._connections.pop(job, None)
