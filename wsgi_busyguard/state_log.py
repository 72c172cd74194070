"""Which changes of state get a line in the log, and what it says.

A state may change many times a second, and a log is read by people. Values in, a line out: nothing
here reads a clock, takes a lock or writes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .load import BUSY, FREE
from .load_report import short
from .policy import DAMPED_PATIENCE

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from .load import Load, State, Transition
    from .load_report import StackFigures

# Seconds between two lines of a kind.
LOG_INTERVAL_SECONDS = 10.0

# Seconds between two thoughts about a state that lasts; as often as a process beats.
LOOK_SECONDS = 0.25


class StackView(Protocol):
    """Knows in which lines of code requests are."""

    def look(self) -> StackFigures:
        """Return what holds the slots, as ``/load`` shows it."""


class ShowsStacks(StackView, Protocol):
    """Knows the calls of this process, and in which lines of code they are."""

    def noting(self, app: WSGIApplication) -> WSGIApplication:
        """Return ``app`` with its calls known."""

    def first(self) -> str:
        """Return the line in which most requests are, as text; empty if it is not known."""


class LogLine(NamedTuple):
    """A line for the log.

    :param level: ``logging.INFO``, or ``logging.WARNING`` for what somebody waits for.
    :param event: ``"busy"``, ``"free"``, or ``"waiting"``: requests wait for as long as damped
        bears.
    :param lasted: seconds in the state that was left, or so far in the one that is.
    :param untold: changes before this one that got no line.
    """

    level: int
    event: str
    state: State
    load: Load
    lasted: float
    untold: int

    @property
    def text(self) -> str:
        """What it says."""
        load, delay = self.load, self.load.delay
        begins = {
            "busy": "busy",
            "free": f"free again after {short(self.lasted)} s",
            "waiting": f"busy for {short(self.lasted)} s now, and requests wait",
        }[self.event]
        figures = [f"queued={load.queued}", f"active={load.active}", f"capacity={load.capacity}"]
        figures += [f"waited={short(load.waited)}"]
        figures += [] if delay is None else [f"delay={short(delay)}"]
        figures += [f"lag={short(load.lag)}"] if load.lag else []
        untold = f" ({self.untold} changes before got no line)" if self.untold else ""
        return f"{begins}: {' '.join(figures)}{untold}"

    def message(self, stacks: ShowsStacks | None) -> str:
        """Return what it says, and where requests wait, in which line of code most of them are."""
        where = stacks.first() if stacks is not None and self.event == "waiting" else ""
        return f"{self.text}; {where}" if where else self.text

    @property
    def extra(self) -> dict[str, Any]:
        """What a handler that writes fields finds in the record."""
        load = self.load
        figures = load._asdict()
        del figures["longest"]  # no figure of how things are, and infinite mostly
        fields = {
            "event": self.event,
            "state": self.state.value,
            **figures,
            "delay": load.delay,
            "lasted": self.lasted,
            "untold": self.untold,
        }
        return {f"busyguard_{name}": value for name, value in fields.items()}


class StateLog:
    """Thinks of the lines; for whoever sees the changes, under his lock.

    :ivar watching: whether a look that changes nothing may yet be worth a line.
    :ivar due: the moment before which it is not: checks look, and each should cost little.
    """

    def __init__(self) -> None:
        self.watching = False
        self.due = 0.0
        self._logged_at = -LOG_INTERVAL_SECONDS  # when the last change got a line
        self._warned = -LOG_INTERVAL_SECONDS
        self._untold = 0
        self._waiting = False  # whether there was a warning of this busy time

    def changed(self, change: Transition) -> LogLine | None:
        """Return the line for a change, if it gets one."""
        state, load, now, lasted = change
        again, self._waiting = self._waiting and state is FREE, False
        if not again and now - self._logged_at < LOG_INTERVAL_SECONDS:
            self._untold += 1
            self.watching = True
            return None
        self.watching = state is BUSY
        return self._line(logging.WARNING if again else logging.INFO, state, load, now, lasted)

    def looked(self, state: State, load: Load, since: float, now: float) -> LogLine | None:
        """Return the line for a look that changed nothing, if it gets one.

        :param since: when the state was entered.
        """
        self.due = now + LOOK_SECONDS
        if self._untold and now - self._logged_at >= LOG_INTERVAL_SECONDS:
            self.watching = state is BUSY and not self._waiting
            return self._line(logging.INFO, state, load, now, now - since)
        delay = load.delay
        late = state is BUSY and delay is not None and delay >= DAMPED_PATIENCE
        if not late or self._waiting or now - self._warned < LOG_INTERVAL_SECONDS:
            return None
        self._waiting, self._warned = True, now
        self.watching = bool(self._untold)
        return LogLine(logging.WARNING, "waiting", state, load, now - since, 0)

    def _line(self, level: int, state: State, load: Load, now: float, lasted: float) -> LogLine:
        untold, self._untold, self._logged_at = self._untold, 0, now
        return LogLine(level, state.value, state, load, lasted, untold)
