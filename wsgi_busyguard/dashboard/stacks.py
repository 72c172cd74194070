"""In which lines the threads are that have a request: what holds the slots.

Frames of other threads are dangerous to look at in Python: to get at them can stop a whole process
for ever (CPython's issue 106883: it allocates while it holds a lock, and a finalizer may want the
same one), and to go through those of a thread that runs can end it. ``faulthandler`` is made for
processes in any state: it walks the stacks in C, allocates nothing, takes no lock, and keeps the
interpreter's lock meanwhile, so that no thread moves. It writes text, which is read here. It says
files, lines and functions; no arguments and no variables, and so nothing of a visitor's.
It ends after 100 threads and 100 calls of each. Whoever has a request is known by the frame of
:meth:`Stacks.noting` on its stack, so a request pays for a note of when it began and for a call.

Of gevent's greenlets it shows the one that runs, which matters if that one keeps the hub. For the
others see greenlets.py.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import time
from threading import get_ident
from typing import TYPE_CHECKING

from .._support.machine import one_at_a_time
from .._support.unpatched import is_patched
from .greenlets import Greenlets
from .sentences import stack_line
from .stack_lines import Frame, Thread, folded, nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..load_report import StackFigures

# Seconds for which a look is new enough: the interpreter stands still for one.
LOOK_SECONDS = 1.0

# So much is read of a dump; 100 threads with 100 calls each are a tenth of it.
MOST_BYTES = 10_000_000

# Threads whose beginnings are remembered, before those are forgotten that are no more.
MANY_THREADS = 1000

_THREAD = re.compile(r"(?:Current t|T)hread 0x([0-9a-f]+)\b.*:")
_FRAME = re.compile(r'  File "(.*?)"?(?:\.\.\.)?, line ([0-9]+|\?\?\?) in (.*)')
_REST = ("  ...", "  <truncated rest of calls>")

# As deep as faulthandler goes. Python 3.13.0 does not say where it has left the rest out.
DUMPED_FRAMES = 100


def threads_in(dump: str) -> tuple[list[Thread], bool]:
    """Return the threads that a dump of ``faulthandler`` tells of, and whether these are all."""
    found: list[Thread] = []
    complete = True
    ident, frames, whole = 0, list[Frame](), True
    for line in [*dump.splitlines(), "Thread 0x0:"]:
        if (match := _THREAD.fullmatch(line)) is not None:
            if ident:
                found.append(Thread(ident, tuple(frames), whole and len(frames) < DUMPED_FRAMES))
            ident, frames, whole = int(match[1], 16), [], True
        elif (match := _FRAME.fullmatch(line)) is not None:
            frames.append(Frame(*match.groups()))
        elif line in _REST:
            whole = False
        elif line == "...":
            complete = False
    return found, complete


def unsafe() -> str | None:
    """Return why stacks are not to be looked at here; ``None`` if they may be."""
    if sys.implementation.name != "cpython" or not hasattr(os, "memfd_create"):
        return "only CPython on Linux can show them"
    if not one_at_a_time():
        return "without the interpreter's lock it is not safe to look at other threads' stacks"
    return None


def dump() -> str:
    """Return the stacks of all threads as ``faulthandler`` writes them.

    :raises OSError: if no file descriptor is left.
    """
    file = os.memfd_create("busyguard-stacks")
    try:
        faulthandler.dump_traceback(file)
        return os.pread(file, MOST_BYTES, 0).decode("ascii", "replace")
    finally:
        os.close(file)


class Stacks:
    """Says in which lines the requests of this process are. All methods from any thread.

    :param clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: dict[int, float] = {}
        self._greenlets: Greenlets | None = None
        self._seen: StackFigures = nothing("nobody has looked yet")
        self._at = -LOOK_SECONDS

    def noting(self, app: WSGIApplication) -> WSGIApplication:
        """Return ``app`` with its calls known, and when each began."""
        began, clock = self._began, self._clock
        if is_patched("threading"):
            return self._noting_greenlets(app)

        def noted(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            began[get_ident()] = clock()
            return app(environ, start_response)

        return noted

    def _noting_greenlets(self, app: WSGIApplication) -> WSGIApplication:
        self._greenlets = self._greenlets or Greenlets(self._clock)
        note = self._greenlets.note

        def noted(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            note()
            return app(environ, start_response)

        return noted

    def look(self) -> StackFigures:
        """Return what holds the slots, as it was within the last second."""
        now = self._clock()
        if now - self._at >= LOOK_SECONDS:
            self._at = now  # before, so that another thread does not look as well
            try:
                self._seen = self._looked(now)
            except Exception as error:  # guarding must never be the outage
                self._seen = nothing(f"they cannot be read: {error!r}")
        return self._seen

    def first(self) -> str:
        """Return the line in which most requests are, as text; empty if it is not known."""
        seen = self.look()
        return stack_line(seen["lines"][0], seen) if seen["lines"] else ""

    def _looked(self, now: float) -> StackFigures:
        why = unsafe()
        if why is not None:
            return nothing(why)
        seen = self._greenlets.look(now) if self._greenlets is not None else None
        if seen is not None:
            return seen
        threads, complete = threads_in(dump())
        if len(self._began) > MANY_THREADS and complete:
            for gone in set(self._began.copy()) - {thread.ident for thread in threads}:
                self._began.pop(gone, None)
        return folded(threads, complete, self._began, now)
