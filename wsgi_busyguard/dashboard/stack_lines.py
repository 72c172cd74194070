"""In which lines threads or greenlets are that have a request: their stacks in, figures out."""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from ..deadlines.deadline import Streamed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ..load_report import LineFigures, StackFigures

# So many lines are shown, those with the most threads.
MOST_LINES = 8


def dumped(path: str) -> str:
    """Return a path as a dump has it."""
    return path.encode("ascii", "backslashreplace").decode("ascii")


_STDLIB = tuple({dumped(sysconfig.get_path(name)) + "/" for name in ("stdlib", "platstdlib")})
_INSTALLED = re.compile(r"(?:site|dist)-packages/")
_BODIES = dumped(Streamed.__iter__.__code__.co_filename)
_OURS = dumped(__file__).removesuffix("dashboard/stack_lines.py")
_CALLS = _OURS + "dashboard/stacks.py"


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


def nothing(why: str) -> StackFigures:
    """Return what is shown where no stack is."""
    return {"threads": 0, "complete": True, "lines": [], "why": why}


def together(several: Collection[StackFigures], complete: bool) -> StackFigures:
    """Return those of several processes as one; why one cannot be seen only where none can.

    :param complete: whether these are all of them.
    """
    seen = [one for one in several if one["why"] is None]
    if several and not seen:
        return next(iter(several))
    lines: dict[str, LineFigures] = {}
    for line in (line for one in seen for line in one["lines"]):
        known = lines.get(line["at"])
        lines[line["at"]] = line if known is None else _both(known, line)
    most = sorted(lines.values(), key=lambda line: -line["threads"])[:MOST_LINES]
    threads = sum(one["threads"] for one in seen)
    complete = complete and len(seen) == len(several) and all(one["complete"] for one in seen)
    return {"threads": threads, "complete": complete, "lines": most, "why": None}


def _both(one: LineFigures, other: LineFigures) -> LineFigures:
    ages = [age for age in (one["oldest"], other["oldest"]) if age is not None]
    return {
        "threads": one["threads"] + other["threads"],
        "at": one["at"],
        "oldest": max(ages, default=None),
    }
