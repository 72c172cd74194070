"""BusyGuard: the WSGI face. Looks at a request's path, and either answers or passes it on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ._support.launcher import relaunch
from ._support.wsgi_app import app_name, wsgi_app
from .adapters.crowd_watch import CrowdWatch, own_part
from .adapters.detect import in_a_test
from .adapters.first_request import FirstRequest, briefly, room_to_start_with
from .adapters.next_call import NextCall
from .adapters.readers.in_flight import InFlight
from .adapters.unread_body import UnreadBodyReader
from .adaptive import adapted
from .board.membership import Forking
from .deadlines.client_timeout import client_reader
from .deadlines.current_guard import calls_apps
from .deadlines.environ import stamping
from .gate import Gate
from .gate.dry_run import DryRun, counted, passed
from .gate.gated_app import holding
from .gate.limits_in_force import gate_in_force, in_force, log_limits, pick_up_in_force, tell_limits
from .gate.pickup import PickUp
from .load import DRY_RUN
from .monitor import Monitor
from .options import MIDDLEWARE, from_keywords, taken_by
from .policy import ALWAYS, DAMPED, DAMPED_PATIENCE, Discipline, limits

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Container, Iterable, Mapping, Sized
    from typing import NoReturn

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .board.board import Board
    from .deadlines.client_timeout import Client
    from .load import Adapter, GuardLimits, Listener
    from .options import GuardOptions
    from .policy import Limits, Verdict
    from .responses import Responses


class BusyGuard:
    """Wrap a WSGI app so that health checks are answered truthfully and the queue stays short.

    :param app: the WSGI app to guard.
    :param monitor: knows the load of the server in front; see :mod:`wsgi_busyguard.adapters`.
    :param slots: given, the guard is a gate, and the server needs ``slots + max_queue + 2`` threads
        at least; with fewer, and without slots, it refuses when a thread of the server picks a
        request up, where the server's queue can be read.

    What the others are: see :class:`~wsgi_busyguard.options.GuardOptions`.

    :ivar monitor: the :class:`~wsgi_busyguard.Monitor`.
    :ivar dry_run: the :class:`~wsgi_busyguard.gate.dry_run.DryRun` with the counts, or ``None``.
    :ivar limits: the :class:`~wsgi_busyguard.load.GuardLimits` that are in force now.
    :raises ValueError, TypeError: for arguments that are not valid, and for more slots than the
        server has threads for, where that can be known so early.
    :raises OSError: if the board cannot be read and written.

    In a process that a server makes when it has long been there neither threads nor a board are an
    error: it goes on without a gate, and tries again to open the board.

    The guard may be called from any thread.
    """

    _gate: Gate | None = None
    _bounds: Limits | None = None  # of what a dry run estimates

    def __init__(
        self,
        app: WSGIApplication,
        *,
        monitor: Monitor | None = None,
        slots: int | None = None,
        max_queue: float | None = None,
        max_wait: float | None = None,
        adaptive: bool = True,
        ready: str = DAMPED,
        patience: float = DAMPED_PATIENCE,
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
        show_stacks: bool = False,
        **others: NoReturn,  # there are none; taken to say why
    ) -> None:
        wsgi_app("app", app)
        self._options = options = _options(locals())
        self._in_flight = InFlight(trust_queue_header)
        self._leftovers = UnreadBodyReader()
        self.next_call = NextCall()
        self.dry_run: DryRun | None = DryRun() if dry_run else None
        adapter = self._queue(options)
        self.monitor: Monitor = monitor or self._on_board(board, adapter)
        self._know_checks(options)
        self._put_in_front(app, adapter)
        self._wait_for_a_call(adapter)
        self._listen(on_busy, on_free)

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
        return app(environ, start_response)

    def _first_call(self, environ: WSGIEnvironment) -> WSGIApplication:
        """Do what waits for a call of the server's; return the app for this one."""
        if in_a_test():  # the next call may come from a server
            return lambda *call: briefly(self._app(*call))
        sampled = self.next_call.begin(environ)
        if sampled is None:
            return self._app
        if self._checks.match(environ) is not None:
            sampled.moved()  # a check has a thread, and says nothing of how long others take
        # Behind the pick-up, for what is refused says nothing of it either.
        return self._while_crowded(sampled.timing(self._behind))

    def _know_checks(self, options: GuardOptions) -> None:
        self._checks, self._patience = options.checks, options.patience
        self._suspects: Container[str] = options.checks.suspects
        self._responses = _responses(options)
        self._check: Callable[[str, float], Verdict] = self.monitor.check
        if self.dry_run is not None:
            self._check = self._dry_check

    def _queue(self, options: GuardOptions) -> Gate | InFlight:
        """Return the gate if there is to be one; in a dry run one is only estimated."""
        if options.slots is None:
            return self._in_flight
        waits = options.some("max_queue", "max_wait", "client_timeout")
        self._bounds = bounds = limits(options.slots, **waits)
        room_to_start_with(bounds)
        waits["max_queue"] = bounds.max_queue  # each waits in a thread, and there are no more
        if self.dry_run is None:
            self._gate = adapted(Gate(options.slots, **waits), options.adaptive)
            return self._gate
        self.dry_run = DryRun(Discipline(options.slots, **waits))
        return self._in_flight

    @property
    def limits(self) -> GuardLimits:
        """What the guard does to requests, and the limits that are in force now."""
        if self.dry_run is not None:
            return in_force(self._options, DRY_RUN, self._bounds)
        if self._crowd.watches:
            return pick_up_in_force(self._options, self._pick_up)
        return gate_in_force(self._options, None if self._lacks_room() else self._gate)

    def _lacks_room(self) -> bool:
        return self._server is not None and self._server.lacks_room

    def _put_in_front(self, app: WSGIApplication, adapter: Adapter) -> None:
        """Put a gate in front of the app, and what stamps requests where the gate has no room."""
        monitor, options, timeout = self.monitor, self._options, self._options.timeout
        monitor.app = monitor.app or app_name(app)
        if options.show_stacks:
            from .dashboard.stacks import Stacks

            monitor.stacks = monitor.stacks or Stacks()
            app = monitor.stacks.noting(app)
        client_of = self._reader(lambda: self._in_flight.count() <= 1)  # but the one that asks
        self._pick_up = self._at_pick_up(options)
        if self.dry_run is not None:
            app = (passed if options.slots is None else counted)(app, self.dry_run)
        self._plain = self._gated = app
        stamps = options.slots is not None or options.client_timeout is not None
        if stamps or client_of is not None:
            self._plain = self._gated = stamping(app, monitor, timeout, client_of)
        if isinstance(adapter, Gate):
            client_of, refused = self._reader(adapter.is_idle), self._pick_up.refused
            self._gated = holding(app, adapter, monitor, refused, timeout, client_of)
        if options.expose_load:
            self._report()

    def _at_pick_up(self, options: GuardOptions) -> PickUp:
        """Return what refuses where the guard is not the queue itself."""
        instead = None if self.dry_run is None else self.dry_run.refuse
        refused = self._leftovers.before(self._responses.refused)
        limits = options.some("max_wait", "client_timeout")
        # A refresh logs what is wrong with an adapter, once a streak.
        return PickUp(refused, **limits, instead=instead, unreadable=self.monitor.refresh)

    def _reader(self, is_idle: Callable[[], bool]) -> Callable[[Mapping[str, Any]], Client] | None:
        """Return what reads from a request's headers how long its client waits, and has waited."""
        options = self._options
        trusts = options.client_timeout_header, options.trust_queue_header
        return client_reader(options.timeout, *trusts, is_idle)

    def _report(self) -> None:
        """Have all answers carry the load."""
        from .metrics.orca import Reporter

        reported, refused = Reporter(self.monitor).around, self._pick_up.refused
        self._plain, self._gated = reported(self._plain), reported(self._gated)
        self._pick_up.refused = lambda reason: reported(refused(reason))

    def _choose_app(self) -> None:
        """Pass requests by a gate that has no room; count them where that is wanted."""
        if self._server is not None and self._server.whole_targets:
            self._suspects = self._checks.whole_suspects
        app, in_flight = self._plain if self._lacks_room() else self._gated, self._in_flight
        self._behind = in_flight.counting(app) if in_flight.is_wanted else app
        if in_flight.is_wanted:  # by now: another thread may have come in between
            self._behind = in_flight.counting(app)
        self._app = self._while_crowded(self._behind)

    def _while_crowded(self, app: WSGIApplication) -> WSGIApplication:
        """Return ``app``, from which requests are kept while too many queue in the server."""
        return self._pick_up.around(app) if self._pick_up.crowded else app

    def _on_board(self, board: Board | str | os.PathLike[str] | None, adapter: Adapter) -> Monitor:
        """Return the monitor of ``adapter``, or of the board that it is posted on."""
        if board is None:
            return Monitor(adapter)
        publisher = Forking(board, adapter, self._unheard_of)
        monitor = Monitor(publisher)
        publisher.begin(lambda: monitor.stopping)
        if isinstance(adapter, Gate):
            adapter.subscribe(monitor.refresh)
        return monitor

    def _wait_for_a_call(self, adapter: Gate | InFlight) -> None:
        """Have the next call find out which server this is, and begin what serving processes do."""
        options = self._options
        self._first = self.next_call.steps
        self._server: FirstRequest | None = None
        self._crowd = crowd = CrowdWatch(self._pick_up, self.next_call, self._options.adaptive)
        self._in_flight.begin = self._pick_up.changed = self._choose_app
        if options.monitor is None:
            counts, left = (self._in_flight, self.count_checks), self._leftovers
            self._server = FirstRequest(self.monitor, adapter, *counts, self.next_call, left, crowd)
        else:
            self.next_call.does(self._watch, "could not begin to watch the queue")
        self._choose_app()
        if options.board is not None:
            self._unheard_of()
        if self.monitor.limits is None:  # else another guard stands in front of this one
            tell_limits(self.monitor, lambda: self.limits)
            self._logged = threading.Lock()  # for ever by the call that does it
            self.next_call.does(self._log_limits, "could not tell what is in force")
        if options.push:
            from .haproxy import Push

            self._pushes = Push(self.monitor, options.push)
            self.next_call.does(self._push, "could not begin to push")

    def _log_limits(self, _: WSGIEnvironment) -> None:
        self.monitor.serves = True
        if self._logged.acquire(blocking=False):  # of several first calls at once
            log_limits(self.monitor)

    def _watch(self, _: WSGIEnvironment) -> None:
        self._crowd.watch(own_part(self.monitor.adapter))

    def _push(self, _: WSGIEnvironment) -> None:
        self.monitor.serves = True
        self._pushes.start()

    def _listen(self, on_busy: Listener | None, on_free: Listener | None) -> None:
        if on_busy is not None:
            self.monitor.on_busy(on_busy)
        if on_free is not None:
            self.monitor.on_free(on_free)

    def _unheard_of(self) -> None:
        """Have the next call tell the board that this process serves."""

        def call(_: WSGIEnvironment) -> object:
            publisher: Any = self.monitor.adapter
            return publisher.call()

        self.next_call.does(call, "could not tell the board that this process serves")

    def _answer(self, environ: WSGIEnvironment) -> WSGIApplication | None:
        """Return the answer if the request is a check."""
        relaunch()
        check = self._checks.match(environ)
        if check is None:
            return None
        policy = check.policy
        verdict = self._check(policy, self._patience) if policy else None
        return self._responses.for_check(check, verdict, environ.get("HTTP_ACCEPT"))

    def _dry_check(self, _policy: str, patience: float) -> Verdict:
        return self.monitor.check(ALWAYS, patience)

    def count_checks(self) -> Sized:
        """Count the checks from now on that are being answered; return one thing for each."""
        check, in_flight = self._check, set[object]()

        def counted(policy: str, patience: float) -> Verdict:
            here = object()
            try:
                in_flight.add(here)
                return check(policy, patience)
            finally:
                in_flight.discard(here)  # also if a signal handler raised before it was in there

        self._check = counted
        return in_flight


def _responses(options: GuardOptions) -> Responses:
    from .responses import Responses  # WebOb is imported when there is a guard, and not before

    return Responses(**options.some("refusal", "retry_after", "expose_load"))


def _options(given: Mapping[str, Any]) -> GuardOptions:
    """Return the options of a guard's arguments, which are the list's, as a test sees."""
    known = {one.name: given[one.name] for one in taken_by(MIDDLEWARE)}
    options = from_keywords(MIDDLEWARE, {**known, **given["others"]})
    _go_together(options)
    return options


def _go_together(options: GuardOptions) -> None:
    """Raise for arguments that contradict each other."""
    monitor, slots = options.monitor, options.slots
    if monitor is not None and not isinstance(monitor, Monitor):
        raise TypeError(f"monitor must be a Monitor, not {monitor!r}: Monitor(adapter) is one")
    if monitor is not None and options.board is not None:
        raise ValueError(
            "give monitor or board, not both: Monitor(Publisher(board, adapter)) is a monitor"
            " whose adapter posts"
        )
    if monitor is not None and slots is not None:
        raise ValueError("give slots or monitor, not both: with slots the guard is the queue")
    if slots is None and options.max_queue is not None and not options.disabled:
        raise ValueError(
            "max_queue needs slots: without them requests queue in the server, and max_wait says"
            " for how long"
        )
    if options.push and options.dry_run:
        raise ValueError("give push or dry_run, not both: a dry run tells balancers nothing")


# So that a bulkhead knows a request also where nothing is stamped.
calls_apps(BusyGuard.__call__.__code__, lambda names: names["self"].monitor)
