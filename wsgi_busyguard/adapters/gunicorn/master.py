"""What the master holds for all its workers: the board, and the ports that read it.

Set up by a worker class alone, when gunicorn asks it to check its configuration. The thread that
serves the ports runs in the master, where nothing but the CPU can starve it.
"""

from __future__ import annotations

import os
import sys
from functools import wraps
from typing import TYPE_CHECKING, Any

from gunicorn.arbiter import Arbiter

from ..._support.listener import listening
from ..._support.log import FailOpen, unraised
from ...board.board import Board
from ...board.watcher import Watcher
from ...checkport.event_loop import Loop
from ...checkport.ports import AgentPort, CheckPort, introduce
from ...dashboard.shared_stacks import SharedStacks
from ...options import GuardOptions
from ..acceptqueue import in_the_kernel
from .options import read_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...load import GuardLimits

# More processes than one master has workers, with room for those that are being replaced.
BOARD_ROWS = 1024

_host: Host | None = None


class Host:
    """The board of this master, and its ports.

    :param options: what the operator said when the master started; the ports stay as they are.
    :ivar options: what he said last that can be meant, for the workers that are made now.
    :ivar mistake: what he said at a reload that cannot, if it was the last.
    :ivar arbiter: gunicorn's, once it is known.
    """

    def __init__(self, options: GuardOptions) -> None:
        self.options = options
        self.mistake = ""
        self.board = Board(options.board, BOARD_ROWS)
        self.stacks = SharedStacks(self.board)  # before there are workers
        self.arbiter: Any = None
        #: Where it listens, by what is answered there.
        self.where: dict[str, tuple[str, int]] = {}
        self._stopping = False
        self._logged_limits: GuardLimits | None = None
        self._loop: Loop | None = None
        #: What the ports speak for.
        self.watcher = _Watcher(
            self.board,
            serves=self._worker_serves,
            queued=self._in_the_kernel,
            draining=self._draining,
            stall_after=options.stall_after,
        )

    def listen(self) -> None:
        """Bind the ports that are asked for and begin to answer.

        :raises OSError: if it cannot listen there.
        :raises RuntimeError: if there is no thread to be had for it.
        """
        options, watcher = self.options, self.watcher
        ports: dict[str, CheckPort | AgentPort] = {}
        try:
            if options.check is not None:
                _is_free(options.check)
                policy = options.ready, options.patience
                ports["checks at http"] = CheckPort(watcher, options.check, *policy, share=True)
            if options.agent is not None:
                _is_free(options.agent)
                ports["agent at tcp"] = AgentPort(watcher, options.agent, share=True)
            introduce(ports.values())
            if ports:
                self._loop = Loop(*ports.values())
                self._loop.start()
        except BaseException:  # a port at which nobody answers is worse than none
            for port in ports.values():
                port.listener.close()
            raise
        self.where = {what: port.address for what, port in ports.items()}

    def _in_the_kernel(self) -> int | None:
        return in_the_kernel(getattr(self.arbiter, "LISTENERS", ()))

    def _worker_serves(self) -> bool:
        """Return whether any worker serves, as far as gunicorn itself knows."""
        workers = list(getattr(self.arbiter, "WORKERS", {}).values())
        return any(getattr(worker, "has_served", False) for worker in workers)

    def tell(self, limits: GuardLimits, log: Any) -> None:
        """Write to the log what is in force in each worker that is made now, if that is new."""
        if limits != self._logged_limits:
            self._logged_limits = limits
            unraised(log.info, "busyguard: in force in each worker: %s", limits)

    def meet(self, arbiter: Any) -> None:
        """Get to know the arbiter, and hear of its end.

        There is no hook for it before its workers are told, so its stop() is replaced.
        """
        if self.arbiter is arbiter:
            return
        stop = arbiter.stop

        @wraps(stop)
        def stopping(*arguments: Any, **named: Any) -> Any:
            self._stopping = True
            return stop(*arguments, **named)

        arbiter.stop = stopping
        self.arbiter = arbiter

    def freed(self, worker: Any) -> None:
        """Note the end of a worker."""
        self.board.free(worker.pid)

    def _draining(self) -> bool:
        """Return whether the master is on its way out, or has sent its workers away (WINCH).

        Not whether all workers are stopping: so they are at a reload, too, before the new ones are
        there.
        """
        return self._stopping or getattr(self.arbiter, "num_workers", None) == 0


class _Watcher(Watcher):
    def __init__(self, board: Board, *, serves: Callable[[], bool], **options: Any) -> None:
        super().__init__(board, **options)
        self._serves = serves

    def absent(self, patience: float) -> bool:
        """Say of nobody's absence while workers serve that have no slot on the board.

        Nor while this is the new master of two, after USR2: the old one's workers serve until the
        new ones are ready, on the very same listeners.
        """
        return super().absent(patience) and not _upgrading() and not self._serves()


def _upgrading() -> bool:
    """Return whether the master before this one is there; gunicorn keeps its id for so long."""
    return "GUNICORN_PID" in os.environ


def judge_options() -> None:
    """End the process with one line if ``BUSYGUARD_*`` is not valid.

    Not in a master that serves already: what is wrong at a reload must not be the outage.
    """
    try:
        read_options(os.environ)
    except ValueError as error:
        if not _serves():
            sys.exit(f"busyguard: {error}")


def _serves() -> bool:
    """Return whether this master serves already: from then on nothing of ours may end it."""
    return _host is not None or bool(getattr(Arbiter, "WORKERS", None))


def _mistaken(message: str, log: Any) -> None:
    """End the process with this message; a master that came to us at a reload goes on with less."""
    if not _serves():
        sys.exit(f"busyguard: {message}")
    unraised(log.error, "busyguard: %s; going on without", message)


def open_host(log: Any) -> Host:
    """Return the host of this master, made and listening if it was not; ends on a mistake."""
    global _host
    if _host is None:
        try:
            host = Host(read_options(os.environ))
        except (ValueError, OSError) as error:
            _mistaken(str(error), log)
            host = Host(GuardOptions())
        try:
            host.listen()
        except (OSError, RuntimeError) as error:
            why = getattr(error, "strerror", None) or error
            _mistaken(f"cannot listen for checks: {why}", log)
        for what, where in host.where.items():
            unraised(log.info, "busyguard: %s://%s:%d", what, *where)
        _host = host
    return _host


def the_host(cfg: Any, log: Any) -> tuple[Host, GuardOptions]:
    """Return the host, told of this configuration's life, and the options of a worker made now."""
    host = open_host(log)
    _listen_in(cfg, host)
    if cfg.default_proc_name != "gunicorn":
        host.watcher.app = cfg.default_proc_name  # which is the app, as the command named it
    try:
        host.options = read_options(os.environ)
        host.mistake = ""
        host.watcher.stacks = host.stacks if host.options.show_stacks else None
    except ValueError as error:  # at a reload; at the start it would have ended
        if host.mistake != str(error):  # said once, not for each worker
            host.mistake = str(error)
            unraised(log.error, "busyguard: %s; going on with what was said before", error)
    return host, host.options


def _listen_in(cfg: Any, host: Host) -> None:
    """Have the host told when the arbiter is ready and when a worker has gone.

    A hook has one value, so the user's own is called by ours; a reload makes a new configuration.
    """
    when_ready, child_exit = cfg.when_ready, cfg.child_exit
    if getattr(child_exit, "busyguard", False):
        return

    safely = FailOpen("gunicorn")  # what is raised in a hook ends the master

    @wraps(when_ready)
    def ready(server: Any) -> None:
        safely(host.meet, server)
        when_ready(server)

    @wraps(child_exit)
    def gone(server: Any, worker: Any) -> None:
        safely(host.meet, server)
        safely(host.freed, worker)
        child_exit(server, worker)

    gone.busyguard = True  # type: ignore[attr-defined]
    cfg.set("when_ready", ready)
    cfg.set("child_exit", gone)


def _is_free(listen: str) -> None:
    """Raise :exc:`OSError` if somebody listens there, who is not the master before this one.

    The ports are shared so that two masters can have them during an upgrade (USR2). Without this
    look a server of somebody else's would share them too, and answer every second check.
    """
    if not _upgrading():
        listening(listen).close()
