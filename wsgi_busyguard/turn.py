"""What one thread does for all of them, so that the others need not wait."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Turn:
    """The turn to do what is left to do; a thread that does not get it goes on without waiting.

    Not a plain lock that is tried: a signal handler may raise as soon as it is taken, before
    anybody has noted that it is, and then it would be taken for ever. A lock that knows its owner
    can be given back on suspicion: if it is another one's, nothing happens.
    """

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()

    def take(self, left: Callable[[], object], work: Callable[[], object]) -> None:
        """Call ``work`` for as long as ``left()`` is true, unless somebody is at it already.

        Whoever is at it looks again afterwards, so nothing is left undone: not what another thread
        adds meanwhile, and not what ``work`` or a finalizer adds by coming here once more.
        """
        lock = self._lock
        while left() and not lock._is_owned():
            try:
                if not lock.acquire(blocking=False):
                    return
                work()
            finally:
                # One call and nothing before it, or else a signal handler could raise before it.
                try:  # noqa: SIM105
                    lock.release()
                except RuntimeError:  # it was not taken, or is not this thread's
                    pass
