"""Counters the calls of an app that are under way, on any server and for nothing.

No stack but our own is ever looked at. On Python 3.11 ``sys._current_frames()`` can stop a whole
process for ever, if the garbage collector runs a finalizer just then (CPython's issue 106883, never
mended there), and to go from frame to frame of a thread that runs can end it with a segmentation
fault; without the GIL it can on any version. Guarding must never be the outage.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

from ..._support.forks import Stage, after_fork
from ...load import Load

# Only CPython counts references; elsewhere nobody is seen.
_references = getattr(sys, "getrefcount", lambda thing: 0)


class Inside:
    """Knows how many calls are inside a guard's app: an adapter that knows no queue, no capacity.

    A counter would cost each request a third of the whole pass-through, and one that is kept can
    drift. Here each call holds one reference to a token while it is under way, and whoever looks
    counts the references::

        token, body = inside.token, app(environ, start_response)
        del token

    The token lies on the interpreter's own stack meanwhile: there is no variable that a debugger
    could hold on to, an exception lets go of it on its way out, and a greenlet takes it along.
    Bodies that are iterated after the call are not seen.

    :ivar token: what a call under way holds one reference to.
    :ivar nested: whether another guard of this process counts the same calls.
    """

    __slots__ = ("__weakref__", "nested", "token")

    def __init__(self) -> None:
        self.token: Any = object()
        self.nested = False
        _everywhere[id(self)] = self
        after_fork(Stage.OWN, self._after_fork)

    def _after_fork(self) -> None:
        """Forget who was inside: they are in the parent, and their references would stay here."""
        self.token = object()

    def count(self) -> int:
        """Return how many calls are inside. Callable from any thread; 0.1 us."""
        return max(0, int(_references(self.token)) - AT_REST)

    def read(self) -> Load:
        """Return the count as ``active``, with an unknown capacity."""
        return Load(0, self.count(), None)

    def __repr__(self) -> str:
        return "<Inside: the calls of the app; no queue, no capacity>"


_everywhere: weakref.WeakValueDictionary[int, Inside] = weakref.WeakValueDictionary()

AT_REST = 0  # so that the next line counts all of them
AT_REST = Inside().count()


def inside() -> int:
    """Return how many calls are inside guards of this process, each once. From any thread."""
    all_of_them = [reference() for reference in _everywhere.valuerefs()]
    return sum(one.count() for one in all_of_them if one is not None and not one.nested)
