"""The monitor: the one lock, the one clock and the listeners.

What to make of a load is decided elsewhere; here it is decided in which order loads are seen,
and who hears of it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from .load import BUSY, FREE, UNKNOWN, Adapter, Load, State, Transition, judge
from .policy import DAMPED, DRAINING, PATIENCE, READY_POLICIES, Verdict, is_ready, known_policy

if TYPE_CHECKING:
    from collections.abc import Callable

    Listener = Callable[[Transition], object]

logger = logging.getLogger("wsgi_busyguard")


class Monitor:
    """Knows a server's state, and tells when it changes.

    :param adapter: where the load is read.
    :param on_busy: called with a :class:`Transition` when the state becomes busy.
    :param on_free: called with one when it becomes free again.
    :param deliver: takes the function that calls the listeners and has it run somewhere else (in
        an event loop's thread, say); they run in the thread that saw the change if not given.
    :param interval: seconds between two looks at an adapter that cannot tell of changes itself;
        nobody looks before there is a listener.
    :param clock: monotonic seconds.

    Transitions alternate. Listeners hear of them in order, one at a time, outside the lock; one
    that raises is logged and passed over; one may call the monitor. Where the load changes faster
    than it can be told, what came and went in between is left out.

    All methods may be called from any thread. :meth:`drain` takes no lock and so is the only one
    that may be called in a signal handler.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        on_busy: Listener | None = None,
        on_free: Listener | None = None,
        deliver: Callable[[Callable[[], None]], object] | None = None,
        interval: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.adapter = adapter
        self.interval = interval
        self.draining = False
        self._clock = clock
        self._deliver = deliver
        self._lock = threading.Lock()
        self._state = FREE
        self._since = clock()
        self._was_ready: dict[float, bool] = {}  # damped: the last answer, by patience
        self._listeners: dict[State, list[Listener]] = {BUSY: [], FREE: []}
        self._news: deque[Callable[[], object]] = deque()  # to be told, in order
        self._telling = False
        self._failing = False  # the adapter, since its last good reading
        self._ticking = False
        subscribe = getattr(adapter, "subscribe", None)
        self._polled = subscribe is None
        if subscribe is not None:
            subscribe(self.refresh)
        _monitors.add(self)
        if on_busy is not None:
            self.on_busy(on_busy)
        if on_free is not None:
            self.on_free(on_free)

    @property
    def state(self) -> State:
        """The state now."""
        self.refresh()
        return self._state

    @property
    def load(self) -> Load:
        """The load now; :data:`~wsgi_busyguard.load.UNKNOWN` if the adapter cannot tell."""
        return self.refresh()

    def on_busy(self, listener: Listener) -> Listener:
        """Have ``listener`` called with each transition to busy, and return it."""
        return self._listen(BUSY, listener)

    def on_free(self, listener: Listener) -> Listener:
        """Have ``listener`` called with each transition to free, and return it."""
        return self._listen(FREE, listener)

    def drain(self) -> None:
        """Have every check say from now on that the server is shutting down.

        Requests are served as before, because balancers need their time to see it.
        """
        self.draining = True

    def refresh(self) -> Load:
        """Read the load, judge it, tell the listeners if the state changed; return the load."""
        with self._lock:
            load = self._look()
        if self._news:
            self._tell()
        return load

    def check(self, ready: str = DAMPED, patience: float = PATIENCE) -> Verdict:
        """Return what a check is to be told under the policy ``ready``.

        :param patience: seconds of delay that ``damped`` bears.
        :raises ValueError: for an unknown policy.
        """
        if ready not in READY_POLICIES:
            known_policy(ready)
        with self._lock:
            load = self._look()
            state = self._state
            well = state is FREE or is_ready(
                ready, state, load, patience, self._was_ready.get(patience, True)
            )
            if ready == DAMPED:
                self._was_ready[patience] = well
        if self._news:
            self._tell()
        if self.draining:
            return Verdict(DRAINING, False, load)
        return Verdict("free" if state is FREE else "busy", well, load)

    def __repr__(self) -> str:
        word = DRAINING if self.draining else self._state.value
        return f"<Monitor {word}, reads {self.adapter!r}>"

    def _look(self) -> Load:
        """Read and judge. Requires self._lock.

        The adapter is read under the lock so that loads are judged in the order in which they
        were true: a look taken before a change can never undo one taken after it.
        """
        try:
            load = self.adapter.read()
            if not isinstance(load, Load):
                if load is not None:
                    raise TypeError(f"expected a Load or None from read(), not {load!r}")
                load = UNKNOWN
            self._failing = False
        except Exception as error:
            # Guarding must never be the outage: what cannot be read is taken to be free.
            load = UNKNOWN
            if not self._failing:
                self._failing = True
                self._news.append(partial(_complain, self.adapter, error))
        state = judge(self._state, load)
        if state is not self._state:
            now = self._clock()
            change = Transition(state, load, now, now - self._since)
            self._state, self._since = state, now
            self._news.append(partial(self._announce, change))
        return load

    def _tell(self) -> None:
        if self._deliver is None:
            self._tell_all()
            return
        try:
            self._deliver(self._tell_all)
        except Exception:
            logger.exception("could not pass on a change of state; it will be told with the next")

    def _tell_all(self) -> None:
        """Tell the news, oldest first, unless somebody is at it.

        Whoever is at it looks again after each piece, so nothing stays untold: not what another
        thread adds, and not what a listener causes by calling back.
        """
        while True:
            with self._lock:
                if self._telling or not self._news:
                    return
                self._telling = True
                news = self._news.popleft()
            try:
                news()
            finally:
                with self._lock:
                    self._telling = False

    def _announce(self, change: Transition) -> None:
        for listener in tuple(self._listeners[change.state]):
            try:
                listener(change)
            except Exception:
                logger.exception("listener %r raised on %s", listener, change.state.value)

    def _listen(self, state: State, listener: Listener) -> Listener:
        if not callable(listener):
            raise TypeError(f"a listener must be callable with a Transition, not {listener!r}")
        self._listeners[state].append(listener)
        if self._polled and not self._ticking:
            self._ticking = True
            self._start_ticker()
        return listener

    def _start_ticker(self) -> None:
        threading.Thread(
            target=_tick,
            args=(weakref.ref(self), self.interval),
            name="busyguard-ticker",
            daemon=True,
        ).start()

    def _after_fork(self) -> None:
        """Go on in a child process, where only the thread that forked is left."""
        self._lock = threading.Lock()  # another thread may have held it
        self._telling = False
        if self._ticking:
            self._start_ticker()


def _tick(monitor_ref: weakref.ref[Monitor], interval: float) -> None:
    """Look at a polled monitor every ``interval`` seconds, for as long as anybody else has it."""
    pause = threading.Event()
    while not pause.wait(interval):
        monitor = monitor_ref()
        if monitor is None:
            return
        monitor.refresh()
        del monitor


def _complain(adapter: Adapter, error: Exception) -> None:
    logger.error("cannot read the load from %r: %r; taken to be free until it can", adapter, error)


_monitors: weakref.WeakSet[Monitor] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for monitor in list(_monitors):
        monitor._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
