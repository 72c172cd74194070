"""Reads a stock ThreadPoolExecutor, as ASGI bridges and home-made servers run WSGI apps in.

For one that is counted exactly and bounded see :mod:`wsgi_busyguard.adapters.executor`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ...load import load_of
from .in_flight import calls_in_flight, count_calls

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...load import Load


class ThreadPoolAdapter:
    """Reads any stock :class:`concurrent.futures.ThreadPoolExecutor`.

    :param executor: runs the app, guarded.
    :param active: returns how many jobs run now; by default, how many calls are in guards. A
        job that is in none, such as one that iterates a body, counts only while it waits.

    What it reads changes between two of its looks. Of the private names ``_work_queue`` and
    ``_max_workers`` are read; one that is missing is an unknown load. It knows no service times,
    see :ref:`how they are estimated <estimated>`.
    """

    def __init__(
        self, executor: ThreadPoolExecutor, *, active: Callable[[], int] = calls_in_flight
    ) -> None:
        if not isinstance(executor, ThreadPoolExecutor):
            raise TypeError(f"executor must be a ThreadPoolExecutor, not {executor!r}")
        self._executor = executor
        self._active = active
        if active is calls_in_flight:
            count_calls()

    def read(self) -> Load:
        """Return the pool's figures. Callable from any thread; 1 us."""
        executor = self._executor
        return load_of(executor._work_queue.qsize() + self._active(), executor._max_workers)

    def __repr__(self) -> str:
        return f"<ThreadPoolAdapter of {self._executor._thread_name_prefix}>"
