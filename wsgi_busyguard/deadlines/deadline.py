"""When the client of the request that runs here gives up, for code that has no environ at hand.

Every app with a deadline is called by :func:`call_until`, and every body that works for the client
still is iterated as :class:`Streamed`. Nothing is noted down: who asks looks for these two on its
own stack. So a request that never asks pays a call and no more, and what is not kept cannot be left
over for the next request. A ``ContextVar`` that is set and reset around the app and around each
chunk makes the gate 12 % dearer for a list and 48 % for a generator (benchmarks/README.rst).
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from contextvars import ContextVar
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from .._support.wsgi_app import wsgi_app
from ..policy import duration, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

DEADLINE = "busyguard.deadline"
MONITOR = "busyguard.monitor"

# A deadline that was set by hand, for the code it is set around and what has a copy of its context.
_narrowed: ContextVar[float | None] = ContextVar("wsgi_busyguard.deadline", default=None)

#: The monitor of the guard whose request this is, for what has a copy of its context.
carried_monitor: ContextVar[Any] = ContextVar("wsgi_busyguard.monitor", default=None)


class NotMade(Exception):
    """A call to an outside service was not made, so the view answers without it."""


class TooLate(NotMade, TimeoutError):
    """Raised in place of a call that would outlive the client it is for."""


def current_deadline() -> float | None:
    """Return the monotonic seconds at which the client of the request that runs here gives up.

    ``None`` outside of a request, and in one that no guard stamped: a guard without ``slots``
    stamps if it has a ``client_timeout``. Works wherever the call stack leads back to the guard,
    bodies that are iterated later included; see :func:`carrying` for threads and event loops that
    an app has others use. The earliest counts if there are several.
    """
    narrowed, stamped = _narrowed.get(), _on_the_stack()
    known = [one for one in (narrowed, stamped) if one is not None and one < math.inf]
    return min(known, default=None)


def call_timeout(at_most: float | None = None, *, least: float = 0.0) -> float | None:
    """Return the timeout for a call to an outside service, in seconds: what its client has left.

    :param at_most: the longest timeout; ``None`` where it is the client alone who limits it.
    :param least: what such a call takes at best. With less left it is not worth beginning.
    :returns: ``at_most`` outside of a request.
    :raises TooLate: if there is no time left. The call would be for nobody.
    :raises ValueError, TypeError: for what is no time.
    """
    if at_most is not None:
        duration("at_most", at_most)
    duration("least", least)
    deadline = current_deadline()
    if deadline is None:
        return at_most
    left = deadline - time.monotonic()
    if left <= least:
        raise TooLate(f"not begun: {max(0.0, left):.3f} s are left of the client's patience")
    return left if at_most is None else min(left, at_most)


@contextlib.contextmanager
def within(limit: float) -> Iterator[None]:
    """Give the code inside ``limit`` seconds from now, and never more than it had.

    For a part of a request that must not take all of its time, and for work without a request.
    """
    deadline = time.monotonic() + seconds("limit", limit)
    outer = current_deadline()
    token = _narrowed.set(deadline if outer is None else min(deadline, outer))
    try:
        yield
    finally:
        _narrowed.reset(token)


def carrying(app: WSGIApplication) -> WSGIApplication:
    """Return ``app`` with the deadline in its context as well, for what runs in other threads.

    An async view under WSGI runs in an event loop's thread with a copy of the context, and so does
    whatever is called by ``contextvars.copy_context().run`` in a thread of your own. Stands between
    the guard and the app. The Django and Flask integrations do this themselves.

    :raises TypeError: for what is no WSGI app.
    """
    wsgi_app("app", app)

    def carry(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        deadline = environ.get(DEADLINE)
        if deadline is None:
            return app(environ, start_response)
        monitor = environ.get(MONITOR)
        token, carried = _narrowed.set(deadline), carried_monitor.set(monitor)
        try:
            body = app(environ, start_response)
        finally:
            _narrowed.reset(token)
            carried_monitor.reset(carried)
        return streamed(body, deadline, environ.get("wsgi.file_wrapper"), monitor)

    return carry


def call_until(
    until: float, app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    """Call an app whose client waits until then; a WSGI call."""
    return app(environ, start_response)


class Streamed:
    """A body that is passed on as it is, after the call that made it, and knows its deadline.

    :param monitor: of the guard whose request it answers.
    :ivar until: monotonic seconds.
    """

    __slots__ = ("_body", "_monitor", "until")

    def __init__(self, body: Any, until: float, monitor: object = None) -> None:
        self._body = body
        self._monitor = monitor
        self.until = until

    def __iter__(self) -> Iterator[bytes]:
        # Written out, so that whoever keeps the iterator keeps this body as well. Not "yield from",
        # which would close the body when left halfway.
        for chunk in self._body:  # noqa: UP028
            yield chunk

    def close(self) -> None:
        """Close the body, if it can be closed."""
        close: Callable[[], object] | None = getattr(self._body, "close", None)
        if close is not None:
            close()

    def guard(self) -> object:
        """Return what knows the slots of the guard whose request it answers, if anything does."""
        return self._monitor


def timed(body: Iterable[bytes], until: float, monitor: object = None) -> Iterable[bytes]:
    """Return a generator as a body that knows its deadline, and any other body as it is.

    A generator works for the client still, and looks like any other iterable to a server.
    """
    return Streamed(body, until, monitor) if type(body) is GeneratorType else body


def streamed(
    body: Iterable[bytes], until: float, file_wrapper: object = None, monitor: object = None
) -> Iterable[bytes]:
    """Return a body that knows its deadline, unless servers measure it or send it as a file."""
    if hasattr(body, "__len__") or hasattr(body, "read") or is_servers_file(body, file_wrapper):
        return body
    return Streamed(body, until, monitor)


def is_servers_file(body: object, file_wrapper: object) -> bool:
    """Return whether the server may send this body as a file, if it stays the very same object.

    :param file_wrapper: ``wsgi.file_wrapper`` of the environ.
    """
    if isinstance(file_wrapper, type):
        return isinstance(body, file_wrapper)
    # uWSGI's is a function that returns the file, and it looks for that very file. One that is not
    # wrapped is as good as any other body there.
    return file_wrapper is not None and hasattr(body, "read")


_CALL, _BODY = call_until.__code__, Streamed.__iter__.__code__


def _on_the_stack() -> float | None:
    """Return the deadline that the innermost guard on this stack knows."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code is _CALL:
            return float(frame.f_locals["until"])
        if frame.f_code is _BODY:
            return float(frame.f_locals["self"].until)
        frame = frame.f_back
    return None
