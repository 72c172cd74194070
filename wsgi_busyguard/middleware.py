"""BusyGuard: the WSGI face. Looks at a request's path, and either answers or passes it on."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from .adapters.frames import FrameAdapter
from .checks import Ask, Checks
from .environ import MONITOR, stamping
from .gate import Gate
from .holding import holding
from .monitor import Monitor
from .policy import CLIENT_TIMEOUT, DAMPED, PATIENCE, Verdict, flag, known_policy, seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .monitor import Listener

logger = logging.getLogger("wsgi_busyguard")


class BusyGuard:
    """Wrap a WSGI app so that health checks are answered truthfully and the queue stays short.

    :param app: the WSGI app to guard.
    :param monitor: knows the load of the server in front; see :mod:`wsgi_busyguard.adapters`.
    :param slots: how many requests may be in the app at once; given, the guard is a gate and queues
        the rest itself. The server needs at least ``slots + max_queue + 2`` threads.
    :param max_queue: how many may wait; ``None`` is ``4 * slots``.
    :param max_wait: seconds that one may wait; ``None`` is 20 % of ``client_timeout``.
    :param ready: what ready checks follow: ``"exact"``, ``"damped"`` or ``"always"``.
    :param patience: seconds of delay that ``damped`` bears.
    :param check_root: whether ``OPTIONS /`` is a ready check, as HAProxy's bare ``option httpchk``
        sends it. Preflights and what a proxy passed on for a client stay the app's.
    :param ready_paths: paths that are ready checks, as the balancer asks for them.
    :param live_paths: paths that are live checks.
    :param on_busy: called with a :class:`~wsgi_busyguard.load.Transition` when the state changes.
    :param on_free: likewise.
    :param refusal: a WSGI app that answers refused requests.
    :param retry_after: the least number of seconds in a refusal's ``Retry-After``.
    :param client_timeout: seconds after which clients give up; ``None`` is 5.
    :param expose_load: whether answers to checks carry the figures.
    :raises ValueError, TypeError: for arguments that cannot be meant.

    The guard may be called from any thread.
    """

    # A call goes straight to the function in this slot, without a method in between: each frame
    # costs as much as all else that is done for a request that is not a check.
    __slots__ = ("__call__", "__weakref__", "_answers", "_checks", "_patience", "_ready", "monitor")

    if TYPE_CHECKING:

        def __call__(
            self, environ: WSGIEnvironment, start_response: StartResponse
        ) -> Iterable[bytes]:
            """Answer a check, or pass the request on; a WSGI call."""

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
    ) -> None:
        from .answers import Answers  # brings WebOb, whose import costs more than all of ours

        if not callable(app):
            raise TypeError(f"app must be a WSGI app, not {app!r}")
        if client_timeout is not None:
            seconds("client_timeout", client_timeout)
        if monitor is not None and not isinstance(monitor, Monitor):
            raise TypeError(f"monitor must be a Monitor, not {monitor!r}: Monitor(adapter) is one")
        self._ready = known_policy(ready)
        self._patience = seconds("patience", patience)
        self._checks = Checks(flag("check_root", check_root), ready_paths, live_paths)
        self._answers = Answers(refusal=refusal, retry_after=retry_after, expose_load=expose_load)
        timeout = CLIENT_TIMEOUT if client_timeout is None else client_timeout
        if slots is not None:
            if monitor is not None:
                raise ValueError(
                    "give slots or monitor, not both: with slots the guard is the queue"
                )
            gate = Gate(slots, max_queue, max_wait, client_timeout=client_timeout)
            self.monitor = Monitor(gate)
            app = holding(app, gate, self.monitor, self._answers.refused, timeout)
        elif max_queue is not None or max_wait is not None:
            raise ValueError("max_queue and max_wait need slots: without them nothing queues here")
        else:
            self.monitor = Monitor(FrameAdapter(app)) if monitor is None else monitor
            if client_timeout is not None:
                app = stamping(app, self.monitor, timeout)
        self._become(self._passing(app))
        if slots is None and monitor is None:
            self._become(self._introduced(self.__call__))
        if on_busy is not None:
            self.monitor.on_busy(on_busy)
        if on_free is not None:
            self.monitor.on_free(on_free)

    def __repr__(self) -> str:
        return f"<BusyGuard {self.monitor!r}>"

    def _become(self, app: WSGIApplication) -> None:
        """Have calls go to ``app`` from now on."""
        object.__setattr__(self, "__call__", app)

    def _passing(self, app: WSGIApplication) -> WSGIApplication:
        """Return the function that answers checks and passes on the rest."""
        suspects, answer = self._checks.suspects, self._answer

        def pass_on(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            try:
                suspect = environ["PATH_INFO"] in suspects
            except KeyError:  # it may be left out where it is empty (PEP 3333)
                suspect = True
            if suspect:
                answered = answer(environ)
                if answered is not None:
                    return answered(environ, start_response)
            return app(environ, start_response)

        return pass_on

    def _introduced(self, passing: WSGIApplication) -> WSGIApplication:
        """Return a function for the first request, which says what the guard cannot know here."""
        once = threading.Lock()  # of several first requests at once, one gets it; never released

        def first(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            self._become(passing)
            # With a monitor in there, another guard stands in front, and knows.
            if once.acquire(blocking=False) and MONITOR not in environ:
                logger.warning(
                    "the queue of this server (%s) is not known, so every check says free;"
                    " BusyGuard(app, slots=N) makes the guard the queue, for a server started with"
                    " at least N + 4 * N + 2 threads",
                    environ.get("SERVER_SOFTWARE", "unnamed"),
                )
            return passing(environ, start_response)

        return first

    def _answer(self, environ: WSGIEnvironment) -> WSGIApplication | None:
        """Return the answer if the request is a check."""
        ask = self._checks.asked(
            environ["REQUEST_METHOD"],
            environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""),
            environ.get("QUERY_STRING", ""),
            environ,
        )
        if ask is None:
            return None
        return self._answers.to(ask, environ.get("HTTP_ACCEPT"), self._check)

    def _check(self, ask: Ask) -> Verdict:
        return self.monitor.check(ask.ready or self._ready, self._patience)
