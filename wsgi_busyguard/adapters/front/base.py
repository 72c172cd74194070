"""What a guard in front of a server's threads does, whichever server it is.

Judges, queues, watches those who wait, drains. How a request gets a thread, an answer, or an end
is the server's part: subclass both classes.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from ..._support.log import logger
from ..._support.periodic import BEAT_SECONDS, Periodic
from ..._support.threads import Teller
from ..._support.unpatched import begin
from ...board.membership import Member
from ...deadlines.client_timeout import Client, reader
from ...deadlines.clock_skew import QueueHeader
from ...deadlines.deadline import timed
from ...deadlines.environ import stamp, stamping
from ...gate import Gate, Slot, Ticket
from ...haproxy import Push
from ...metrics.orca import Reporter
from ...monitor import Monitor
from ...options import FRONT, OPTIONS, from_keywords
from ...policy import Reason, own_max_wait
from ...responses import Responses
from .accept_backlog import Outside, StandingQueue
from .last_connections import HANDSHAKES, LINGER, LOOK, admit_no_more, pending
from .progress import Clients
from .sockets import gone, whole

if TYPE_CHECKING:
    import socket
    from collections.abc import Container, Iterable, Mapping

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ...checks import Check
    from ...load import Adapter

# Seconds that stuck requests get when the process is told to stop: what Kubernetes gives a pod.
GRACE = 30.0

UNTENDED = "could not look after the queue; tried again at every beat"


class Front:
    """The guard in front of ``threads`` threads.

    The keyword arguments are those of :class:`wsgi_busyguard.BusyGuard`.

    :param threads: how many requests may be in the app at once.
    :param progress_timeout: seconds for which a client may keep a thread waiting, in the middle of
        its upload or by not reading its answer; each 500 bytes earn one back. No limit if inf.
    :param adapter: what to read instead of the gate, where the guard cannot stand in front.
    :ivar monitor: the :class:`~wsgi_busyguard.Monitor`; its listeners run in a thread of their own.
    :ivar gate: the :class:`~wsgi_busyguard.Gate`.
    :ivar clients: those for whom threads work.
    :ivar drained: set when a drain is over.
    :ivar shares: whether somebody else may have the listening sockets, too.
    """

    shares = False

    def __init__(
        self,
        threads: int,
        *,
        adapter: Adapter | None = None,
        **keywords: Any,
    ) -> None:
        options = from_keywords(FRONT, keywords)
        self.client_timeout = options.timeout
        self._patience = options.patience
        self._checks = options.checks
        self._responses = Responses(**options.some("refusal", "retry_after", "expose_load"))
        self._plainly = self._responses
        if options.refusal is not None:
            self._plainly = Responses(retry_after=options.retry_after)
        self.gate = Gate(threads, **options.some("max_queue", "max_wait", "client_timeout"))
        queue_header = None
        if options.trust_queue_header:
            queue_header = QueueHeader(self.gate.is_idle, options.timeout)
        self._told = reader(options.timeout, options.client_timeout_header, queue_header)
        self.clients = Clients(options.progress_timeout)
        self.waiting: dict[Visit, None] = {}
        self.here = threading.local()  # in a thread that serves: whose request it has
        self.drained = threading.Event()
        self._until: float | None = None
        self._ending: threading.Thread | None = None
        self._made_by = os.getpid()
        self._teller = Teller()
        self._standing = StandingQueue(self.listeners)
        read = Outside(self.gate if adapter is None else adapter, self._standing)
        self._member = None if options.board is None else Member(options.board, read)
        self.monitor = Monitor(
            self._member or read, deliver=self._teller.put, **options.some("on_busy", "on_free")
        )
        self._push = Push(self.monitor, options.push) if options.push else None
        self._reported = Reporter(self.monitor).around if options.expose_load else _as_it_is
        self._beats = Periodic(self.beat, BEAT_SECONDS, "busyguard-beat", failing=UNTENDED)

    def start(self) -> None:
        """Begin to look after those who wait, a few times a second."""
        if self._member is not None:
            self.gate.subscribe(self.monitor.refresh)
            self._member.enter()
        self._teller.start()
        self._beats.start()
        if self._push is not None:
            self._push.start()

    def stop(self) -> None:
        """Stop that, and let go of everybody who still waits."""
        self._beats.stop(wait=True)
        self._teller.stop()
        if self._push is not None:
            self._push.stop()
        if self._member is not None:
            self._member.leave()
        for visit in list(self.waiting):
            self._drop(visit)

    def drain(self, grace: float = GRACE) -> threading.Event:
        """Refuse new requests, have checks say draining, and let the rest finish.

        Returns at once, and may be called in a signal handler. The server ends when nobody is
        inside or waits and all is sent, or after ``grace`` seconds; then the returned event is set.
        Who has connected by then gets an answer still, if he asks within half a second.
        """
        self.monitor.drain()
        self.gate.drain()
        self._until = time.monotonic() + grace
        return self.drained

    def match(self, method: str, path: str, query: str, headers: Container[str]) -> Check | None:
        """Return the check that a request is; see :meth:`Checks.match_request`."""
        if path not in self._checks.suspects:
            return None
        return self._checks.match_request(method, path, query, headers)

    def client(self, headers: Mapping[str, str], peer: str = "") -> Client:
        """Return what a request tells of its client, where that is trusted.

        :param headers: as environ has them, of the request.
        :param peer: the address that it came from.
        """
        if self._told is None:
            return Client(0.0, self.client_timeout)
        return self._told({**headers, "REMOTE_ADDR": peer})

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
                status, headers, body = whole(refuse, environ)
            except UnicodeEncodeError:  # what a refusal app says cannot be sent
                status, headers, body = whole(plainly, environ)
            start_response(status, headers)
            return [body] if body else []

        return self._reported(say)

    def guarded(self, app: WSGIApplication) -> WSGIApplication:
        """Return the app for a server to call: it says what was decided before, or runs ``app``."""
        here, app = self.here, self._reported(app)

        def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            decided: WSGIApplication | None = getattr(here, "says", None)
            if decided is not None:
                return decided(environ, start_response)
            visit: Visit | None = getattr(here, "visit", None)
            if visit is not None:
                if visit.is_too_late():
                    return self.refusal(Reason.QUEUE_AGE)(environ, start_response)
                until = visit.began + visit.patience
                stamp(environ, self.monitor, visit.waited, until)
                return timed(app(environ, start_response), until)
            return app(environ, start_response)

        return serve

    def behind(self, app: WSGIApplication) -> WSGIApplication:
        """Return the app for a server in front of which the guard cannot stand."""
        stamped = stamping(self._reported(app), self.monitor, self.client_timeout, self._told)

        def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
            query = environ.get("QUERY_STRING", "")
            check = self.match(environ["REQUEST_METHOD"], path, query, environ)
            if check is None:
                return stamped(environ, start_response)
            return self.answer(check, environ.get("HTTP_ACCEPT"))(environ, start_response)

        return serve

    def beat(self) -> None:
        """Look after those who wait, and whether a drain is over."""
        self.gate.expire()
        self._post()
        waiting = {visit.socket: visit for visit in list(self.waiting)}
        for sock in gone(waiting):
            self._drop(waiting[sock])
        self.clients.cut_the_stalled()
        self.monitor.refresh()
        if self._ending is None and self._is_over():
            ending = threading.Thread(target=self._end, name="busyguard-end", daemon=True)
            begin(ending)  # if no thread is to be had now, the next beat tries again
            self._ending = ending
        self._standing.look()

    def flushed(self) -> bool:
        """Return whether all that was answered has been sent."""
        return True

    def awaited(self) -> bool:
        """Return whether somebody has connected and not asked yet, as far as is known."""
        return False

    def listeners(self) -> Iterable[socket.socket]:
        """Return the sockets at which the server listens."""
        return ()

    def stop_listening(self) -> None:
        """Close them, and serve those who have connected."""

    def end(self) -> None:
        """Have the server's loop end, in any thread, without waiting for it."""

    def _post(self) -> None:
        if self._member is not None:
            if self._until is not None:
                self._member.go()
            self._member.beat()

    def _is_over(self) -> bool:
        if self._until is None:
            return False
        return self.gate.empty or time.monotonic() >= self._until

    def _end(self) -> None:
        try:
            self._last_call(self._until or 0.0)
        except Exception:
            logger.exception("could not wait for the last ones")
        self.end()
        self.drained.set()

    def _last_call(self, until: float) -> None:
        """Stop listening, and wait until all who have connected have their answers."""
        listeners = list(self.listeners())
        if not self.shares:
            for listener in listeners:
                admit_no_more(listener, self._made_by)
        time.sleep(max(0.0, min(HANDSHAKES, until - time.monotonic())))
        closing = min(time.monotonic() + LINGER, until)
        while any(map(pending, listeners)) and time.monotonic() < closing:
            time.sleep(LOOK)
        self.stop_listening()
        silent = time.monotonic() + LINGER
        while (now := time.monotonic()) < until:
            is_awaited = self.awaited() or any(map(pending, listeners))
            if self.flushed() and (now >= silent or not is_awaited):
                break
            time.sleep(LOOK)

    def _drop(self, visit: Visit) -> None:
        if self.gate.withdraw(visit.ticket):
            self.waiting.pop(visit, None)
            visit.drop()


class Visit:
    """One request on its way through the gate.

    :param sock: its client's.
    :param ago: seconds for which it has waited elsewhere; they count as waiting here.
    :param patience: seconds after which its client gives up, if it says so.
    :ivar waited: seconds that it waited for its slot.
    :ivar began: monotonic seconds at which it came.
    """

    def __init__(
        self, front: Front, sock: Any, ago: float = 0.0, patience: float | None = None
    ) -> None:
        self._front = front
        self.patience = front.client_timeout if patience is None else patience
        self._slot: Slot | None = None
        self.socket = sock
        self.ticket = Ticket(self._woken, ago)
        self.waited = self.began = 0.0

    def enter(self) -> None:
        """Run, wait or be refused. In any thread; nothing here blocks."""
        self._front.waiting[self] = None
        outcome = self._front.gate.offer(self.ticket)
        if outcome is not None:
            self._goes(outcome, self.ticket.ago)

    def leave(self) -> None:
        """Return the slot, if it has one still."""
        slot, self._slot = self._slot, None
        if slot is not None:
            self._front.gate.leave(slot)

    def has_left(self) -> bool:
        """Return whether the client of one who has waited is gone, now that its turn has come.

        Then the slot is given back, unused.
        """
        left = self.waited > 0 and bool(gone([self.socket]))
        if left:
            slot, self._slot = self._slot, None
            if slot is not None:
                self._front.gate.forfeit(slot)
        return left

    def is_too_late(self) -> bool:
        """Return whether it has waited for longer than its own client would, now in its thread.

        Then the slot is given back. Not before it has a thread: a slot that is handed on at once
        could go through the whole queue on one stack.
        """
        gate = self._front.gate
        most = own_max_wait(gate.limits, self._front.client_timeout, self.patience)
        late = self.patience != self._front.client_timeout and self.waited > most
        if not late or self.waited <= self.ticket.ago:  # it found a slot free, as old as it was
            return False
        slot, self._slot = self._slot, None
        if slot is not None:
            gate.forfeit(slot, Reason.QUEUE_AGE)
        return True

    def run(self) -> None:
        """Have a thread of the server serve the request, and :meth:`leave` after it."""
        raise NotImplementedError

    def refuse(self, reason: Reason) -> None:
        """Answer 503 in place of the app."""
        raise NotImplementedError

    def drop(self) -> None:
        """Close the connection; nobody is there to hear an answer."""
        raise NotImplementedError

    def _woken(self, ticket: Ticket) -> None:
        outcome = ticket.outcome
        if isinstance(outcome, Slot):
            self._goes(outcome, outcome.waited)
        elif outcome is not None:
            self._goes(outcome, 0.0)

    def _goes(self, outcome: Slot | Reason, waited: float) -> None:
        self._front.waiting.pop(self, None)
        if isinstance(outcome, Slot):
            self._slot = outcome
            self.waited = waited
            self.began = (outcome.since or 0.0) - waited
            self.run()
        else:
            self.refuse(outcome)


def _as_it_is(app: WSGIApplication) -> WSGIApplication:
    return app


def split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the guard, and all others, which are the server's."""
    ours = {name: value for name, value in options.items() if name in OPTIONS}
    return ours, {name: value for name, value in options.items() if name not in ours}
