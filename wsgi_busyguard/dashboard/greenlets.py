"""In which lines the greenlets are that have a request, where gevent runs them.

A greenlet that has switched away stands still until its own thread switches back to it. So whoever
runs in that thread may go through its frames: no other thread can have it run, and none of the
interpreter's locks is held meanwhile. No garbage is collected meanwhile either: a finalizer could
let others run, and when the frame that Python is just making an object for ends, that ends the
process (``benchmarks/stacks.py --greenlets`` did so). From any other thread no greenlet is looked
at; the hub of their thread is asked to do it.
"""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from .._support.forks import Stage, after_fork
from .._support.locks import tried
from .._support.unpatched import original
from .stack_lines import Frame, Thread, dumped, folded, nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..load_report import StackFigures

R = TypeVar("R")

# As deep as faulthandler goes; and so many that the hub stands still for a few milliseconds.
MOST_CALLS, MOST_GREENLETS = 100, 300

# Seconds after which a hub that was asked and has not answered is kept by a greenlet that computes.
HUB_PATIENCE = 1.0


class Greenlets:
    """Says in which lines the greenlets of one thread are that have a request.

    :param clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        self._hub: Any = None
        self._current: Any = sys.modules["greenlet"].getcurrent
        self._asked: float | None = None  # when the hub was, if it has not answered
        self._seen = nothing("the hub has been asked; look again in a second")

    def note(self) -> None:
        """Note that a request begins in this greenlet."""
        self._began[self._current()] = self._clock()
        if self._hub is None:
            self._hub = sys.modules["gevent"].get_hub()

    def look(self, now: float) -> StackFigures | None:
        """Return what holds the slots, in another thread than theirs as it was at the last look.

        :returns: ``None`` if a greenlet keeps the hub.
        """
        hub = self._hub
        if hub is None:  # no request has come yet
            return folded((), True, {}, now)
        if original("_thread", "get_ident")() == hub.thread_ident:
            self._look_here()
        elif self._asked is None:
            self._asked = now
            hub.loop.run_callback_threadsafe(self._look_here)
        elif now - self._asked >= HUB_PATIENCE:
            return None
        return self._seen

    def _look_here(self) -> None:
        """Look, in the thread whose greenlets these are."""
        self._asked = None
        # One thread at a time: if two turned the collection off and on, it might stay off.
        seen = tried(_walking.lock, _walking.without_collection, self._stacks)
        if seen is not None:
            self._seen = folded(*seen, self._clock())

    def _stacks(self) -> tuple[list[Thread], bool, dict[int, float]]:
        """Return the stacks, whether these are all, and when each one's request began."""
        here = _root(self._current())
        known = {id(one): (one, since) for one, since in list(self._began.items())}
        ours = [one for one, _ in known.values() if not one.dead and _root(one) is here]
        threads = [_stack(one) for one in ours[:MOST_GREENLETS]]
        began = {ident: since for ident, (_, since) in known.items()}
        return threads, len(ours) <= MOST_GREENLETS, began


class Walking:
    """Keeps garbage from being collected while one thread walks its greenlets' frames."""

    def __init__(self) -> None:
        self._collected = False  # before a walk that goes on now
        self._make_lock()
        after_fork(Stage.OWN, self._after_fork)

    def _make_lock(self) -> None:
        self.lock = original("_thread", "RLock")()  # its owner is a thread, and no greenlet

    def without_collection(self, walk: Callable[[], R]) -> R:
        """Return what ``walk`` does. Requires the lock."""
        if self._collected:  # a signal handler came in the middle of a walk in this thread
            return walk()
        self._collected = gc.isenabled()
        try:
            gc.disable()
            return walk()
        finally:
            self._collect_again()

    def _collect_again(self) -> None:
        if self._collected:
            gc.enable()
        self._collected = False

    def _after_fork(self) -> None:
        """Set right what another thread of the parent was in the middle of."""
        self._make_lock()
        self._collect_again()


_walking = Walking()


def _stack(one: Any) -> Thread:
    """Return the stack of a greenlet of this thread, which has switched away."""
    frame, found = one.gr_frame, list[Frame]()
    while frame is not None and len(found) < MOST_CALLS:
        code = frame.f_code
        found.append(Frame(dumped(code.co_filename), str(frame.f_lineno), code.co_name))
        frame = frame.f_back
    return Thread(id(one), tuple(found), frame is None)


def _root(one: Any) -> Any:
    """Return the greenlet from which all others of its thread come."""
    while one.parent is not None:
        one = one.parent
    return one
