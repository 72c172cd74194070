"""Who hears of a change of state: in order, one at a time, outside every lock."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from ._support.locks import Turn
from ._support.log import Streak, logger
from ._support.unpatched import elsewhere
from .load import BUSY, FREE, State, Transition

if TYPE_CHECKING:
    from collections.abc import Callable

    Listener = Callable[[Transition], object]


class Notifier:
    """Tells the listeners of a monitor what is new.

    :param deliver: takes a function and has it run somewhere else, where listeners are to run.
    :ivar news: what is to be told, in order. Whoever has put something there, under its own lock,
        calls :meth:`tell` when it has let go of that.
    """

    def __init__(self, deliver: Callable[[Callable[[], None]], object] | None) -> None:
        if deliver is not None and not callable(deliver):
            raise TypeError(f"deliver must take a function to call, not {deliver!r}")
        self.news: deque[Callable[[], object]] = deque()
        self._deliver = deliver
        self._listeners: dict[State, list[Listener]] = {BUSY: [], FREE: []}
        self._turn = Turn()  # of whoever tells the news
        self._undelivered = Streak()  # since ``deliver`` last took something

    def add(self, state: State, listener: Listener) -> None:
        """Have ``listener`` hear of each transition to ``state``."""
        if not callable(listener):
            name = f"on_{state.value}"
            raise TypeError(f"{name} must be a function that takes a Transition, not {listener!r}")
        self._listeners[state].append(listener)  # in one step, so it needs no lock

    def __bool__(self) -> bool:
        return any(self._listeners.values())

    def tell(self) -> None:
        """Tell the news, or have it told elsewhere."""
        if self._deliver is None:
            self._tell_all()
            return
        try:
            self._deliver(self._tell_all)
            self._undelivered.over()
        except Exception:
            self._undelivered.failed(
                "could not pass on a change of state; tried again at every look", exc_info=True
            )

    def announce(self, change: Transition) -> None:
        """Call those who are to hear of a change; itself a piece of news."""
        for listener in tuple(self._listeners[change.state]):
            try:
                listener(change)
            except Exception:
                logger.exception("listener %r raised on %s", listener, change.state.value)

    def after_fork(self) -> None:
        """Go on in a child process, where another thread may have had its turn."""
        self._turn = Turn()

    def _tell_all(self) -> None:
        """Tell the news, oldest first, unless somebody is at it."""
        self._turn.take(lambda: self.news, self._tell_in_order)

    def _tell_in_order(self) -> None:
        while self.news:
            tell = self.news.popleft()
            try:
                tell()
            except Exception as error:  # it would reach a check, or whoever left a slot
                elsewhere(partial(logger.error, "%r raised", tell, exc_info=error))
