"""Whether a function's call has ended, by its frame."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


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
