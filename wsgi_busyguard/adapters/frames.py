"""Counts the requests in an app by looking at the stacks, on any server and for nothing.

The adapter of last resort: it knows who is inside, but neither a queue nor a capacity, so its load
is always free.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..load import Load

if TYPE_CHECKING:
    from types import FrameType


# The functions of the guard that call the app: in the middleware, and where it stamps requests.
CALLERS = ("pass_on", "stamped")


class FrameAdapter:
    """Reads how many threads are inside calls of ``app`` made by the guard.

    A counter would cost each request a third of the whole pass-through; looking costs only the one
    who looks (about 1 us a thread), and a count that is not kept cannot drift. It sees calls, not
    the bodies that are iterated after them, and one greenlet a thread.
    """

    def __init__(self, app: object) -> None:
        self._app = app

    def read(self) -> Load:
        """Return the number of threads inside as ``active``, with an unknown capacity."""
        inside = sum(map(self._calls, sys._current_frames().values()))
        return Load(0, inside, None)

    def _calls(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code.co_name in CALLERS and frame.f_locals.get("app") is self._app:
                return True
            frame = frame.f_back
        return False

    def __repr__(self) -> str:
        return "<FrameAdapter: threads inside the app; no queue, no capacity>"
