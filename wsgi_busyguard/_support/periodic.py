"""A thread that does something again and again, until its owner stops it or is gone.

Knows threads, forks and gevent; nothing of what is done. Thread and lock are made when it starts,
so that under gevent's monkey patching it is a greenlet, and a stalled hub shows.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from .forks import Stage, after_fork
from .launcher import launch
from .locks import owned_lock, under
from .log import Streak
from .unpatched import Bell
from .weak_calls import weakly

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds between two looks at those who wait. As often as Twisted's beat; an age limit of a second
# is then at most a quarter too late.
BEAT_SECONDS = 0.25

# Seconds for which stop(wait=True) waits for the thread, which may be in the middle of something.
JOIN_SECONDS = 1.0


class Periodic:
    """Calls ``work`` again and again, on a daemon thread of its own; it outlives what that raises.

    :param work: if it is a bound method, the thread ends when nobody else has its object.
    :param pause: seconds between two calls.
    :param at_once: whether the first call comes before the first pause.
    :param in_children: whether it goes on in a child process; else it has to be started there.
    :param failing: what the log says when ``work`` raises, once until it goes well again.
    :param at_end: called by the thread after it was stopped, if its object is there still.
    :ivar pause: may be set by ``work``, and holds from the next pause on.
    :ivar wanted: whether it was started and not stopped.

    All methods may be called from any thread, ``work`` itself included.
    """

    def __init__(
        self,
        work: Callable[[], object],
        pause: float,
        name: str,
        *,
        at_once: bool = False,
        in_children: bool = False,
        failing: str = "",
        at_end: Callable[[], object] = bool,
    ) -> None:
        self.pause = pause
        self.wanted = False
        self._work = weakly(work)
        self._name = name
        self._at_once = at_once
        self._in_children = in_children
        self._failing = failing or f"{name} raised; tried again"
        self._at_end = weakly(at_end)
        self._lock = owned_lock()
        self._run: _Run | None = None
        after_fork(Stage.OWN, self._forget)
        after_fork(Stage.THREADS, self._resume)

    def start(self) -> None:
        """Begin unless it has begun. While no thread is to be had, that is tried again."""
        self.wanted = True
        launch(self._begin)

    def stop(self, wait: bool = False) -> None:
        """End, after what is being done just now; wait for that, but not long, if told to."""
        run = under(self._lock, self._unwanted)
        if run is not None:
            run.end()
            if wait:
                run.join()

    def wake(self) -> None:
        """Have the next call come at once."""
        run = self._run
        if run is not None:
            run.bell.ring()

    @property
    def running(self) -> bool:
        """Whether there is a thread for it in this process.

        By the process id, for where nobody tells Python of a fork (uWSGI does not).
        """
        run = self._run
        return run is not None and run.pid == os.getpid()

    def _begin(self) -> None:
        run = under(self._lock, self._claim)
        if run is None:
            return
        try:
            run.thread.start()
        except BaseException:
            under(self._lock, self._give_up, run)
            raise
        if not self.wanted:  # stopped meanwhile
            run.end()

    def _unwanted(self) -> _Run | None:
        """Note that none is wanted, and return what there is. Requires self._lock."""
        self.wanted = False
        run, self._run = self._run, None
        return run

    def _claim(self) -> _Run | None:
        """Note that there is a thread, and return it if there was none. Requires self._lock."""
        if not self.wanted or self.running:
            return None
        run = self._run = _Run(self._go_on, self._name)
        return run

    def _give_up(self, run: _Run) -> None:
        """Note that it could not be started. Requires self._lock."""
        if self._run is run:
            self._run = None

    def _go_on(self, run: _Run) -> None:
        """Work until the end. In the thread, which has this and so not the work's owner."""
        streak = Streak()
        if not self._at_once:
            run.bell.wait(self.pause)
        while not run.ended:
            work = self._work()
            if work is None:
                return
            try:
                work()
                streak.over()
            except Exception:
                streak.failed(self._failing, exc_info=True)
            del work
            run.bell.wait(self.pause)
        at_end = self._at_end()
        if at_end is not None:
            at_end()

    def _forget(self) -> None:
        """Be without a thread, as a child is. One that forked, and goes on there, ends."""
        if self._run is not None:
            self._run.ended = True
        self._lock, self._run = owned_lock(), None
        self.wanted = self.wanted and self._in_children

    def _resume(self) -> None:
        if self.wanted:
            launch(self._begin)


class _Run:
    def __init__(self, go_on: Callable[[_Run], object], name: str) -> None:
        self.pid = os.getpid()
        self.ended = False
        self.bell = Bell()  # before the thread, see there
        self.thread = threading.Thread(target=go_on, args=(self,), name=name, daemon=True)

    def end(self) -> None:
        self.ended = True
        self.bell.ring()

    def join(self) -> None:
        if self.pid != os.getpid() or self.thread is threading.current_thread():
            return
        if self.thread.is_alive():
            self.thread.join(JOIN_SECONDS)
