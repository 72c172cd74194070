"""``twist busyguard``: what ``busyguard serve --server twisted`` does, in Twisted's own runner."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from twisted.application import service, strports
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.python import reflect, usage

from .._support.wsgi_app import wsgi_app
from ..adapters.front.base import GRACE
from ..adapters.twisted import guarded_site
from ..checkport.ports import AgentPort, CheckPort, introduce
from .serve.command import examine
from .serve.startup import leave_at_next_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.internet.defer import Deferred

    from ..adapters.twisted import GuardedSite


class Options(usage.Options):
    """The options of ``twist busyguard``."""

    synopsis = "[options]"
    optParameters = [  # noqa: RUF012 (Twisted's way)
        ["wsgi", None, None, "The WSGI app, as mysite.wsgi.application."],
        ["listen", None, "tcp:8080", "Endpoint that the app is served at."],
        ["check", None, None, "Where checks are answered, outside the worker pool: tcp:8081."],
        ["agent", None, None, "Where HAProxy's agent-check is answered: tcp:8082."],
        ["threads", None, 10, "Requests in the app at once.", int],
        ["max-queue", None, None, "Requests waiting; 4 a thread if not given.", int],
        ["max-wait", None, None, "Seconds; 20% of the client timeout if not given.", float],
        ["client-timeout", None, 5.0, "Seconds after which clients give up.", float],
        ["ready", None, "damped", "What ready checks follow: exact, damped or always."],
        ["patience", None, 2.0, "Seconds of delay that damped bears.", float],
        ["board", None, None, "File where the load is posted, for busyguard agent and others."],
        ["push", None, "", "HAProxies to tell of each change: unix:PATH#BACKEND/SERVER,..."],
        ["grace", None, GRACE, "Seconds for running requests to finish at SIGTERM.", float],
    ]

    optFlags = [  # noqa: RUF012
        ["expose-load", None, "Tell the load in each answer, and in those to checks."],
    ]

    def postOptions(self) -> None:
        """Find the app and judge the rest, while a mistake can still be told in one line."""
        if self["wsgi"] is None:
            raise usage.UsageError("say which app to serve: --wsgi=mysite.wsgi.application")
        if os.getcwd() not in sys.path:  # as busyguard serve does; twist itself does not
            sys.path.insert(0, os.getcwd())
        try:
            self["app"] = reflect.namedAny(self["wsgi"])
        except Exception as error:
            raise usage.UsageError(f"cannot find the app {self['wsgi']!r}: {error}") from error
        try:
            wsgi_app(self["wsgi"], self["app"])
            examine({name.replace("-", "_"): value for name, value in self.items()})
            nowhere: Any = None  # the reactor is not chosen yet, and not needed to read the words
            serverFromString(nowhere, self["listen"])
        except (ValueError, TypeError) as error:
            raise usage.UsageError(str(error)) from error


def makeService(options: Options) -> Draining:
    """Return the service: the site, and the two ports where they are asked for."""
    names = ("max_queue", "max_wait", "client_timeout", "ready", "patience", "board", "push")
    chosen = {name: options[name.replace("_", "-")] for name in names}
    chosen["expose_load"] = bool(options["expose-load"])
    with _told_in_one_line():
        site = guarded_site(options["app"], options["threads"], grace=options["grace"], **chosen)
    parent = Draining(site, options["grace"])
    monitor = site.guard.monitor
    policy = chosen["ready"], chosen["patience"]
    made: list[CheckPort | AgentPort] = []
    if options["check"] is not None:
        _attach(parent, lambda: CheckPort(monitor, options["check"], *policy), made)
    if options["agent"] is not None:
        _attach(parent, lambda: AgentPort(monitor, options["agent"]), made)
    factory: Any = site
    web = strports.service(_with_backlog(options["listen"]), factory)
    web.setServiceParent(parent)
    return parent


class Draining(service.MultiService):
    """Drains the site before it stops the listeners, so that balancers hear of it from them."""

    def __init__(self, site: GuardedSite, grace: float) -> None:
        super().__init__()
        self._site = site
        self._grace = grace

    def privilegedStartService(self) -> None:
        """Listen at ports that only root may."""
        with _told_in_one_line():
            super().privilegedStartService()

    def startService(self) -> None:
        """Listen."""
        with _told_in_one_line():
            super().startService()

    def stopService(self) -> Deferred[Any]:
        """Drain, then stop what listens."""
        leave_at_next_signal()
        stop: Callable[[], Deferred[Any]] = super().stopService
        drained: Deferred[Any] = self._site.drain(self._grace)
        return drained.addCallback(lambda _: stop())


class Port(service.Service):
    """A port of ours as a service: made when it starts, for twistd forks before that."""

    def __init__(
        self, make: Callable[[], CheckPort | AgentPort], beside: list[CheckPort | AgentPort]
    ) -> None:
        self._make = make
        self._beside = beside  # those that were made before
        self._port: CheckPort | AgentPort | None = None

    def startService(self) -> None:
        """Listen."""
        super().startService()
        self._port = self._make()
        self._beside.append(self._port)
        introduce(self._beside)
        self._port.start()

    def stopService(self) -> None:
        """Stop listening."""
        super().stopService()
        if self._port is not None:
            self._port.stop()


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """End with one line if it cannot listen or post; Twisted's runner prints a traceback."""
    try:
        yield
    except (CannotListenError, OSError, ValueError) as error:
        raise SystemExit(f"busyguard: {error}") from None


def _attach(
    parent: Draining,
    make: Callable[[], CheckPort | AgentPort],
    beside: list[CheckPort | AgentPort],
) -> None:
    Port(make, beside).setServiceParent(parent)


def _with_backlog(endpoint: str) -> str:
    """Return the endpoint with a longer accept queue than Twisted's 50, unless it says its own."""
    if endpoint.startswith(("tcp:", "ssl:")) and "backlog=" not in endpoint:
        return f"{endpoint}:backlog=1024"
    return endpoint
