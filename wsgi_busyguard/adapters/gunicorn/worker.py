"""What every guarded worker does, whichever way it takes connections: post, and speak for all.

Mixed into gunicorn's own worker classes. Uses the names that all its versions have: check_config,
load_wsgi, handle_exit, and the hooks.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gunicorn.errors import AppImportError

from ..._support.launcher import relaunch
from ..._support.log import FailOpen, unraised
from ..._support.unpatched import begin
from ..._support.wsgi_app import wsgi_app
from ...board.publisher import Publisher
from ...deadlines.client_timeout import client_reader
from ...gate import Gate
from ...gate.limits_in_force import gate_in_force, in_force, pick_up_in_force
from ...gate.pickup import PickUp
from ...haproxy import Push
from ...load import CHECKS_ONLY, GATE, more_queued
from ...middleware import BusyGuard
from ...monitor import Monitor
from ...responses import Responses
from ..acceptqueue import in_the_kernel
from ..front.accept_backlog import StandingQueue
from ..front.progress import Clients
from ..readers.derived import DerivedAdapter
from ..unread_body import UnreadBodyReader
from .master import Host, judge_options, the_host
from .options import OPTIONS, loaded
from .request_heads import import_parsers

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication

    from ...counters import Counters
    from ...load import Adapter, GuardLimits, Load
    from ...options import GuardOptions
    from ...policy import Limits

# What the guard behind a worker's threads is told, too.
MIDDLEWARE_OPTIONS = (
    "ready",
    "patience",
    "show_stacks",
    "check_root",
    "ready_paths",
    "live_paths",
    "on_busy",
    "on_free",
    "refusal",
    "retry_after",
    "expose_load",
)


class HostLoad:
    """The load of all workers, as one of them sees it: an adapter.

    What all have posted, and what waits in the kernel for whoever is first.
    """

    def __init__(self, publisher: Publisher, worker: Any) -> None:
        self.shared = publisher.shared
        self._poster = publisher
        self._worker = worker

    def read(self) -> Load:
        """Post this worker's own figures, and return the sum."""
        load = self._poster.read()
        alone = self._worker.cfg.reuse_port
        queued = 0 if alone else in_the_kernel(self._worker.sockets) or 0
        return more_queued(load, queued)

    def portion(self) -> Load | None:
        """Return this worker's own figures, with its share of what waits for whoever is first."""
        load = self._poster.adapter.read()
        if load is None or self._worker.cfg.reuse_port:
            return load
        queued = in_the_kernel(self._worker.sockets) or 0
        workers = max(1, len(self._poster.board.awake()))
        return more_queued(load, queued // workers)

    def hears(self, asked: Any) -> None:
        """Have the counts of checks be posted."""
        self._poster.hears(asked)

    def counts(self) -> Counters:
        """Return what all workers have counted."""
        return self._poster.counts()

    def __repr__(self) -> str:
        return f"<HostLoad: {self.shared!r} and the accept queue>"


def own_load(adapter: Adapter, worker: Any) -> DerivedAdapter:
    """Return what reads one worker; with reuse_port its sockets are its own, and what waits there.

    What waits in the kernel has no age by itself. A worker knows for how long it has taken nobody
    in; on the board, the one for which that is shortest counts.
    """

    def read() -> Load | None:
        load = adapter.read()
        if load is None:
            return None
        if worker.cfg.reuse_port:
            load = more_queued(load, in_the_kernel(worker.sockets) or 0)
        standing: StandingQueue = worker.standing
        return standing.late(load)

    return DerivedAdapter(read, adapter)


# Seconds between two signs of life to the master, which waits for one for --timeout: at least 1 s.
NOTIFY_SECONDS = 0.1


class GuardedWorker:
    """A mixin for gunicorn's worker classes.

    :ivar monitor: knows the state of the host; its listeners hear of it in each worker.
    :ivar publisher: posts this worker's load.
    :ivar read_client: returns what a request tells of its client, where that is trusted.
    :ivar gate: what bounds the requests of this worker, if anything does.
    :ivar standing: knows for how long this worker has taken nobody in who waits in the kernel.
    """

    # Whether the loop that takes connections in is the one that beats.
    loop = False

    # Whether it refuses at pick-up where it is no gate.
    picks_up = False

    _pick_up: PickUp | None = None

    _notified = -math.inf  # when the master was last given a sign of life

    gate: Gate | None = None

    cfg: Any
    log: Any
    sockets: Any
    alive: bool
    tmp: Any
    wsgi: WSGIApplication

    @classmethod
    def setup(cls) -> None:
        """Judge the options, when gunicorn has just loaded the class."""
        judge_options()

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Set up the board and the ports, in the master, before there is any worker."""
        base: Any = super()
        if hasattr(base, "check_config"):
            base.check_config(cfg, log)
        host, options = the_host(cfg, log)
        try:
            bounds = cls.bounds(cfg, options)
        except ValueError as error:
            sys.exit(f"busyguard: {error}")
        host.tell(cls.expected(options, bounds), log)
        for name, reason in cls.without(options).items():
            if getattr(options, name) != OPTIONS[name].default:
                ignored = OPTIONS[name].variable, cls.__name__, reason
                unraised(log.warning, "%s has no effect with %s: %s", *ignored)

    @classmethod
    def without(cls, options: GuardOptions) -> dict[str, str]:
        """Return what has no effect on a worker of this kind, with why, and what to do instead."""
        return {}

    @classmethod
    def bounds(cls, cfg: Any, options: GuardOptions) -> Limits | None:
        """Return the limits of the gate in a worker, ``None`` where there is none.

        :raises ValueError: for options that do not fit this configuration.
        """
        return None

    @classmethod
    def expected(cls, options: GuardOptions, bounds: Limits | None) -> GuardLimits:
        """Return what is in force in a worker that is still to be made."""
        if bounds is None and cls.picks_up:
            return pick_up_in_force(options)
        return in_force(options, CHECKS_ONLY if bounds is None else GATE, bounds)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.host: Host
        self.host, self.options = the_host(self.cfg, self.log)
        self.clients = Clients(self.options.progress_timeout)
        self.host.board.expect()  # in the master, which is about to fork
        with suppress(ValueError):  # what a reload has changed, and a worker does without
            known = self.expected(self.options, self.bounds(self.cfg, self.options))
            self.host.tell(known, self.log)
        self._safely = FailOpen("gunicorn")
        self._made = self._safely(self._last_notified)

    @property
    def has_served(self) -> bool:
        """Whether it has told gunicorn that it is alive, as it does while it serves.

        For the master, which sees that of all its workers, whether they are on the board or not.
        """
        try:
            return self._made is not None and self._last_notified() != self._made
        except (OSError, ValueError):  # it has just been reaped
            return False

    def _last_notified(self) -> float:
        return self.tmp.last_update()  # type: ignore[no-any-return]

    @property
    def limits(self) -> GuardLimits:
        """What the guard does to requests, and the limits that are in force now."""
        if self.gate is None and self._pick_up is not None:
            return pick_up_in_force(self.options, self._pick_up)
        return gate_in_force(self.options, self.gate)

    def queue(self) -> Adapter:
        """Return what counts the requests of this worker."""
        raise NotImplementedError

    def load_wsgi(self) -> None:
        """Load the app and put the guard around it; from then on this worker counts.

        All of it here, in the worker, where gevent has patched what it patches.
        """
        self._take_a_place()
        self._safely(import_parsers, self.cfg)
        base: Any = super()
        base.load_wsgi()
        try:
            wsgi_app("the application", self.wsgi)
            self.options = loaded(self.options)
            options = self.options
            trusts = options.client_timeout_header, options.trust_queue_header
            self.read_client = client_reader(options.timeout, *trusts, self._is_idle)
            self.wsgi = self.guarded(self.wsgi)
        except (TypeError, ImportError) as error:  # in one line, and no worker starts
            raise AppImportError(str(error)) from None
        self.publisher.start(*self.work())
        self.publisher.ready()
        if self.options.push:
            # Here and not in the master, which forks all the time: the first worker that is ready
            # speaks for all, and when it is gone the next.
            self.push = Push(self.monitor, self.options.push).start()

    def _take_a_place(self) -> None:
        self.standing = StandingQueue(lambda: self.sockets)
        publisher = Publisher(self.host.board, own_load(self.queue(), self), loop=self.loop)
        self.load = HostLoad(publisher, self)
        self.monitor = Monitor(self.load, deliver=_aside)
        self.monitor.limits = publisher.limits = lambda: self.limits
        self.publisher = publisher
        publisher.seek()  # tried again at its beats

    def guarded(self, app: WSGIApplication) -> WSGIApplication:
        """Return the app behind a guard, for checks that no place in front has answered."""
        return BusyGuard(
            app,
            monitor=self.monitor,
            max_wait=math.inf,  # whoever stands in front of it refuses
            client_timeout=self.options.timeout,
            **self.options.some(*MIDDLEWARE_OPTIONS),
        )

    def at_pick_up(
        self,
        app: WSGIApplication,
        read: Callable[[], Load | None],
        count: Callable[[], object],
    ) -> WSGIApplication:
        """Return ``app``, where nothing in front of it refuses: requests are when picked up.

        :param read: reads what waits for this worker.
        :param count: called for each that is refused.
        """
        options = self.options
        refused = Responses(**options.some("refusal", "retry_after")).refused
        limits = options.some("max_wait", "client_timeout")
        pick_up = PickUp(
            UnreadBodyReader().before(refused),
            **limits,
            count=count,
            unreadable=self.monitor.refresh,
        )
        pick_up.read = read
        self._pick_up = pick_up
        return app if pick_up.is_off else pick_up.around(app)

    def _is_idle(self) -> bool:
        load = self.monitor.load
        return load.queued == 0 and load.active <= max(1, (load.capacity or 0) / 2)

    def work(self) -> tuple[Any, ...]:
        """Return what is to be done a few times a second."""
        return (self.standing.look, self._whether_stopping, self.monitor.refresh, self._post_stacks)

    def _post_stacks(self) -> None:
        if self.monitor.stacks is not None:
            self.host.stacks.post(self.monitor.stacks)

    def notify(self) -> None:
        """Tell the master that this worker goes on, and do what a thread would if none is there."""
        base: Any = super()
        now = time.monotonic()
        if not 0 <= now - self._notified < NOTIFY_SECONDS:  # at each turn of a loop
            self._notified = now
            base.notify()
        if hasattr(self, "publisher"):
            relaunch()
            self.publisher.beat_if_due()

    def run(self) -> None:
        """Serve until the end, and post then what has been counted since the last beat."""
        base: Any = super()
        try:
            base.run()
        finally:
            self.publisher.post_counts()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop counting, at SIGTERM: what was accepted is served, and nothing new comes here."""
        if hasattr(self, "publisher"):  # else it comes while the app is still being loaded
            self.publisher.stopping()
        base: Any = super()
        base.handle_exit(sig, frame)

    def _whether_stopping(self) -> None:
        if not self.alive:  # after max_requests, say
            self.publisher.stopping()


def _aside(tell: Callable[[], None]) -> None:
    """Have the listeners told in a thread of its own.

    Who notices a change may be the thread that accepts, or the one that beats; a listener that
    hangs would be the end of either.
    """
    begin(threading.Thread(target=tell, name="busyguard-listeners", daemon=True))


def counting(capacity: int) -> Gate:
    """Return a gate that only counts, for a queue that is in the kernel."""
    return Gate(capacity, math.inf, math.inf)
