"""What a guard in front of a server's threads does, whichever server it is.

Judges, queues, stamps, drains; see :mod:`wsgi_busyguard.adapters.front` for the whole of it. How a
request gets a thread, an answer, or an end is the server's part: subclass both classes.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from ..._support.launcher import relaunch
from ..._support.log import Streak
from ...adaptive import adapted
from ...board.membership import Member
from ...dashboard.stacks import Stacks
from ...deadlines.client_timeout import Client, client_reader
from ...deadlines.deadline import call_until, timed
from ...deadlines.environ import stamp
from ...gate import Gate, Slot, Ticket
from ...gate.limits_in_force import gate_in_force, log_limits, tell_limits
from ...haproxy import Push
from ...metrics.orca import Reporter
from ...monitor import Monitor
from ...policy import Reason, own_max_wait
from ...responses import Responses
from .descriptors import default_max_queue
from .refusing_listener import RefusingListener
from .sockets import refusal_bytes, response_bytes, whole_response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..._support.request_head import Head
    from ...checks import Check
    from ...load import Adapter, GuardLimits
    from ...options import GuardOptions

R = TypeVar("R")
T = TypeVar("T")

# Seconds that stuck requests get when the process is told to stop: what Kubernetes gives a pod.
GRACE_SECONDS = 30.0

# The guard must never be the outage: what it cannot judge goes on as without it.
UNJUDGED_MESSAGE = "could not judge a request; served without the guard"


class Front:
    """The guard in front of ``threads`` threads.

    :param threads: how many requests may be in the app at once.
    :param reads: makes the adapter, which reads the gate and whatever else is queued.
    :param deliver: calls what tells the listeners, where it may take its time.
    :param loop: whether the loop that takes requests in is the one that beats.
    :param most_queued: how many the server can have wait.
    :ivar monitor: the :class:`~wsgi_busyguard.Monitor`.
    :ivar gate: the :class:`~wsgi_busyguard.Gate`.
    :ivar waiting: the visits that are in the queue.
    :ivar disabled: whether it only answers checks, and counts.
    :ivar bounds: whether it stands in front, so that requests go through its gate.
    """

    bounds = True

    def __init__(
        self,
        threads: int,
        options: GuardOptions,
        reads: Callable[[Gate], Adapter],
        deliver: Callable[[Callable[[], object]], object],
        *,
        loop: bool = False,
        most_queued: float = math.inf,
    ) -> None:
        self._options, self.disabled = options, options.disabled
        self.client_timeout = options.timeout
        self._patience = options.patience
        self._checks = options.checks
        self._responses = Responses(**options.some("refusal", "retry_after", "expose_load"))
        self._plainly = self._responses
        if options.refusal is not None:
            self._plainly = Responses(retry_after=options.retry_after)
        self._unsendable = Streak()  # what the refusal app says
        waits = options.some("max_queue", "max_wait", "client_timeout")
        if options.max_queue is None:
            waits["most_queued"] = min(most_queued, default_max_queue(threads))
        gate = Gate(threads, **waits)
        self.gate = adapted(gate, options.adaptive)
        trusts = options.client_timeout_header, options.trust_queue_header
        self._read_client = client_reader(options.timeout, *trusts, self.gate.is_idle)
        self.waiting: dict[Any, None] = {}
        self.here = threading.local()  # in a thread that serves: whose request it has
        adapter = reads(self.gate)
        board = options.board
        self._member = None if board is None else Member(board, adapter, loop=loop)
        self.monitor = Monitor(
            self._member or adapter, deliver=deliver, **options.some("on_busy", "on_free")
        )
        tell_limits(self.monitor, lambda: self.limits)
        if options.show_stacks:
            self.monitor.stacks = Stacks()
        self._push = Push(self.monitor, options.push) if options.push else None
        self._reported = Reporter(self.monitor).around if options.expose_load else as_it_is

    @property
    def limits(self) -> GuardLimits:
        """What the guard does to requests, and the limits that are in force now."""
        return gate_in_force(self._options, self.gate if self.bounds else None)

    def start(self) -> None:
        """Have this process be counted on its board, and its balancers be told."""
        if self._member is not None:
            self.gate.subscribe(self.monitor.refresh)
            self._member.enter()
        log_limits(self.monitor)
        if self._push is not None:
            self._push.start()

    def stop(self) -> None:
        """Stop that, and let go of everybody who still waits."""
        if self._push is not None:
            self._push.stop()
        if self._member is not None:
            self._member.leave()
        for visit in list(self.waiting):
            visit.give_up()

    def begin_drain(self) -> None:
        """Refuse new requests and have checks say draining. In a signal handler, too."""
        self.monitor.drain()
        self.gate.drain()

    def beat(self) -> None:
        """Refuse those who have waited too long, post, and judge. A few times a second."""
        self.gate.expire()
        if self._member is not None:
            if self.gate.draining:
                self._member.go()
            self._member.beat()
        self.monitor.refresh()

    def match(self, method: str, path: str, query: str, headers: Iterable[str]) -> Check | None:
        """Return the check that a request is; see :meth:`Checks.match_request`."""
        if path not in self._checks.suspects:
            return None
        check = self._checks.match_request(method, path, query, headers)
        if check is not None:
            relaunch()  # what no thread was to be had for; checks come often
        return check

    def client(self, headers: Mapping[str, str], peer: str = "") -> Client:
        """Return what a request tells of its client, where that is trusted.

        :param headers: as environ has them, of the request.
        :param peer: the address that it came from.
        """
        if self._read_client is None:
            return Client(0.0, self.client_timeout)
        return self._read_client({**headers, "REMOTE_ADDR": peer})

    def answer(self, check: Check, accept: str | None) -> WSGIApplication:
        """Return the answer to a check, as things are now."""
        policy = check.policy
        verdict = self.monitor.check(policy, self._patience) if policy else None
        return self._responses.for_check(check, verdict, accept)

    def refusal(self, reason: Reason) -> WSGIApplication:
        """Return the app that refuses; what it says is whole, and its length known."""
        refuse, plainly = self._responses.refused(reason), self._plainly.refused(reason)

        def say(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            try:
                status, headers, body = whole_response(refuse, environ)
                self._unsendable.over()
            except UnicodeEncodeError:
                self._unsendable.failed(
                    "what the refusal app says cannot be sent as HTTP; refusing with the plain"
                    " answer instead",
                    exc_info=True,
                )
                status, headers, body = whole_response(plainly, environ)
            start_response(status, headers)
            return [body] if body else []

        return self._reported(say)

    def refusing(self, sock: Any, *, many: bool = False) -> Any:
        """Return a listening socket that refuses for this front, in an overload.

        Not where an app says the refusal: that might take long, and is not for the loop.
        """
        if self.disabled or self._options.refusal is not None:
            return sock

        def is_check(head: Head) -> bool:
            return self.match(head.method, head.path, head.query, head.headers) is not None

        def with_load(method: str, reason: Reason) -> bytes:
            return response_bytes(self.refusal(reason), method, (1, 1), True)

        refusal = with_load if self._options.expose_load else refusal_bytes(self._plainly)
        return RefusingListener(sock, self.gate, is_check, refusal, many=many)

    def guarded(self, app: WSGIApplication) -> WSGIApplication:
        """Return the app for a server's threads to call, with the guard's stamps in its environ."""
        here, app = self.here, self._reported(app)
        if self.disabled:
            return app
        if self.monitor.stacks is not None:
            app = self.monitor.stacks.noting(app)

        def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            visit: Visit | None = getattr(here, "visit", None)
            if visit is None:
                return app(environ, start_response)
            if visit.is_too_late():
                return self.refusal(Reason.QUEUE_AGE)(environ, start_response)
            until = visit.began + visit.patience
            stamp(environ, self.monitor, visit.waited, until)
            body = call_until(until, app, environ, start_response)
            return timed(body, until, self.monitor)

        return serve


class Visit:
    """One request on its way through the gate.

    :param client: what it tells of its client: for how long it has waited elsewhere, which counts
        as waiting here, and when it gives up.
    :ivar patience: seconds after which its client gives up.
    :ivar waited: seconds that it waited for its slot.
    :ivar began: monotonic seconds at which it came.
    """

    def __init__(self, front: Front, client: Client) -> None:
        self._front = front
        ago, self.patience = client
        self._ticket = Ticket(self._woken, ago)
        self._slot: Slot | None = None
        self.waited = self.began = 0.0

    def enter(self) -> bool:
        """Run, wait or be refused; return whether it waits. In any thread; nothing here blocks."""
        self._front.waiting[self] = None
        outcome = self._front.gate.offer(self._ticket)
        if outcome is not None:
            self._goes(outcome, self._ticket.ago)
        return outcome is None

    def serve(self, work: Callable[[], R]) -> R | None:
        """Do the work of this request, in a thread of the server, and give the slot back.

        Return what it returns; ``None`` if it is not done, for its client has left. What ends the
        connection then is the caller's to do.
        """
        here = self._front.here
        here.visit = self
        try:
            if self.waited > 0 and not self._front.disabled and self.has_left():
                self.forfeit()
                return None
            return work()
        finally:
            here.visit = None
            self.leave()

    def leave(self) -> None:
        """Return the slot, if it has one still."""
        slot, self._slot = self._slot, None
        if slot is not None:
            self._front.gate.leave(slot)

    def forfeit(self, reason: Reason | None = None) -> None:
        """Return the slot unused.

        :param reason: why it is refused after all; ``None`` if its client has left.
        """
        slot, self._slot = self._slot, None
        if slot is not None:
            self._front.gate.forfeit(slot, reason)

    def is_too_late(self) -> bool:
        """Return whether it has waited for longer than its own client would, now in its thread.

        Then the slot is given back. Not before it has a thread: a slot that is handed on at once
        could go through the whole queue on one stack.
        """
        front = self._front
        most = own_max_wait(front.gate.discipline.in_force, front.client_timeout, self.patience)
        late = self.patience != front.client_timeout and self.waited > most
        if not late or self.waited <= self._ticket.ago:  # it found a slot free, as old as it was
            return False
        self.forfeit(Reason.QUEUE_AGE)
        return True

    def give_up(self) -> None:
        """Be dropped if it waits still."""
        if self._front.gate.withdraw(self._ticket):
            self._settle()
            self.drop()

    def has_left(self) -> bool:
        """Return whether the client of one who has waited is gone, now that its turn has come."""
        raise NotImplementedError

    def run(self) -> None:
        """Have a thread of the server :meth:`serve` the request."""
        raise NotImplementedError

    def refuse(self, reason: Reason) -> None:
        """Answer 503 in place of the app."""
        raise NotImplementedError

    def drop(self) -> None:
        """Close the connection; nobody is there to hear an answer."""
        raise NotImplementedError

    def woken(self, outcome: Slot | Reason) -> None:
        """Go on after having waited. In any thread."""
        self._goes(outcome, outcome.waited if isinstance(outcome, Slot) else 0.0)

    def _woken(self, ticket: Ticket) -> None:
        if ticket.outcome is not None:
            self.woken(ticket.outcome)

    def _goes(self, outcome: Slot | Reason, waited: float) -> None:
        self._settle()
        if isinstance(outcome, Slot):
            self._slot = outcome
            self.waited = waited
            self.began = (outcome.since or 0.0) - waited
            self.run()
        else:
            self.refuse(outcome)

    def _settle(self) -> None:
        """Wait no more, and let go of the ticket: a cycle would keep the request and its body."""
        self._front.waiting.pop(self, None)
        self._ticket.wake = nothing


def as_it_is(thing: T) -> T:
    """Return what is given."""
    return thing


def nothing(*_: object, **__: object) -> None:
    """Do nothing, whatever is given."""
