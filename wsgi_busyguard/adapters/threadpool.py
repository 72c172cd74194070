"""Reads a stock ThreadPoolExecutor, as ASGI bridges and home-made servers run WSGI apps in.

For one that is counted exactly and bounded see :mod:`wsgi_busyguard.adapters.executor`.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import thread as module
from typing import TYPE_CHECKING

from ..load import Load

if TYPE_CHECKING:
    from types import FrameType


class ThreadPoolAdapter:
    """Reads any stock :class:`concurrent.futures.ThreadPoolExecutor`.

    It counts every job, not only requests. What it reads changes between two of its looks. Of the
    private names ``_work_queue``, ``_threads`` and ``_max_workers`` are read; one that is missing
    is an unknown load. It knows no service times, so the damped policy judges as the exact one
    does.
    """

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        if not isinstance(executor, ThreadPoolExecutor):
            raise TypeError(f"executor must be a ThreadPoolExecutor, not {executor!r}")
        self._executor = executor

    def read(self) -> Load:
        """Return the pool's figures. Callable from any thread; about 1 us for each of them."""
        executor = self._executor
        queued = executor._work_queue.qsize()
        frames = sys._current_frames()
        threads = tuple(executor._threads)
        running = sum(_works(frames.get(thread.ident or 0)) for thread in threads)
        capacity = executor._max_workers
        # A job that an idle or yet unstarted thread is about to take is not queued.
        active = min(queued + running, capacity)
        return Load(queued + running - active, active, capacity)

    def __repr__(self) -> str:
        return f"<ThreadPoolAdapter of {self._executor._thread_name_prefix}>"


def _works(frame: FrameType | None) -> bool:
    """Return whether a thread of a pool runs a job: else it is in the pool's own loop."""
    return frame is not None and frame.f_code is not module._worker.__code__
