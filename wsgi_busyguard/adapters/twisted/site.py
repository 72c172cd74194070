"""A whole site from one call: the pool, the guard, and a shutdown that never hangs."""

from __future__ import annotations

import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any

from twisted.python.threadpool import ThreadPool
from twisted.web.server import Request, Site

from ...policy import seconds, whole
from .resource import GuardedWSGIResource

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# Seconds that stuck requests get when the process is told to stop: what Kubernetes gives a pod.
GRACE = 30.0


class GuardedSite(Site):
    """A :class:`twisted.web.server.Site` with a guard: ``site.guard.monitor``."""

    guard: GuardedWSGIResource

    def log(self, request: Any) -> None:
        """Write the access log's line, but none for checks and refusals."""
        if not getattr(request, "quiet", False):
            super().log(request)


class GuardedRequest(Request):
    """A request that lets ``OPTIONS *`` through to the resource, as ``OPTIONS /``."""

    def process(self) -> None:
        """Process the request; Twisted itself would answer ``OPTIONS *`` with 200, always."""
        if self.path == b"*" and self.method == b"OPTIONS":
            self.path = self.uri = b"/"
        super().process()  # type: ignore[no-untyped-call]


class DaemonThreadPool(ThreadPool):
    """A pool whose threads do not keep a process that has to go."""

    threadFactory = staticmethod(  # type: ignore[assignment]
        functools.partial(threading.Thread, daemon=True)
    )


def guarded_site(
    app: WSGIApplication,
    threads: int = 10,
    *,
    grace: float = GRACE,
    reactor: Any = None,
    **options: Any,
) -> GuardedSite:
    """Return a Site that serves a WSGI app from its own pool behind a guard.

    :param threads: how many requests may be in the app at once.
    :param grace: seconds that running requests get to finish when the process is told to stop.
    :param reactor: the global one if not given.
    :param options: see :class:`GuardedWSGIResource`: ``max_queue``, ``max_wait``,
        ``client_timeout``, ``ready`` and so on.
    :raises ValueError, TypeError: for arguments that cannot be meant.

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
    site = GuardedSite(  # type: ignore[no-untyped-call]
        guard, requestFactory=GuardedRequest, **spare
    )
    site.guard = guard
    reactor.callWhenRunning(pool.start)
    reactor.addSystemEventTrigger("before", "shutdown", guard.drain, grace)
    reactor.addSystemEventTrigger("after", "shutdown", _stop, pool)
    return site


def _stop(pool: ThreadPool) -> None:
    """Stop a pool without waiting for threads that are stuck, as pool.stop() itself would."""
    stopper = threading.Thread(target=pool.stop, daemon=True)
    stopper.start()
    stopper.join(0.5)
