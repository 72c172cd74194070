"""In which lines the threads are that have a request: what holds the slots.

Frames of other threads are dangerous to look at in Python: to get at them can stop a whole process
for ever (CPython's issue 106883: it allocates while it holds a lock, and a finalizer may want the
same one), and to go through those of a thread that runs can end it. ``faulthandler`` is made for
processes in any state: it walks the stacks in C, allocates nothing, takes no lock, and keeps the
interpreter's lock meanwhile, so that no thread moves. It writes text, which is read here. It says
files, lines and functions; no arguments and no variables, and so nothing of a visitor's.

It ends after 100 threads and 100 calls of each. Whoever has a request is known by the frame of
:meth:`Stacks.noting` on its stack, so a request pays for a note of when it began and for a call.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import sysconfig
import time
from collections import Counter
from threading import get_ident
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from ..deadlines.deadline import Streamed
from .sentences import stack_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Seconds for which a look is new enough: the interpreter stands still for one.
EVERY = 1.0

# So many lines are shown, those with the most threads.
MOST_LINES = 8

# So much is read of a dump; 100 threads with 100 calls each are a tenth of it.
MOST_BYTES = 10_000_000

# Threads whose beginnings are remembered, before those are forgotten that are no more.
MANY_THREADS = 1000

_THREAD = re.compile(r"(?:Current t|T)hread 0x([0-9a-f]+)\b.*:")
_FRAME = re.compile(r'  File "(.*?)"?(?:\.\.\.)?, line ([0-9]+|\?\?\?) in (.*)')
_REST = ("  ...", "  <truncated rest of calls>")


def _dumped(path: str) -> str:
    """Return a path as a dump has it."""
    return path.encode("ascii", "backslashreplace").decode("ascii")


_STDLIB = tuple({_dumped(sysconfig.get_path(name)) + "/" for name in ("stdlib", "platstdlib")})
_INSTALLED = re.compile(r"(?:site|dist)-packages/")
_CALLS = _dumped(__file__)
_BODIES = _dumped(Streamed.__iter__.__code__.co_filename)
_OURS = _CALLS.removesuffix("dashboard/stacks.py")


class LineFigures(TypedDict):
    """A line in which threads are that have a request."""

    threads: int
    at: str
    oldest: float | None


class StackFigures(TypedDict):
    """What holds the slots of this process, as ``/load`` shows it."""

    threads: int
    complete: bool
    lines: list[LineFigures]
    why: str | None


class Frame(NamedTuple):
    """A call: where it is now."""

    file: str
    line: str
    function: str


class Thread(NamedTuple):
    """A thread's stack.

    :param frames: the innermost first.
    :param whole: whether these are all of them.
    """

    ident: int
    frames: tuple[Frame, ...]
    whole: bool


def threads_in(dump: str) -> tuple[list[Thread], bool]:
    """Return the threads that a dump of ``faulthandler`` tells of, and whether these are all."""
    found: list[Thread] = []
    complete = True
    ident, frames, whole = 0, list[Frame](), True
    for line in [*dump.splitlines(), "Thread 0x0:"]:
        if (match := _THREAD.fullmatch(line)) is not None:
            if ident:
                found.append(Thread(ident, tuple(frames), whole))
            ident, frames, whole = int(match[1], 16), [], True
        elif (match := _FRAME.fullmatch(line)) is not None:
            frames.append(Frame(*match.groups()))
        elif line in _REST:
            whole = False
        elif line == "...":
            complete = False
    return found, complete


def place(frames: Iterable[Frame]) -> str:
    """Return in which line a thread is: a library's, and the app's that called it.

    Of the standard library only where the app calls nothing else.
    """
    standard = library = ""
    for frame in frames:
        if frame.file.startswith(_OURS):
            continue
        at = f"{_short(frame.file)}:{frame.line}"
        if frame.file.startswith(_STDLIB) and not _INSTALLED.search(frame.file):
            standard = standard or at
        elif _INSTALLED.search(frame.file):
            library = library or at
        else:
            called = library or standard
            return f"{called + ' <- ' if called else ''}{at} in {frame.function}"
    return library or standard or "no line of the app"


def _short(file: str) -> str:
    """Return the end of a path that a person knows it by."""
    installed = _INSTALLED.split(file)
    if len(installed) > 1:
        return installed[-1]
    for folder in _STDLIB:
        if file.startswith(folder):
            return file[len(folder) :]
    return "/".join(file.split("/")[-2:])


def folded(
    threads: Iterable[Thread], complete: bool, began: Mapping[int, float], now: float
) -> StackFigures:
    """Return the lines in which threads are that have a request, those with the most first.

    :param began: when the last request of each thread began, by its number.
    """
    calls = {thread.ident: _calls(thread, began) for thread in threads}
    places = {ident: place(frames) for ident, frames in calls.items() if frames is not None}
    lines: list[LineFigures] = []
    for at, count in Counter(places.values()).most_common(MOST_LINES):
        ages = [now - began[ident] for ident, one in places.items() if one == at and ident in began]
        lines.append({"threads": count, "at": at, "oldest": max(ages, default=None)})
    return {"threads": len(places), "complete": complete, "lines": lines, "why": None}


def _calls(thread: Thread, began: Mapping[int, float]) -> tuple[Frame, ...] | None:
    """Return the calls inside of the request that a thread has; ``None`` if it has none."""
    for at, (file, _, function) in enumerate(thread.frames):
        if (file, function) in ((_CALLS, "noted"), (_BODIES, "__iter__")):
            return thread.frames[:at]
    # Of deep stacks the outer end is not seen. One that has had requests is in one, so deep.
    return thread.frames if not thread.whole and thread.ident in began else None


def unsafe() -> str | None:
    """Return why stacks are not to be looked at here; ``None`` if they may be."""
    if sys.implementation.name != "cpython" or not hasattr(os, "memfd_create"):
        return "only CPython on Linux can show them"
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return "without the interpreter's lock it is not safe to look at other threads' stacks"
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return "gevent's greenlets share one thread, and no other thread can look at them safely"
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
        self._seen: StackFigures = _nothing("nobody has looked yet")
        self._at = -EVERY

    def noting(self, app: WSGIApplication) -> WSGIApplication:
        """Return ``app`` with its calls known, and when each began."""
        began, clock = self._began, self._clock

        def noted(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            began[get_ident()] = clock()
            return app(environ, start_response)

        return noted

    def look(self) -> StackFigures:
        """Return what holds the slots, as it was within the last second."""
        now = self._clock()
        if now - self._at >= EVERY:
            self._at = now  # before, so that another thread does not look as well
            try:
                self._seen = self._looked(now)
            except Exception as error:  # guarding must never be the outage
                self._seen = _nothing(f"they cannot be read: {error!r}")
        return self._seen

    def first(self) -> str:
        """Return the line in which most requests are, in words; empty if it cannot be said."""
        seen = self.look()
        return stack_line(seen["lines"][0], seen) if seen["lines"] else ""

    def _looked(self, now: float) -> StackFigures:
        why = unsafe()
        if why is not None:
            return _nothing(why)
        threads, complete = threads_in(dump())
        if len(self._began) > MANY_THREADS and complete:
            for gone in set(self._began.copy()) - {thread.ident for thread in threads}:
                self._began.pop(gone, None)
        return folded(threads, complete, self._began, now)


def _nothing(why: str) -> StackFigures:
    return {"threads": 0, "complete": True, "lines": [], "why": why}
