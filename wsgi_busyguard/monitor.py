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
from .policy import (
    DAMPED,
    DRAINING,
    PATIENCE,
    READY_POLICIES,
    Verdict,
    is_ready,
    known_policy,
    seconds,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Listener = Callable[[Transition], object]

logger = logging.getLogger("wsgi_busyguard")

_new = tuple.__new__  # what a NamedTuple's own constructor does, in half the time


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
    that raises is logged and passed over; one may call the monitor. What comes and goes between
    two looks is not seen.

    All methods may be called from any thread. :meth:`drain` takes no lock and so is the only one
    that should be called in a signal handler. A finalizer may find itself calling the others, in a
    thread that it interrupts in the middle of a look; then it gets the last load.
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
        if not callable(getattr(adapter, "read", None)):
            raise TypeError(f"adapter must have a read() that returns a Load, not {adapter!r}")
        if deliver is not None and not callable(deliver):
            raise TypeError(f"deliver must take a function to call, not {deliver!r}")
        self.adapter = adapter
        self.interval = seconds("interval", interval)
        self.draining = False
        self._clock = clock
        self._deliver = deliver
        self._lock = threading.RLock()
        self._looking = False
        self._interrupted = False  # asked for a look in the middle of one
        self._load = UNKNOWN
        self._state = FREE
        self._since = clock()
        self._was_ready: dict[float, bool] = {}  # damped: the last answer, by patience
        self._listeners: dict[State, list[Listener]] = {BUSY: [], FREE: []}
        self._news: deque[Callable[[], object]] = deque()  # to be told, in order
        self._voice = threading.Lock()  # held by whoever tells them
        self._failing = False  # the adapter, since its last good reading
        self._undelivered = False  # by ``deliver``, since it last took something
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
        # In the middle of a look nothing is told; whoever looks comes here afterwards.
        if self._news and not self._looking:
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
        if self._news and not self._looking:
            self._tell()
        if self.draining:
            return Verdict(DRAINING, False, load)
        return _new(Verdict, ("free" if state is FREE else "busy", well, load))

    def __repr__(self) -> str:
        word = DRAINING if self.draining else self._state.value
        return f"<Monitor {word}, reads {self.adapter!r}>"

    def _look(self) -> Load:
        """Read and judge. Requires self._lock.

        The adapter is read under the lock so that loads are judged in the order in which they
        were true: a look taken before a change can never undo one taken after it.
        """
        if self._looking:  # only what interrupts this very thread gets here
            self._interrupted = True
            return self._load
        self._looking = True
        try:
            load = self._read()
            if self._interrupted:
                self._interrupted = False
                load = self._read()
        finally:
            self._looking = False
        self._load = load
        return load

    def _read(self) -> Load:
        """Return the load after noting what it means. Requires self._lock."""
        try:
            load = self.adapter.read()
            if not isinstance(load, Load):
                raise TypeError(f"expected a Load from read(), not {load!r}")
            state = judge(self._state, load)
            if load.waited + (load.service or 0.0) < 0.0:  # rubbish must show here, not later
                raise ValueError(f"expected at least 0 seconds, not {load!r}")
            self._failing = False
        except Exception as error:  # guarding must never be the outage: taken to be free
            load, state = UNKNOWN, FREE
            if not self._failing:
                self._failing = True
                self._news.append(partial(_complain, self.adapter, error))
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
            self._undelivered = False
        except Exception:
            if not self._undelivered:
                self._undelivered = True
                logger.exception("could not pass on a change of state; tried again at every look")

    def _tell_all(self) -> None:
        """Tell the news, oldest first, unless somebody is at it.

        Whoever is at it looks again afterwards, so nothing stays untold: not what another thread
        adds, and not what a listener causes by calling back.
        """
        voice = self._voice  # a listener may fork, and the child has a new one
        while self._news and voice.acquire(blocking=False):
            try:
                while self._news:
                    self._news.popleft()()
            finally:
                voice.release()

    def _announce(self, change: Transition) -> None:
        for listener in tuple(self._listeners[change.state]):
            try:
                listener(change)
            except Exception:
                logger.exception("listener %r raised on %s", listener, change.state.value)

    def _listen(self, state: State, listener: Listener) -> Listener:
        if not callable(listener):
            raise TypeError(f"a listener must be callable with a Transition, not {listener!r}")
        with self._lock:
            self._listeners[state].append(listener)
            first, self._ticking = self._polled and not self._ticking, self._polled
        if first:
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
        self._lock = threading.RLock()  # another thread may have held these
        self._voice = threading.Lock()
        self._looking = False
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
