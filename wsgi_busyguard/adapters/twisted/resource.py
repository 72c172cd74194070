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

from ..._support.log import logger
from ..._support.request_head import split_target
from ..._support.wsgi_app import wsgi_app
from ...board.membership import Member
from ...deadlines.client_timeout import Client, reader
from ...deadlines.clock_skew import QueueHeader
from ...deadlines.deadline import timed
from ...deadlines.environ import stamp
from ...gate import Gate, Slot, Ticket
from ...haproxy import Push
from ...metrics.orca import Reporter
from ...monitor import Monitor
from ...options import TWISTED, from_keywords
from ...policy import Reason, own_max_wait
from ...responses import Responses
from .connections import Connections, connection_of
from .pipelining import Turns
from .reactor_lag import Beat, LateGate
from .reactor_response import headers_of, send

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from twisted.python.threadpool import ThreadPool
    from twisted.web.server import Request

    from ...checks import Check


@implementer(IResource)
class GuardedWSGIResource:
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
        options = from_keywords(TWISTED, keywords)
        self._client_timeout = options.timeout
        self._patience = options.patience
        self._checks = options.checks
        self._responses = Responses(**options.some("refusal", "retry_after", "expose_load"))
        self._plainly = self._responses
        if options.refusal is not None:
            self._plainly = Responses(retry_after=options.retry_after)
        self._speechless = False  # the last attempt to refuse with the refusal app failed
        self._threadless = False  # the last attempt to have a pool thread run a request failed
        self._reactor = reactor
        self._turns = Turns(reactor)
        self._beside: Callable[[], object] = _nothing  # what else to do a few times a second
        self._pool = threadpool
        self._application = application
        self.gate = Gate(threadpool.max, **options.some("max_queue", "max_wait", "client_timeout"))
        queue_header = None
        if options.trust_queue_header:
            queue_header = QueueHeader(self.gate.is_idle, options.timeout)
        self._told = reader(options.timeout, options.client_timeout_header, queue_header)
        self._beat = Beat(reactor, self._every_beat)
        self._late = LateGate(self.gate, self._beat)
        self._member = None
        if options.board is not None:
            self._member = Member(options.board, self._late, loop=True)
        self.monitor = Monitor(
            self._member or self._late,
            deliver=reactor.callFromThread,
            **options.some("on_busy", "on_free"),
        )
        self._reported: Callable[[WSGIApplication], WSGIApplication] = _as_it_is
        if options.expose_load:
            self._reported = Reporter(self.monitor).around
            self._application = self._reported(application)
        # Not before the reactor runs: twistd forks before that, and a beat would be late at once.
        reactor.callWhenRunning(self._beat.start)
        if options.push:
            pushing = Push(self.monitor, options.push)
            reactor.callWhenRunning(pushing.start)
            reactor.addSystemEventTrigger("after", "shutdown", pushing.stop)
        if self._member is not None:
            self.gate.subscribe(self.monitor.refresh)
            reactor.callWhenRunning(self._member.enter)
            reactor.addSystemEventTrigger("after", "shutdown", self._member.leave)

    def render(self, request: Request) -> Any:
        """Answer a check, refuse, or let the request in. In the reactor thread."""
        check = self._match(request)
        if check is not None:
            self._turns.take(request, partial(self._answer, request, check))
        else:
            visit = Visit(self, request)
            WSGIResource(self._reactor, visit, visit.application).render(request)
        return NOT_DONE_YET

    def attend(self, connections: Connections) -> None:
        """Also look after the connections of a site, and see who cannot get in there."""
        self._beside = connections.look
        self._late.added = connections.ports.standing.added

    def drain(self, grace: float) -> Deferred[None]:
        """Refuse new requests, have checks say draining, and let the rest finish.

        Returns a Deferred that fires when nobody is inside or waits, or after ``grace`` seconds.
        """
        self.monitor.drain()
        self.gate.drain()
        if self._member is not None:
            self._member.go()
        done: Deferred[None] = Deferred()
        until = self._reactor.seconds() + grace

        def look() -> None:
            if self.gate.empty or self._reactor.seconds() >= until:
                self._beat.stop()
                # The last answers are written by calls that the threads have left to the reactor.
                self._reactor.callLater(0.1, done.callback, None)
            else:
                self._reactor.callLater(0.05, look)

        look()
        return done

    def refuse(self, request: Request, reason: Reason) -> None:
        """Answer 503 in place of the app, now or soon. In the reactor thread."""
        self._turns.take(request, partial(self._refuse, request, reason))

    def _answer(self, request: Request, check: Check) -> None:
        policy = check.policy
        verdict = self.monitor.check(policy, self._patience) if policy else None
        send(request, self._responses.for_check(check, verdict, request.getHeader("accept")))

    def _refuse(self, request: Request, reason: Reason) -> None:
        connection, last = connection_of(request.channel), reason is Reason.DRAINING
        try:
            send(request, self._reported(self._responses.refused(reason)), last)
            self._speechless = False
        except Exception:  # a refusal app; what is told in the beat has nobody to catch it
            if not self._speechless:
                self._speechless = True
                logger.exception("the refusal app failed; refusing with the plain answer instead")
            send(request, self._plainly.refused(reason), last)
        if last:
            self._turns.close(connection)

    # IResource asks for these two; a leaf has no children.
    def getChildWithDefault(self, name: bytes, request: Request) -> Any:
        """Raise :exc:`RuntimeError`: the app handles every path below."""
        raise RuntimeError("a GuardedWSGIResource has no children: its app handles the paths below")

    def putChild(self, path: bytes, child: Any) -> None:
        """Raise :exc:`RuntimeError`: the app handles every path below."""
        raise RuntimeError("a GuardedWSGIResource takes no children: its app handles all below")

    def _match(self, request: Request) -> Check | None:
        try:
            path, query = split_target(request.method, request.uri)
        except ValueError:  # what the app makes of it is the app's business
            return None
        if path not in self._checks.suspects:
            return None
        return self._checks.match_request(
            request.method.decode("latin-1"), path, query, dict(headers_of(request))
        )

    def _client(self, request: Request) -> Client:
        """Return what the request tells of its client, where that is trusted."""
        if self._told is None:
            return Client(0.0, self._client_timeout)
        peer = getattr(request.getClientAddress(), "host", "")  # a UNIX socket has none
        return self._told({**dict(headers_of(request)), "REMOTE_ADDR": peer})

    def _every_beat(self) -> None:
        self.gate.expire()
        self._beside()
        if self._member is not None:
            self._member.beat()
        self.monitor.refresh()  # the lag may have changed the state, which nobody else notices

    def _submit(self, run: Callable[[Slot], object], slot: Slot) -> bool:
        """Have a pool thread run a request; return whether there is one."""
        try:
            if getattr(self._pool, "joined", False):
                raise RuntimeError("the pool is stopped")  # it would drop the work in silence
            self._pool.callInThread(run, slot)
        except Exception:  # the system has no thread to give
            if not self._threadless:
                self._threadless = True
                logger.exception("no thread for a request; refusing until there is one")
            # By way of the reactor: leaving here would wake the next one here, and so on down.
            self._reactor.callFromThread(self.gate.forfeit, slot, Reason.QUEUE_FULL)
            return False
        self._threadless = False
        return True


class Visit:
    """One request on its way through the gate.

    To WSGIResource it looks like a thread pool with one method, and like the app.
    """

    def __init__(self, guard: GuardedWSGIResource, request: Request) -> None:
        self._guard = guard
        self._request = request
        self._gone = False
        ago, self._patience = guard._client(request)
        self._ticket = Ticket(self._woken, ago)
        self._slot: Slot | None = None  # while it has one
        self._waited = self._began = 0.0
        self._run: Callable[[], object] = _nothing

    def callInThread(self, run: Callable[[], object]) -> None:
        """Let ``run``, which calls the app and sends what it says, in when there is a slot."""
        self._run = run
        outcome = self._guard.gate.offer(self._ticket)
        if isinstance(outcome, Slot):
            if not self._guard._submit(self._work, outcome):
                self._refuse(Reason.QUEUE_FULL)
        elif outcome is not None:
            self._refuse(outcome)
        else:
            # Only who waits is watched. What has begun is finished, as under WSGIResource.
            self._request.notifyFinish().addErrback(self._left)

    def application(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Run the app with the guard's stamps in its environ."""
        guard = self._guard
        if self._is_too_late():
            self._request.quiet = True  # type: ignore[attr-defined] # no line in the access log
            return guard._reported(guard._plainly.refused(Reason.QUEUE_AGE))(
                environ, start_response
            )
        until = self._began + self._patience
        stamp(environ, guard.monitor, self._waited, until)
        return timed(guard._application(environ, start_response), until)

    def _woken(self, ticket: Ticket) -> None:
        """Go on, in any thread, when one who waited got a slot or is refused."""
        outcome = ticket.outcome
        if isinstance(outcome, Slot):
            if self._guard._submit(self._work, outcome):
                return
            outcome = Reason.QUEUE_FULL
        self._guard._reactor.callFromThread(self._refuse, outcome)

    def _work(self, slot: Slot) -> None:
        """Run the app, in a pool thread; its body is closed when this returns."""
        self._waited = slot.waited
        self._began = (slot.since or 0.0) - slot.waited
        self._slot = slot
        run = self._run
        self._let_go()
        try:
            run()
        finally:
            if self._slot is not None:
                self._guard.gate.leave(slot)

    def _is_too_late(self) -> bool:
        """Return whether it has waited for longer than its own client would; without a slot then.

        In the pool thread: a slot that is handed on before could go through the whole queue on one
        stack.
        """
        guard, ago = self._guard, self._ticket.ago
        most = own_max_wait(guard.gate.limits, guard._client_timeout, self._patience)
        late = self._patience != guard._client_timeout and self._waited > most
        if not late or self._waited <= ago or self._slot is None:
            return False  # or it found a slot free, as old as it was
        slot, self._slot = self._slot, None
        guard.gate.forfeit(slot, Reason.QUEUE_AGE)
        return True

    def _left(self, _failure: object) -> None:
        """Give up the place of a client that has left. In the reactor thread."""
        self._gone = True
        if self._guard.gate.withdraw(self._ticket):
            self._let_go()

    def _let_go(self) -> None:
        """Let go of what holds this visit; a cycle would keep the request and its body."""
        self._ticket.wake = self._run = _nothing

    def _refuse(self, reason: Reason) -> None:
        self._let_go()
        if not self._gone:
            self._guard.refuse(self._request, reason)


def _as_it_is(app: WSGIApplication) -> WSGIApplication:
    return app


def _nothing(*_: object) -> None:
    return None
