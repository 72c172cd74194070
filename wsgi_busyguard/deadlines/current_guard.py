"""Which guard's request runs here, for code that has no environ at hand.

By the stack, as the deadline is found: see :mod:`wsgi_busyguard.deadlines.deadline`. A request of a
guard that stamps nothing is seen while the app is called, and not while its body is iterated.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from ..policy import CLIENT_TIMEOUT
from .deadline import MONITOR, Streamed, call_until, carried_monitor

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType


# How long the number of a guard's slots is taken to be the same.
FRESH_SECONDS = 0.25


class Found(NamedTuple):
    """The innermost guard, and where on the stack it has called the app, or iterates a body.

    :param guard: what reads its load, or a monitor of that.
    :param depth: how many calls further out, from the frame that was asked about.
    :param code: what runs there; ``None`` where it is known from the context alone.
    """

    guard: Any
    depth: int = 0
    code: CodeType | None = None


_guards: dict[CodeType, Callable[[dict[str, Any]], Any]] = {
    call_until.__code__: lambda names: names["environ"].get(MONITOR),
    Streamed.__iter__.__code__: lambda names: names["self"].guard(),
}


def calls_apps(code: CodeType, guard_of: Callable[[dict[str, Any]], Any]) -> None:
    """Take frames of this code for requests, too.

    :param guard_of: returns the guard's monitor from what the frame's names stand for.
    """
    _guards[code] = guard_of


def current_guard(frame: FrameType | None) -> Found | None:
    """Return the innermost guard on the stack from ``frame`` outwards; ``None`` if there is none.

    Costs some 0.2 us for each frame, so whoever asks often looks first where it was last time.
    """
    depth = 0
    while frame is not None:
        guard_of = _guards.get(frame.f_code)
        if guard_of is not None:
            return Found(_guard(guard_of, frame), depth, frame.f_code)
        frame = frame.f_back
        depth += 1
    carried = carried_monitor.get()
    return None if carried is None else Found(carried)


def _guard(guard_of: Callable[[dict[str, Any]], Any], frame: FrameType) -> Any:
    try:
        return guard_of(frame.f_locals)
    except Exception:  # an environ of the app's own making
        return None


@runtime_checkable
class ReadsAnother(Protocol):
    """A monitor, or what posts on a board: knows who reads the load of this process."""

    @property
    def adapter(self) -> Any:
        """Whoever reads it, or knows who does."""


_slots: weakref.WeakKeyDictionary[Any, tuple[float, int | None]] = weakref.WeakKeyDictionary()


def slots_of(guard: Any, now: float) -> int | None:
    """Return how many slots a guard has in force in this process; ``None`` if that is not known.

    A reading of the last moments will do.
    """
    try:
        while isinstance(guard, ReadsAnother):
            guard = guard.adapter
        at, slots = _slots.get(guard, (-math.inf, None))
        if not at <= now < at + FRESH_SECONDS:
            slots = guard.read().capacity
            if not isinstance(slots, int):
                slots = None
            _slots[guard] = now, slots
    except Exception:  # the guard's monitor says what is wrong with it
        return None
    return slots


def is_only_guard() -> bool:
    """Return whether no more than one guard has been seen at work in this process."""
    return len(_slots) <= 1


@runtime_checkable
class TellsLimits(Protocol):
    """A monitor that knows what is in force in its guard."""

    limits: Callable[[], Any] | None


def client_timeout_of(guard: Any) -> float:
    """Return the seconds after which a guard takes clients to give up; its default if unknown."""
    try:
        limits = guard.limits() if isinstance(guard, TellsLimits) and guard.limits else None
        return CLIENT_TIMEOUT if limits is None else float(limits.client_timeout)
    except Exception:  # of a gate they are others
        return CLIENT_TIMEOUT
