"""BusyGuard: the WSGI face. Looks at a request's path, and either answers or passes it on."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ._support.launcher import relaunch
from ._support.log import logger
from ._support.wsgi_app import wsgi_app
from .adapters.detect import in_a_test
from .adapters.first_request import FirstRequest, briefly, room_to_start_with
from .adapters.readers.in_flight import Inside
from .adapters.unread_body import Leftovers
from .board.membership import Forking
from .deadlines.client_timeout import reader
from .deadlines.clock_skew import QueueHeader
from .deadlines.environ import stamping
from .gate import Gate
from .gate.dry_run import DryRun, counted
from .gate.gated import holding
from .monitor import Monitor
from .options import MIDDLEWARE, GuardOptions, taken_by
from .policy import ALWAYS, DAMPED, PATIENCE, limits

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .adapters.readers.sampling import Sampled
    from .board.board import Board
    from .deadlines.client_timeout import Client
    from .load import Adapter
    from .monitor import Listener
    from .policy import Verdict


class Step:
    """What a guard does at its next call.

    :ivar work: is called with the environ; returns true if the call after that is to do it as well.
    :ivar failed: what to log if it raises.
    :ivar sampled: is told when that call begins and ends.
    """

    __slots__ = ("failed", "sampled", "work")

    def __init__(
        self,
        work: Callable[[WSGIEnvironment], object],
        failed: str,
        sampled: Sampled | None = None,
    ) -> None:
        self.work = work
        self.failed = failed
        self.sampled = sampled


class BusyGuard:
    """Wrap a WSGI app so that health checks are answered truthfully and the queue stays short.

    :param app: the WSGI app to guard.
    :param monitor: knows the load of the server in front; see :mod:`wsgi_busyguard.adapters`.
    :param slots: given, the guard is a gate, and the server needs ``slots + max_queue + 2`` threads
        at least; with fewer it answers checks and refuses nothing, and says so in the log.

    What the others are: see :class:`~wsgi_busyguard.options.GuardOptions`.

    :ivar monitor: the :class:`~wsgi_busyguard.Monitor`.
    :ivar dry_run: the :class:`~wsgi_busyguard.gate.dry_run.DryRun` with the counts, or ``None``.
    :raises ValueError, TypeError: for arguments that cannot be meant, and for more slots than the
        server has threads for, where that can be known so early.
    :raises OSError: if the board cannot be read and written.

    In a process that a server makes when it has long been there neither threads nor a board are an
    error: it goes on without a gate, and tries again to open the board.

    The guard may be called from any thread.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        monitor: Monitor | None = None,
        slots: int | None = None,
        max_queue: float | None = None,
        max_wait: float | None = None,
        ready: str = DAMPED,
        patience: float = PATIENCE,
        check_root: bool = True,
        ready_paths: Iterable[str] = ("/healthz", "/readyz"),
        live_paths: Iterable[str] = ("/livez",),
        on_busy: Listener | None = None,
        on_free: Listener | None = None,
        refusal: WSGIApplication | None = None,
        retry_after: int = 1,
        client_timeout: float | None = None,
        expose_load: bool = False,
        board: Board | str | os.PathLike[str] | None = None,
        trust_queue_header: bool = False,
        client_timeout_header: str | None = None,
        push: Iterable[str] | str = (),
        dry_run: bool = False,
    ) -> None:
        given = locals()  # every keyword above is one of the list's, which a test sees
        from .responses import Responses

        wsgi_app("app", app)
        options = GuardOptions(**{one.name: given[one.name] for one in taken_by(MIDDLEWARE)})
        if monitor is not None and not isinstance(monitor, Monitor):
            raise TypeError(f"monitor must be a Monitor, not {monitor!r}: Monitor(adapter) is one")
        if monitor is not None and board is not None:
            raise ValueError(
                "give monitor or board, not both: Monitor(Publisher(board, adapter)) is a monitor"
                " whose adapter posts"
            )
        self._patience = patience
        self._checks = options.checks
        self._responses = Responses(**options.some("refusal", "retry_after", "expose_load"))
        timeout = options.timeout
        self._inside = inside = Inside()
        self._leftovers = Leftovers()
        self.checks_in_flight: set[object] = set()
        self._first: list[Step] = []
        self.dry_run = DryRun() if dry_run else None

        def told_by(is_idle: Callable[[], bool]) -> Callable[[Mapping[str, Any]], Client] | None:
            queue_header = QueueHeader(is_idle, timeout) if trust_queue_header else None
            return reader(timeout, client_timeout_header, queue_header)

        told = told_by(lambda: inside.count() <= 1)  # nobody but the one that asks
        adapter: Gate | Inside = self._inside
        if slots is not None:
            if monitor is not None:
                raise ValueError(
                    "give slots or monitor, not both: with slots the guard is the queue"
                )
            bounds = limits(slots, max_queue, max_wait, client_timeout)
            room_to_start_with(bounds)
            if self.dry_run is not None:
                self.dry_run = DryRun(bounds)
                app = counted(app, self.dry_run)
            else:
                adapter = Gate(slots, max_queue, max_wait, client_timeout=client_timeout)
        elif max_queue is not None or max_wait is not None:
            raise ValueError("max_queue and max_wait need slots: without them nothing queues here")
        self.monitor: Monitor = monitor or self._on_board(board, adapter)
        plain = app
        if slots is not None or client_timeout is not None or told is not None:
            plain = stamping(app, self.monitor, timeout, told)
        if isinstance(adapter, Gate):
            refused, read_off = self._responses.refused, self._leftovers
            told_gate = told_by(adapter.is_idle)
            app = holding(app, adapter, self.monitor, refused, timeout, told_gate, read_off)
        else:
            app = plain
        if expose_load:
            from .metrics.orca import Reporter

            reported = Reporter(self.monitor).around
            app, plain = reported(app), reported(plain)
        self._suspects = self._checks.suspects
        self._app, self._gated, self._plain = app, app, plain
        if monitor is None:
            again = self._unmet
            self._meeting = FirstRequest(self.monitor, adapter, self._inside, self, again)
            again()
        if board is not None:
            self._unheard_of()
        if push:
            self._begin_to_push(push)
        if on_busy is not None:
            self.monitor.on_busy(on_busy)
        if on_free is not None:
            self.monitor.on_free(on_free)

    def __repr__(self) -> str:
        return f"<BusyGuard {self.monitor!r}>"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a check, or pass the request on; a WSGI call."""
        app = self._first_call(environ) if self._first else self._app
        # PATH_INFO may be left out where it is empty (PEP 3333).
        if environ.get("PATH_INFO", "") in self._suspects:
            answer = self._answer(environ)
            if answer is not None:
                return answer(environ, start_response)
        # A call under way holds the token for as long as it takes, see Inside.
        token, body = self._inside.token, app(environ, start_response)
        del token
        return body

    def _first_call(self, environ: WSGIEnvironment) -> WSGIApplication:
        """Do what waits for a call of the server's; return the app for this one.

        Several first calls may come at once, and each does what it finds.
        """
        if in_a_test():  # the next call may come from a server
            return lambda *call: briefly(self._app(*call))
        timed = []
        for step in tuple(self._first):
            again: object = False
            try:
                if step.sampled is not None:
                    timed.append(step.sampled)
                again = step.work(environ)
            except Exception:  # guarding must never be the outage
                logger.exception(step.failed)
            finally:
                # Whatever is raised, an app's time limit say, no call after this one may fail so.
                if not again:
                    with suppress(ValueError):  # another one's call has done it, too
                        self._first.remove(step)
        return self._timed(environ, timed[0]) if timed else self._app

    def _timed(self, environ: WSGIEnvironment, sampled: Sampled) -> WSGIApplication:
        """Return the app that tells ``sampled`` when it begins and ends."""
        if self._checks.match(environ) is not None:
            sampled.moved()  # a check has a thread, and says nothing of how long others take

        def timed(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            call = sampled.begin()
            try:
                return self._app(environ, start_response)
            finally:
                sampled.end(call)

        return timed

    def _on_board(self, board: Board | str | os.PathLike[str] | None, adapter: Adapter) -> Monitor:
        """Return the monitor of ``adapter``, or of the board that it is posted on."""
        if board is None:
            return Monitor(adapter)
        publisher = Forking(board, adapter, self._unheard_of)
        monitor = Monitor(publisher)
        publisher.begin(lambda: monitor.draining)
        if isinstance(adapter, Gate):
            adapter.subscribe(monitor.refresh)
        return monitor

    def _unmet(self) -> None:
        """Have the next call find out which server this is."""
        self._first.append(Step(self._meet, "could not find out which server this is"))

    def _meet(self, environ: WSGIEnvironment) -> None:
        try:
            self._meeting.meet(environ)
        finally:
            self._app = self._plain if self._meeting.lacks_room else self._gated

    def _begin_to_push(self, push: Iterable[str] | str) -> None:
        """Have the next call begin to push: it comes to a process that serves."""
        from .haproxy import Push

        if self.dry_run is not None:
            raise ValueError("give push or dry_run, not both: a dry run tells balancers nothing")
        self._push = Push(self.monitor, push)
        self._first.append(Step(self._push_from_now_on, "could not begin to push"))

    def _push_from_now_on(self, _: WSGIEnvironment) -> None:
        self.monitor.serves = True
        self._push.start()

    def _unheard_of(self) -> None:
        """Have the next call tell the board that this process serves."""

        def call(_: WSGIEnvironment) -> object:
            publisher: Any = self.monitor.adapter
            return publisher.call()

        self._first.append(Step(call, "could not tell the board that this process serves"))

    def time_next(self, sampled: Sampled) -> object:
        """Have the next call tell ``sampled`` when it begins and ends; return what is to be it."""
        step = Step(lambda _: None, "", sampled)
        self._first.append(step)
        return step

    def is_next(self, timed: object) -> bool:
        """Return whether the next call is the one that is to be timed."""
        return timed in self._first

    def spare(self, threads: float) -> None:
        """Have so many threads of the server at most read off what is left of refused bodies."""
        self._leftovers.allow(threads)

    def _answer(self, environ: WSGIEnvironment) -> WSGIApplication | None:
        """Return the answer if the request is a check."""
        relaunch()
        check = self._checks.match(environ)
        if check is None:
            return None
        verdict = self._verdict(check.policy) if check.policy else None
        return self._responses.for_check(check, verdict, environ.get("HTTP_ACCEPT"))

    def _verdict(self, policy: str) -> Verdict:
        here = object()
        if self.dry_run is not None:
            policy = ALWAYS
        try:
            self.checks_in_flight.add(here)
            return self.monitor.check(policy, self._patience)
        finally:
            self.checks_in_flight.discard(here)  # also if a signal handler raised before the add
