"""``twist busyguard``: what ``busyguard serve --server twisted`` does, in Twisted's own runner."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from twisted.application import service, strports
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.python import reflect, usage

from .._support.spelling import nearest_argument
from .._support.usage_error import UsageError
from .._support.wsgi_app import wsgi_app
from ..adapters.front.base import GRACE_SECONDS
from ..adapters.twisted import guarded_site
from ..options import FLAG, OPTIONS, TWIST, GuardOptions, refusal, taken_by
from ..policy import seconds, whole
from .arguments import flipped, help_of, read
from .ports import ports_of
from .serve.command import search_here_first
from .serve.startup import leave_at_next_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from twisted.internet.defer import Deferred

    from ..adapters.twisted import GuardedSite
    from ..checkport.ports import Port
    from ..monitor import Monitor
    from ..options import Option

TAKEN = taken_by(TWIST)


def _option_name(option: Option) -> str:
    return option.argument[2:]


class Options(usage.Options):
    """The options of ``twist busyguard``."""

    synopsis = "[options]"
    optParameters = [  # noqa: RUF012 (Twisted's way)
        ["wsgi", None, None, "The WSGI app, such as mysite.wsgi.application."],
        ["listen", None, "tcp:8080", "Endpoint that the app is served at."],
        ["threads", None, 10, "Requests in the app at once.", int],
        ["grace", None, GRACE_SECONDS, "Seconds for running requests to finish at SIGTERM.", float],
        *([_option_name(one), None, None, help_of(one)] for one in TAKEN if one.kind is not FLAG),
    ]

    optFlags = [  # noqa: RUF012
        [_option_name(one), None, help_of(one)] for one in TAKEN if one.kind is FLAG
    ]

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Read them; one that is not taken here is an error that names what to do instead."""
        given = {argument.partition("=")[0] for argument in options or ()}
        for option in OPTIONS.values():
            reason = refusal(TWIST, option.name, option.argument)
            if reason is not None and option.argument in given:
                raise usage.UsageError(reason)
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            wrong = re.match(r"option (--[\w-]+) not recognized", str(error))
            near = wrong and nearest_argument(wrong[1], (f"--{name}" for name in self))
            if not near:
                raise
            raise usage.UsageError(f"{error}; is {near} meant?") from None

    def postOptions(self) -> None:
        """Find the app and judge the rest, while a mistake can still be shown in one line."""
        if self["wsgi"] is None:
            raise usage.UsageError("say which app to serve: --wsgi=mysite.wsgi.application")
        search_here_first()  # as busyguard serve does; twist itself does not
        try:
            # Twisted's spelling; everybody else has a colon before the app.
            self["app"] = reflect.namedAny(self["wsgi"].replace(":", "."))
        except Exception as error:
            raise usage.UsageError(f"cannot find the app {self['wsgi']!r}: {error}") from error
        try:
            wsgi_app(self["wsgi"], self["app"])
            whole("threads", self["threads"], least=1)
            seconds("grace", self["grace"])
            self["given"] = read(TWIST, self._texts())
            nowhere: Any = None  # the reactor is not chosen yet, and not needed to parse it
            serverFromString(nowhere, self["listen"])
        except (ValueError, TypeError, ImportError) as error:
            raise usage.UsageError(str(error)) from error

    def _texts(self) -> dict[str, Any]:
        texts = {one.name: self[_option_name(one)] for one in TAKEN}
        flags = [one for one in TAKEN if one.kind is FLAG]
        return {**texts, **{one.name: flipped(one) if texts[one.name] else None for one in flags}}


def makeService(options: Options) -> DrainService:
    """Return the service: the site, and the two ports where they are asked for."""
    with _one_line():
        chosen = GuardOptions(**options["given"])
        ours = ("check", "agent")
        given = {name: value for name, value in options["given"].items() if name not in ours}
        site = guarded_site(options["app"], options["threads"], grace=options["grace"], **given)
    parent = DrainService(site, options["grace"])
    PortService(site.guard.monitor, chosen).setServiceParent(parent)
    factory: Any = site
    web = strports.service(_with_backlog(options["listen"]), factory)
    web.setServiceParent(parent)
    return parent


class DrainService(service.MultiService):
    """Drains the site before it stops the listeners, so that balancers hear of it from them."""

    def __init__(self, site: GuardedSite, grace: float) -> None:
        super().__init__()
        self._site = site
        self._grace = grace

    def privilegedStartService(self) -> None:
        """Listen at ports that only root may."""
        with _one_line():
            super().privilegedStartService()

    def startService(self) -> None:
        """Listen."""
        with _one_line():
            super().startService()

    def stopService(self) -> Deferred[Any]:
        """Drain, then stop what listens."""
        leave_at_next_signal()
        stop: Callable[[], Deferred[Any]] = super().stopService
        drained: Deferred[Any] = self._site.drain(self._grace)
        return drained.addCallback(lambda _: stop())


class PortService(service.Service):
    """Our ports as a service: made when it starts, for twistd forks before that."""

    def __init__(self, monitor: Monitor, options: GuardOptions) -> None:
        self._monitor = monitor
        self._options = options
        self._ports: Iterable[Port] = ()

    def startService(self) -> None:
        """Listen."""
        super().startService()
        self._ports = ports_of(self._monitor, self._options).values()
        for port in self._ports:
            port.start()

    def stopService(self) -> None:
        """Stop listening."""
        super().stopService()
        for port in self._ports:
            port.stop()


@contextmanager
def _one_line() -> Iterator[None]:
    """End with one line if it cannot listen or post; Twisted's runner prints a traceback."""
    try:
        yield
    except (CannotListenError, OSError, ValueError, UsageError) as error:
        raise SystemExit(f"busyguard: {error}") from None


def _with_backlog(endpoint: str) -> str:
    """Return the endpoint with a longer accept queue than Twisted's 50, unless it says its own."""
    if endpoint.startswith(("tcp:", "ssl:")) and "backlog=" not in endpoint:
        return f"{endpoint}:backlog=1024"
    return endpoint
