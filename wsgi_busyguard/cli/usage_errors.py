"""What is wrong with a command's arguments, in one line instead of a traceback."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .._support.usage_error import UsageError
from ..board.board import BoardFull

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what arguments can be blamed for into a mistake."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, BoardFull) as error:
        raise UsageError(str(error)) from error


@contextmanager
def opening(listen: str) -> Iterator[None]:
    """Turn what may go wrong in listening at ``listen`` into a mistake."""
    try:
        yield
    except OSError as error:
        # A host that cannot be found has a number below 0, and a message of its own.
        known = error.errno is not None and error.errno > 0
        why = os.strerror(error.errno or 0) if known else error.strerror or str(error)
        raise UsageError(f"cannot listen at {listen}: {why}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
