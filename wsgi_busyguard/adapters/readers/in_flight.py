"""Counts the calls of an app that are in flight, on any server and for next to nothing.

Only some readers need that count, and a call pays for it only where one of them does: it says so by
:func:`count_calls`, and every guard of the process then puts a counting layer around its app.

No frame of another thread is ever looked at. On Python 3.11 ``sys._current_frames()`` can stop a
whole process for ever, if the garbage collector runs a finalizer just then (CPython's issue 106883,
never mended there), and to go from frame to frame of a thread that runs can end it with a
segmentation fault; without the GIL it can on any version. Guarding must never be the outage.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any

from ..._support.forks import Stage, after_fork
from ...load import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Only CPython counts references; elsewhere nobody is seen.
_references = getattr(sys, "getrefcount", lambda thing: 0)


class InFlight:
    """Knows how many calls a guard's app is in: an adapter that knows no queue and no capacity.

    A counter that is kept can drift, and a lock would cost each request a third of the whole
    pass-through. Here each call holds one reference to a token while it is in flight, and whoever
    looks counts the references. Bodies that are iterated after the call are not seen.

    :param is_asked: whether the guard asks for the count at each call.
    :ivar begin: called when the calls are to be counted; puts the app behind :meth:`counting`.
    :ivar token: what a call in flight holds one reference to.
    :ivar is_read: whether the guard's monitor reads this.
    :ivar nested: whether another guard of this process counts the same calls.
    """

    __slots__ = ("__weakref__", "_is_asked", "begin", "is_read", "nested", "token")

    def __init__(self, is_asked: bool = False) -> None:
        self.token: Any = object()
        self.begin: Callable[[], object] = bool
        self._is_asked = is_asked
        self.is_read = self.nested = False
        _everywhere[id(self)] = self
        after_fork(Stage.OWN, self._forget)

    @property
    def is_wanted(self) -> bool:
        """Whether the calls are to be counted."""
        return self.is_read or self._is_asked or (_wanted and not self.nested)

    def counting(self, app: WSGIApplication) -> WSGIApplication:
        """Return ``app`` with its calls counted."""

        def counted(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            # The token lies on the interpreter's own stack meanwhile: there is no variable that a
            # debugger could hold on to, an exception lets go of it on its way out, and a greenlet
            # takes it along.
            token, body = self.token, app(environ, start_response)
            del token
            return body

        return counted

    def count(self) -> int:
        """Return how many calls are in flight. Callable from any thread; 0.1 us."""
        return max(0, int(_references(self.token)) - AT_REST)

    def read(self) -> Load:
        """Return the count as ``active``, with an unknown capacity."""
        return Load(0, self.count(), None)

    def __repr__(self) -> str:
        return "<InFlight: the calls of the app; no queue, no capacity>"

    def _forget(self) -> None:
        """Forget who was in flight: they are in the parent; their references would stay here."""
        self.token = object()


_everywhere: weakref.WeakValueDictionary[int, InFlight] = weakref.WeakValueDictionary()
_wanted = False

AT_REST = 0  # so that the next line counts all of them
AT_REST = InFlight().count()


def count_calls() -> None:
    """Have every guard of this process count its calls from now on."""
    global _wanted
    _wanted = True
    for one in _all():
        one.begin()


def calls_in_flight() -> int:
    """Return how many calls are in guards of this process, each once. From any thread."""
    return sum(one.count() for one in _all() if not one.nested)


def _all() -> list[InFlight]:
    found = [reference() for reference in _everywhere.valuerefs()]
    return [one for one in found if one is not None]
