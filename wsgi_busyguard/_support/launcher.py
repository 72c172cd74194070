"""Threads that cannot be started now are started later.

A limit of processes (RLIMIT_NPROC, a container's pids.max) makes ``Thread.start()`` raise, mostly
while a host is at its worst. Then the guard goes on without that thread and tries again: to raise
would be to end the worker that is just being made, and gunicorn ends its master with it. Knows
threads; nothing of what they do.
"""

from __future__ import annotations

import time
import weakref
from types import MethodType
from typing import TYPE_CHECKING

from .forks import Stage, after_fork
from .locks import owned_lock, tried
from .log import logger

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds between two attempts: as often as processes post.
RETRY_SECONDS = 0.25

# In their order; the values are nothing.
_postponed: dict[Callable[[], Callable[[], object] | None], None] = {}
_trying = owned_lock()  # never waited for
_due_at = 0.0


def launch(start: Callable[[], object]) -> None:
    """Call ``start``, which starts a thread; if none is to be had, have it called again later.

    A bound method is forgotten with its object. What is not wanted any more by then has to know
    that by itself. Never raises for want of a thread.
    """
    error = _failure(start)
    later = weakref.WeakMethod(start) if isinstance(start, MethodType) else lambda: start
    if error is None:
        _postponed.pop(later, None)  # from before: it would be started twice
    elif "shutdown" not in str(error):  # from Python 3.12 on, at the very end
        if not _postponed:
            logger.error("cannot start a thread: %s; tried again until it can", error)
        _postponed[later] = None


def relaunch() -> None:
    """Start what could not be started before, if it is time. For whoever comes by often."""
    if _postponed and time.monotonic() >= _due_at and not _trying._is_owned():
        tried(_trying, _try_again)


def _try_again() -> None:
    """Start them, oldest first, until one cannot be. Requires _trying."""
    global _due_at
    _due_at = time.monotonic() + RETRY_SECONDS
    for later in tuple(_postponed):
        start = later()
        if start is not None and _failure(start) is not None:
            return
        _postponed.pop(later, None)
    logger.warning("threads can be started again")


def _failure(start: Callable[[], object]) -> RuntimeError | None:
    try:
        start()
    except RuntimeError as error:
        return error
    return None


def _after_fork_in_child() -> None:
    """Forget what the parent could not start: whoever goes on in the child begins anew there."""
    global _trying
    _trying = owned_lock()
    _postponed.clear()


after_fork(Stage.OWN, _after_fork_in_child)
