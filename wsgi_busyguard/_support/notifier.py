"""Listeners, which are strangers' code: called in order, one at a time, outside every lock."""

from __future__ import annotations

import queue
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from .launcher import launch
from .locks import Turn
from .log import Streak, logger
from .unpatched import elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import Enum


class Notifier:
    """Tells listeners what is new, each of the events that it is for.

    :param deliver: takes a function and has it run somewhere else, where listeners are to run.
    :ivar news: what is to be called, in order. Whoever has put something there, under its own lock,
        calls :meth:`tell` when it has let go of that.
    """

    def __init__(self, deliver: Callable[[Callable[[], None]], object] | None) -> None:
        if deliver is not None and not callable(deliver):
            raise TypeError(f"deliver must take a function to call, not {deliver!r}")
        self.news: deque[Callable[[], object]] = deque()
        self._deliver = deliver
        self._listeners: dict[Enum, list[Callable[[Any], object]]] = {}
        self._turn = Turn()  # of whoever tells the news
        self._undelivered = Streak()  # since ``deliver`` last took something

    def add(self, event: Enum, listener: Callable[[Any], object]) -> None:
        """Have ``listener`` be called with the details of each such event."""
        # Each in one step, so it needs no lock.
        self._listeners.setdefault(event, []).append(listener)

    def __bool__(self) -> bool:
        return any(self._listeners.values())

    def tell(self) -> None:
        """Call what is new, or have it called elsewhere."""
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

    def announce(self, event: Enum, details: object) -> None:
        """Call the listeners of an event; itself a piece of news."""
        for listener in tuple(self._listeners.get(event, ())):
            try:
                listener(details)
            except Exception:
                logger.exception("listener %r raised on %s", listener, event.value)

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


class ListenerThread:
    """Calls what is put to it, in order, on a thread of its own: for a notifier's ``deliver``.

    A thread that sees a change may hold a server's lock, or be its loop.
    """

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.put: Callable[[Callable[[], object]], object] = self._news.put
        self._thread = threading.Thread(target=self._run, name="busyguard-teller", daemon=True)

    def start(self) -> None:
        """Begin, at once or as soon as a thread is to be had; what is put meanwhile waits."""
        launch(self._thread.start)

    def stop(self) -> None:
        """Stop after what has been put so far."""
        self._news.put(None)

    def _run(self) -> None:
        while (tell := self._news.get()) is not None:
            try:
                tell()
            except Exception:
                logger.exception("%r raised", tell)
