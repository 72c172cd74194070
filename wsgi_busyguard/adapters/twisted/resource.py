"""The resource that stands where WSGIResource stood: answers, refuses, or lets in.

Everything in ``render()`` runs in the reactor thread, before a pool thread is asked for.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from twisted.web.wsgi import WSGIResource
from zope.interface import implementer

from ..._support.log import Streak
from ..._support.request_head import split_target
from ..._support.wsgi_app import wsgi_app
from ...gate import Slot
from ...options import TWISTED, from_keywords
from ...policy import Reason
from ..front.base import Front, Visit, nothing
from ..readers.derived import DerivedAdapter
from .connections import Connections, connection_of, safely
from .pipelining import AnswerTurns
from .reactor_lag import ReactorBeat
from .reactor_response import headers_of, send

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication
    from twisted.python.threadpool import ThreadPool
    from twisted.web.server import Request

    from ...checks import Check
    from ...deadlines.client_timeout import Client
    from ...gate import Gate
    from ...load import Adapter, Load
    from ..front.accept_backlog import StandingQueue


@implementer(IResource)
class GuardedWSGIResource(Front):
    """Serves a WSGI app from a thread pool, with the queue in front of the pool.

    Takes what :class:`twisted.web.wsgi.WSGIResource` takes, and stands in the same place. The pool
    should be for this app alone: as many requests are let in as it may have threads. With a
    ``board`` it posts there from the moment at which the reactor runs, at the reactor's own beat.

    :param keywords: see :class:`~wsgi_busyguard.options.GuardOptions`.

    :ivar monitor: the :class:`~wsgi_busyguard.Monitor`; its listeners run in the reactor thread.
    :ivar gate: the :class:`~wsgi_busyguard.Gate`.
    """

    isLeaf = True

    def __init__(
        self,
        reactor: Any,
        threadpool: ThreadPool,
        application: WSGIApplication,
        **keywords: Any,
    ) -> None:
        wsgi_app("application", application)
        if not isinstance(getattr(threadpool, "max", None), int):
            raise TypeError(f"threadpool must be a twisted ThreadPool, not {threadpool!r}")
        self.reactor = reactor
        self._pool = threadpool
        self._threadless = Streak()  # no pool thread is to be had
        self._turns = AnswerTurns(reactor)
        self._beside: Callable[[], object] = nothing  # what else to do a few times a second
        self._beat = ReactorBeat(reactor, self.beat)
        self._standing: StandingQueue | None = None  # who cannot get in
        options, deliver = from_keywords(TWISTED, keywords), reactor.callFromThread
        super().__init__(threadpool.max, options, self._reads, deliver, loop=True)
        self._guarded = self.guarded(application)
        # Not before the reactor runs: twistd forks before that, and a beat would be late at once.
        reactor.callWhenRunning(self._beat.start)
        reactor.callWhenRunning(self.start)
        reactor.addSystemEventTrigger("after", "shutdown", self.stop)

    def render(self, request: Request) -> Any:
        """Answer a check, refuse, or let the request in. In the reactor thread."""
        check = safely(self._match, request)
        if check is not None:
            self._turns.take(request, partial(self._answer, request, check))
        else:
            visit = TwistedVisit(self, request)
            WSGIResource(self.reactor, visit, self._guarded).render(request)
        return NOT_DONE_YET

    def attend(self, connections: Connections) -> None:
        """Also look after the connections of a site, and see who cannot get in there."""
        self._beside = connections.look
        self._standing = connections.ports.standing
        connections.ports.refusing = partial(self.refusing, many=True)

    def beat(self) -> None:
        """Look after those who wait; the lag may have changed the state, too."""
        safely(self._beside)
        super().beat()

    def drain(self, grace: float) -> Deferred[None]:
        """Refuse new requests, have checks say draining, and let the rest finish.

        Returns a Deferred that fires when nobody is inside or waits, or after ``grace`` seconds.
        """
        self.begin_drain()
        if self._member is not None:
            self._member.go()
        done: Deferred[None] = Deferred()
        until = self.reactor.seconds() + grace

        def look() -> None:
            if self.gate.empty or self.reactor.seconds() >= until:
                self._beat.stop()
                # The last answers are written by calls that the threads have left to the reactor.
                self.reactor.callLater(0.1, done.callback, None)
            else:
                self.reactor.callLater(0.05, look)

        look()
        return done

    def refuse(self, request: Request, reason: Reason) -> None:
        """Answer 503 in place of the app, now or soon. In the reactor thread."""
        self._turns.take(request, partial(self._refuse, request, reason))

    def submit(self, work: Callable[[], object]) -> bool:
        """Have a pool thread do the work of a request; return whether there is one."""
        try:
            if getattr(self._pool, "joined", False):
                raise RuntimeError("the pool is stopped")  # it would drop the work in silence
            self._pool.callInThread(work)
        except Exception:  # the system has no thread to give
            message = "no thread for a request; refusing until there is one"
            self._threadless.failed(message, exc_info=True)
            return False
        self._threadless.over()
        return True

    # IResource asks for these two; a leaf has no children.
    def getChildWithDefault(self, name: bytes, request: Request) -> Any:
        """Raise :exc:`RuntimeError`: the app handles every path below."""
        raise RuntimeError("a GuardedWSGIResource has no children: its app handles the paths below")

    def putChild(self, path: bytes, child: Any) -> None:
        """Raise :exc:`RuntimeError`: the app handles every path below."""
        raise RuntimeError("a GuardedWSGIResource takes no children: its app handles all below")

    def client_of(self, request: Request) -> Client:
        """Return what a request tells of its client, where that is trusted."""
        if self._read_client is None:
            return self.client({})
        peer = getattr(request.getClientAddress(), "host", "")  # a UNIX socket has none
        return self.client(dict(headers_of(request)), peer)

    def _reads(self, gate: Gate) -> Adapter:
        def read() -> Load:
            load = gate.read()
            return self._beat.added(self._standing.added(load) if self._standing else load)

        return DerivedAdapter(read, gate)

    def _match(self, request: Request) -> Check | None:
        try:
            path, query = split_target(request.method, request.uri)
        except ValueError:  # what the app makes of it is the app's business
            return None
        if path not in self._checks.suspects:
            return None
        method = request.method.decode("latin-1")
        return self.match(method, path, query, dict(headers_of(request)))

    def _answer(self, request: Request, check: Check) -> None:
        send(request, self.answer(check, request.getHeader("accept")))

    def _refuse(self, request: Request, reason: Reason) -> None:
        connection, last = connection_of(request.channel), reason is Reason.DRAINING
        send(request, self.refusal(reason), last)
        if last:
            safely(self._turns.close, connection)


class TwistedVisit(Visit):
    """One request on its way through the gate; to WSGIResource, a thread pool with one method."""

    def __init__(self, guard: GuardedWSGIResource, request: Request) -> None:
        super().__init__(guard, guard.client_of(request))
        self._guard = guard
        self._request = request
        self._work: Callable[[], object] = nothing
        self._gone = False

    def callInThread(self, work: Callable[[], object]) -> None:
        """Have ``work``, which calls the app and sends what it says, done when there is a slot."""
        self._work = work
        if self.enter() and not self._guard.disabled:
            # Only who waits is watched. What has begun is finished, as under WSGIResource.
            self._request.notifyFinish().addErrback(self._left)

    def woken(self, outcome: Slot | Reason) -> None:
        """Go on after having waited; what is said is said in the reactor thread."""
        if isinstance(outcome, Slot):
            super().woken(outcome)
        else:
            self._guard.reactor.callFromThread(super().woken, outcome)

    def run(self) -> None:
        """Have a pool thread serve the request."""
        if not self._guard.submit(self._service):
            # By way of the reactor: leaving here would wake the next one here, and so on down.
            self._guard.reactor.callFromThread(self.forfeit, Reason.QUEUE_FULL)
            self._guard.reactor.callFromThread(self.refuse, Reason.QUEUE_FULL)

    def refuse(self, reason: Reason) -> None:
        """Answer 503 in place of the app. In the reactor thread."""
        self._work = nothing
        if not self._gone:
            self._guard.refuse(self._request, reason)

    def is_too_late(self) -> bool:
        """Return whether it has waited for too long; then the access log has no line of it."""
        is_late = super().is_too_late()
        if is_late:
            self._request.quiet = True  # type: ignore[attr-defined]
        return is_late

    def has_left(self) -> bool:
        """Return whether its client is gone, as the reactor has seen."""
        return self._gone

    def drop(self) -> None:
        """Let go of the request, whose connection is closed."""
        self._work = nothing

    def _service(self) -> None:
        # What it would hold on to until it is over is a cycle, with the request and its body.
        work, self._work = self._work, nothing
        self.serve(work)

    def _left(self, _failure: object) -> None:
        """Give up the place of a client that has left. In the reactor thread."""
        self._gone = True
        self.give_up()
