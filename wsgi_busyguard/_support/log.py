"""The log, for whoever must not fail because of it: a request, a check, a signal, a fork.

Python hands on what a filter raises, and what a handler raises outside of its ``emit()``, to
whoever writes the record. A filter that wants to know the current request raises at every record
that is written outside of one, as most of the guard's are. So nothing in this package writes to a
log but by what is here.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections import defaultdict
from contextlib import suppress
from functools import partialmethod
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


def unraised(write: Callable[..., object], *arguments: Any, **named: Any) -> None:
    """Call ``write``, a method of some logger; say on stderr what it raises, and return.

    What is no :exc:`Exception` passes: whoever ends a process or a greenlet means it.
    """
    try:
        write(*arguments, **named)
    except Exception as error:
        with suppress(Exception):  # no stderr, or one that is a log itself
            # As the handlers of the standard library tell of what they catch, and if they may.
            if logging.raiseExceptions:
                sys.stderr.write(_lost(error, arguments))


class Logger:
    """A logger whose methods raise nothing, whatever its filters and handlers do.

    What is written tells of the line that wrote it, as with a logger of the standard library's.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._logger.addFilter(self._with_origin)

    def _with_origin(self, record: logging.LogRecord) -> bool:
        """Say whose line it is, where nobody has configured logging.

        Python then prints the bare message on stderr, among those of everybody else.
        """
        if not self._logger.hasHandlers():
            record.msg = f"busyguard: {record.msg}"
        return True

    def log(self, level: int, message: str, *arguments: object, **named: Any) -> None:
        """Write a record of this level."""
        unraised(self._logger.log, level, message, *arguments, stacklevel=3, **named)

    debug = partialmethod(log, logging.DEBUG)
    info = partialmethod(log, logging.INFO)
    warning = partialmethod(log, logging.WARNING)
    error = partialmethod(log, logging.ERROR)
    exception = partialmethod(log, logging.ERROR, exc_info=True)
    critical = partialmethod(log, logging.CRITICAL)


logger = Logger("wsgi_busyguard")


class Streak:
    """What goes wrong again and again, and gets one line in the log until it has gone well.

    :ivar lasts: whether it has gone wrong since it last went well.
    """

    __slots__ = ("lasts",)

    def __init__(self) -> None:
        self.lasts = False

    def begins(self) -> bool:
        """Note that it goes wrong; return whether it did not before."""
        first, self.lasts = not self.lasts, True
        return first

    def failed(
        self, message: str, *arguments: object, level: int = logging.ERROR, **named: Any
    ) -> None:
        """Note that it goes wrong, and write a record if it did not before. Raises nothing."""
        if self.begins():
            unraised(logger._logger.log, level, message, *arguments, stacklevel=3, **named)

    def over(self) -> bool:
        """Note that it goes well; return whether it did not before."""
        last, self.lasts = self.lasts, False
        return last


class FailOpen:
    """Takes steps of the guard's own in a server's loop; the server goes on where one raises.

    Such a step uses what a server has for itself, and what a later one may have under another name.
    Each step that raises gets one line in the log until it has gone well.

    :param server: what people call the server.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._failing: defaultdict[str, Streak] = defaultdict(Streak)

    def __call__(self, step: Callable[..., R], *arguments: Any) -> R | None:
        """Return what a step returns; ``None`` if it raises."""
        try:
            result = step(*arguments)
        except Exception:
            name = step.__qualname__
            message = "%s raised; %s goes on as without it"
            self._failing[name].failed(message, name, self._server, exc_info=True)
            return None
        if self._failing:
            self._failing.pop(step.__qualname__, None)
        return result


# What is called between whoever writes and the filter or handler that raises.
INSIDE = (__name__, "logging")


def _lost(error: Exception, arguments: tuple[Any, ...]) -> str:
    """Return the line that tells what was raised, and what it kept from being written."""
    message, *values = arguments if isinstance(arguments[0], str) else arguments[1:]
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    codes = [frame.f_code for frame in frames if frame.f_globals.get("__name__") not in INSIDE]
    where = f" in {codes[0].co_filename}, {codes[0].co_name}()" if codes else ""
    text = message % tuple(values)
    return f"busyguard: a filter or handler raised {error!r}{where}; not logged: {text}\n"
