"""What the guard leaves in a request's environ, and how an app reads it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..load import State
from ..policy import CLIENT_TIMEOUT
from .deadline import DEADLINE, MONITOR, call_until, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .client_timeout import Client

WAITED = "busyguard.waited"


def remaining(environ: Mapping[str, Any]) -> float:
    """Return the seconds until this request's client is taken to give up, never below 0.

    The right timeout for a call to an outside service: an answer that comes later is for nobody.
    Where the guard stamped no deadline, the default client timeout, 5 s.
    """
    deadline = environ.get(DEADLINE)
    if deadline is None:
        return CLIENT_TIMEOUT
    return max(0.0, float(deadline) - time.monotonic())


def under_pressure(environ: Mapping[str, Any]) -> bool:
    """Return whether the server is busy, so that a view can serve something cheaper.

    ``False`` where no guard stamped the request.
    """
    monitor = environ.get(MONITOR)
    return monitor is not None and monitor.state is State.BUSY


def stamp(environ: WSGIEnvironment, monitor: object, waited: float, deadline: float) -> None:
    """Leave the stamps of a request that has waited so long and may take until ``deadline``."""
    environ[WAITED] = waited
    environ[MONITOR] = monitor
    environ[DEADLINE] = deadline


def stamping(
    app: WSGIApplication,
    monitor: object,
    client_timeout: float,
    client_of: Callable[[Mapping[str, Any]], Client] | None = None,
) -> WSGIApplication:
    """Return ``app`` behind the stamps, for a guard that is not a gate: nothing waits there.

    :param client_of: says what a request tells of its client, where that is trusted.
    """

    def stamped(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if DEADLINE not in environ:  # else a guard in front has stamped it, and knows the queue
            ago, patience = (0.0, client_timeout) if client_of is None else client_of(environ)
            stamp(environ, monitor, ago, time.monotonic() - ago + patience)
        until: float = environ[DEADLINE]
        return timed(call_until(until, app, environ, start_response), until, environ.get(MONITOR))

    return stamped
