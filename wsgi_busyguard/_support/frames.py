"""The frames of calls: who calls here, and whether a call has ended."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def callers() -> Iterator[FrameType]:
    """Yield the frames of the calls that this one is in, the nearest first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def has_ended(frame: FrameType) -> bool:
    """Return whether what ran in a frame is over, in whichever thread; its names are cleared then.

    Of a generator nobody can say: before Python 3.13 to ask would close it.
    """
    if frame.f_code.co_flags & SUSPENDS:
        return False
    try:
        frame.clear()
    except RuntimeError:  # it runs
        return False
    return True
