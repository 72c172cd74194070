"""Locks that an exception out of nowhere leaves free: a signal handler's, mostly.

What is done under one, and what one thread does for all, so that the others need not wait.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")


class Lock(Protocol):
    """What can be taken and given back."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it; return whether that was possible."""

    def release(self) -> None:
        """Give it back."""


class OwnedLock(Lock, Protocol):
    """A lock that knows its owner: an RLock, whose types leave that out."""

    def _is_owned(self) -> bool: ...


def owned_lock() -> OwnedLock:
    """Return a lock that knows its owner; under gevent's monkey patching one of gevent's."""
    return cast("OwnedLock", threading.RLock())


def under(lock: Lock, step: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what ``step`` does, done under ``lock``, an RLock.

    Not ``with lock``: from Python 3.14 on a signal handler may raise after the lock is taken and
    before the block has begun, and then nobody releases it. Here the lock is taken inside of the
    ``try`` and released on suspicion, so it has to be one that knows its owner. One that this
    thread has already is taken without waiting, so it is never released too often.
    """
    try:
        lock.acquire()
        return step(*args, **kwargs)
    finally:
        # One call and nothing before it, or else a signal handler could raise before it.
        try:  # noqa: SIM105
            lock.release()
        except RuntimeError:  # a handler raised while this waited for it
            pass


def tried(lock: Lock, step: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
    """Do the same if the lock is free, and wait for nobody; ``None`` if it is not."""
    try:
        return step(*args, **kwargs) if lock.acquire(blocking=False) else None
    finally:
        try:  # noqa: SIM105
            lock.release()
        except RuntimeError:  # it was not taken, or is not this thread's
            pass


class Turn:
    """The turn to do what is left to do; a thread that does not get it goes on without waiting.

    Not a plain lock that is tried: a signal handler may raise as soon as it is taken, before
    anybody has noted that it is, and then it would be taken for ever. A lock that knows its owner
    can be given back on suspicion: if it is another one's, nothing happens.
    """

    def __init__(self) -> None:
        self._lock = owned_lock()

    def take(self, left: Callable[[], object], work: Callable[[], object]) -> None:
        """Call ``work`` for as long as ``left()`` is true, unless somebody is at it already.

        Whoever is at it looks again afterwards, so nothing is left undone: not what another thread
        adds meanwhile, and not what ``work`` or a finalizer adds by coming here once more.
        """
        lock = self._lock
        while left() and not lock._is_owned() and tried(lock, _done, work):
            pass


def _done(work: Callable[[], object]) -> bool:
    work()
    return True
