"""A whole site from one call: the pool, the guard, and a shutdown that never hangs."""

from __future__ import annotations

import functools
import inspect
import os
import threading
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import succeed
from twisted.python.threadpool import ThreadPool
from twisted.web.server import Request, Site

from ...policy import seconds, whole
from ..front.base import GRACE_SECONDS
from .connections import Connections, connection_of, safely
from .resource import GuardedWSGIResource
from .shutdown import StoppingSite

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from twisted.internet.defer import Deferred


class GuardedSite(Site):
    """A :class:`twisted.web.server.Site` with a guard: ``site.guard.monitor``."""

    guard: GuardedWSGIResource

    #: Whether to write no access log at all.
    quiet = False

    def __init__(self, resource: Any, **options: Any) -> None:
        super().__init__(resource, **options)  # type: ignore[no-untyped-call]
        #: What requests come by; those with answers still to be sent are among them.
        self.connections = Connections(self.reactor)
        self._opened_by = os.getpid()

    def startFactory(self) -> None:
        """Take note of the process, for twistd has forked since this was made."""
        super().startFactory()
        self._opened_by = os.getpid()

    def buildProtocol(self, addr: Any) -> Any:
        """Return the protocol of a connection, which is known from then on."""
        protocol: Any = super().buildProtocol(addr)  # type: ignore[no-untyped-call]
        self.connections.attend(protocol)
        return protocol

    def drain(self, grace: float) -> Deferred[None]:
        """Drain the guard, stop listening, and close the connections when all is sent.

        A client that has connected by then gets an answer still, if it asks within half a second.
        Returns a Deferred that fires when all that is done, or after ``grace`` seconds.
        """
        clock: Any = self.reactor
        until = clock.seconds() + grace

        def stop(_: object) -> Deferred[None]:
            return safely(self._last_call, clock, until) or succeed(None)

        return self.guard.drain(grace).addCallback(stop)

    def _last_call(self, clock: Any, until: float) -> Deferred[None]:
        self.connections.ports.go_on()
        return StoppingSite(clock, self, self.connections).stop(self._opened_by, until)

    def log(self, request: Any) -> None:
        """Write the access log's line, but none for checks and refusals."""
        if not (self.quiet or getattr(request, "quiet", False)):
            super().log(request)


class GuardedRequest(Request):
    """A request that its site knows of, and that lets ``OPTIONS *`` through, as ``OPTIONS /``."""

    _connections: Connections

    # Until the request is whole. Kept longer it would be a cycle, when the client has left.
    _connection: Any = None

    def __init__(self, channel: Any, *args: Any, **options: Any) -> None:
        super().__init__(channel, *args, **options)  # type: ignore[no-untyped-call]
        safely(self._begin, channel)

    def _begin(self, channel: Any) -> None:
        connection = connection_of(channel)
        self._connections = channel.site.connections
        self._connections.begun(connection)
        self._connection = connection

    def gotLength(self, length: int | None) -> None:
        """Note that the head is there, and prepare for the body."""
        if self._connection is not None:
            safely(self._connections.headed, self._connection)
        super().gotLength(length)  # type: ignore[no-untyped-call]

    def process(self) -> None:
        """Process the request; Twisted itself would answer ``OPTIONS *`` with 200, always."""
        if self.path == b"*" and self.method == b"OPTIONS":
            self.path = self.uri = b"/"
        connection, self._connection = self._connection, None
        if connection is not None:
            safely(self._connections.asked, connection)
        super().process()  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Any) -> None:
        """Give up, for the client has left, or over HTTP/2 has taken its request back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            safely(self._connections.given_up, connection)
        super().connectionLost(reason)  # type: ignore[no-untyped-call]


class DaemonThreadPool(ThreadPool):
    """A pool whose threads do not keep a process that has to go."""

    threadFactory = staticmethod(  # type: ignore[assignment]
        functools.partial(threading.Thread, daemon=True)
    )


def guarded_site(
    app: WSGIApplication,
    threads: int = 10,
    *,
    grace: float = GRACE_SECONDS,
    reactor: Any = None,
    **options: Any,
) -> GuardedSite:
    """Return a Site that serves a WSGI app from its own pool behind a guard.

    :param threads: how many requests may be in the app at once.
    :param grace: seconds that running requests get to finish when the process is told to stop.
    :param reactor: the global one if not given.
    :param options: see :class:`GuardedWSGIResource`: ``max_queue``, ``max_wait``,
        ``client_timeout``, ``ready``, ``board``, ``push`` and so on.
    :raises ValueError, TypeError: for arguments that are not valid.

    On SIGTERM checks say draining at once, new requests are refused, and the process goes when
    the last one inside or in the queue is served, or when ``grace`` is over.
    """
    if reactor is None:
        from twisted.internet import reactor  # installs one, so not before it is needed
    whole("threads", threads, least=1)
    seconds("grace", grace)
    # As many threads at once as there may ever be: a pool that grows while it is under load
    # would be starting threads when it can least afford to.
    pool = DaemonThreadPool(threads, threads, "busyguard")
    guard = GuardedWSGIResource(reactor, pool, app, **options)
    # Twisted parses form posts in the reactor thread, for resources that want the fields; a WSGI
    # app does not, and an 8 MB post would hold up every check for a second. (Since 25.5.)
    known = inspect.signature(Site.__init__).parameters
    spare = {"parsePOSTFormSubmission": False} if "parsePOSTFormSubmission" in known else {}
    site = GuardedSite(guard, requestFactory=GuardedRequest, reactor=reactor, **spare)
    site.guard = guard
    guard.attend(site.connections)
    reactor.callWhenRunning(pool.start)
    reactor.addSystemEventTrigger("before", "shutdown", site.drain, grace)
    reactor.addSystemEventTrigger("after", "shutdown", _stop, pool)
    return site


def _stop(pool: ThreadPool) -> None:
    """Stop a pool without waiting for threads that are stuck, as pool.stop() itself would."""
    stopper = threading.Thread(target=pool.stop, daemon=True)
    stopper.start()
    stopper.join(0.5)
