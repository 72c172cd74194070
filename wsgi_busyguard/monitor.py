"""The monitor: the one lock and the one clock.

What to make of a load is decided elsewhere; here it is decided in which order loads are seen.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ._support.forks import Stage, after_fork
from ._support.locks import owned_lock, under
from ._support.log import Streak, logger
from ._support.notifier import Notifier
from ._support.periodic import Periodic
from ._support.unpatched import elsewhere
from .counters import (
    BUSY_NOT,
    BUSY_READY,
    Changes,
    Counters,
    History,
    PostsChecks,
    RefusalRate,
    Shared,
    asked,
    counts_of,
    no_checks,
)
from .counters import DRAINING as GOING
from .counters import FREE as IS_FREE
from .load import (
    BUSY,
    FREE,
    UNKNOWN,
    Adapter,
    Load,
    State,
    Subscribes,
    Transition,
    judge,
    known_adapter,
)
from .policy import DAMPED, DAMPED_PATIENCE, DRAINING, Verdict, is_ready, known_policy, seconds
from .state_log import LogLine, ShowsStacks, StateLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from .load import GuardLimits, Listener

UNREAD = "cannot read the load from %r: %r; taken to be free until it can"

_new = tuple.__new__  # in half the time that Verdict() takes


@runtime_checkable
class ReadsSeveral(Protocol):
    """An adapter, or a monitor of one, that reads the load of several processes."""

    @property
    def shared(self) -> Shared:
        """What their monitors have in common."""


class Monitor:
    """Knows a server's state, and tells when it changes.

    :param adapter: where the load is read.
    :param on_busy: called with a :class:`Transition` when the state becomes busy.
    :param on_free: called with one when it becomes free again.
    :param deliver: takes the function that calls the listeners and has it run somewhere else (in
        an event loop's thread, say); they run in the thread that saw the change if not given.
    :param interval: seconds between two looks at an adapter that cannot tell of changes itself;
        it does not look before there is a listener.
    :param clock: monotonic seconds.

    An adapter with an attribute ``shared`` reads the load of several processes. Their state is
    judged and remembered there, so that each of them gives the same answer.

    Transitions alternate. Listeners hear of them in order, one at a time, outside the lock; one
    that raises is logged and passed over; one may call the monitor. What comes and goes between
    two looks is not seen.

    :ivar stacks: says in which lines the requests of this process are, where that is wanted.
    :ivar app: what the app is called, and ``since`` when it is here, for people.
    :ivar serves: set to false while its process has only imported the app and serves no requests.
    :ivar quiet: set to true if another monitor of the same requests writes the log's lines.
    :ivar limits: returns what is in force in the guard, once there is one.

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
        self._notifier = Notifier(deliver)
        self._news = self._notifier.news  # what to tell; looked at by each check
        self.interval = seconds("interval", interval)
        self.stopping = self.quiet = False
        self.limits: Callable[[], GuardLimits] | None = None
        self.stacks: ShowsStacks | None = None
        self.app: str | None = None
        self.since = time.time()
        self.serves = True
        self._clock = clock
        self._lock = owned_lock()
        self._looking = False
        self._interrupted = False  # asked for a look in the middle of one
        self._load = UNKNOWN
        self._state = FREE
        self._since = clock()
        self._unread = Streak()  # the adapter, since its last good reading
        self._queued = 0  # at the last look, where no service time is known
        self._moved = 0.0  # when that was last seen to get shorter
        self._ticker = Periodic(self.refresh, interval, "busyguard-ticker", in_children=True)
        self._asked = no_checks()
        self.refusals = RefusalRate()
        self._begin_history()
        self._take(adapter)
        after_fork(Stage.OWN, self._after_fork)
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

    def read_from(self, adapter: Adapter) -> None:
        """Read the load from another adapter from now on; the listeners stay.

        For who learns only later what there is to read; judged at the next look. The one before is
        not asked any more. If it tells of changes it goes on to, and each costs a look.
        """
        self._take(adapter)
        if self._notifier:
            self._listen_on()

    def drain(self) -> None:
        """Have every check say ``draining`` from now on.

        Requests are served as before, because balancers need their time to see it.
        """
        self.stopping = True

    @property
    def draining(self) -> bool:
        """Whether checks say ``draining``."""
        return self.stopping or (self._shared is not None and self._shared.draining)

    def refresh(self) -> Load:
        """Read the load, judge it, tell the listeners if the state changed; return the load."""
        load = under(self._lock, self._look)
        # In the middle of a look no listener is called; whoever looks comes here afterwards.
        if self._news and not self._looking:
            self._notifier.tell()
        return load

    def check(
        self, ready: str = DAMPED, patience: float = DAMPED_PATIENCE, count: bool = True
    ) -> Verdict:
        """Return the answer to a check under the policy ``ready``.

        :param patience: seconds of delay that ``damped`` bears.
        :param count: whether somebody asks, and does not only look.
        :raises ValueError: for an unknown policy.
        """
        asked = self._asked.get(ready)
        if asked is None:
            asked = self._asked[known_policy(ready)]  # says what it expected
        lock = self._lock
        try:  # as under() does it, written out for its cost
            lock.acquire()
            load = self._look()
            state, common = self._state, self._shared and self._in_common(patience)
            was_ready = common.was_ready if common else self._was_ready.get(patience, True)
            if state is FREE:
                answer, well, place = "free", True, IS_FREE
            else:
                if load.service is None and load.queued:
                    still = self._clock() - self._moved
                    load = load._replace(waited=max(load.waited, still))
                well = is_ready(ready, state, load, patience, was_ready)
                answer, place = "busy", BUSY_READY if well else BUSY_NOT
            if well is not was_ready and ready == DAMPED:
                self._remember(well, patience, common)
            if self.draining:
                answer, well, place = DRAINING, False, GOING
            if count:
                asked[place] += 1
        finally:
            try:  # noqa: SIM105 - a call more would be one in which a handler may raise
                lock.release()
            except RuntimeError:  # it raised while this waited for the lock
                pass
        if self._news and not self._looking:
            self._notifier.tell()
        return _new(Verdict, (answer, well, load))

    @property
    def shared(self) -> Shared | None:
        """What several processes have in common; ``None`` where there is one alone."""
        return self._shared

    def is_leader(self) -> bool:
        """Return whether this process speaks for its host; see :meth:`Board.is_leader`.

        Without a board each does that serves, but none that has only imported the app, as a shell.
        """
        return self.serves if self._shared is None else self._shared.is_leader()

    def counts(self) -> Counters | None:
        """Return what is counted where the load is read; ``None`` if that does not count."""
        try:
            return counts_of(self.adapter)
        except Exception:  # the next look at the load says what is wrong
            return None

    def asked(self) -> list[int]:
        """Return how many checks were answered, in the order of ``counters.CHECKS``.

        Where several processes share their state, by all of them, up to their last beats.
        """
        return asked(self._asked) if self._shared is None else self._shared.asked()

    def changes(self) -> Changes:
        """Return how often the state has changed, and for how long it has been busy."""
        if self._shared is not None:
            return self._shared.changes()
        return under(self._lock, self._seen_here)

    def __repr__(self) -> str:
        state = DRAINING if self.draining else self._state.value
        return f"<Monitor {state}, reads {self.adapter!r}>"

    def _look(self, once_more: bool = True) -> Load:
        """Read and judge. Requires self._lock.

        The adapter is read under the lock so that loads are judged in the order in which they
        were true: a look taken before a change can never undo one taken after it.
        """
        if self._looking:  # only what interrupts this very thread gets here
            self._interrupted = True
            return self._load
        self._looking = True
        try:
            try:
                load = self.adapter.read()
                if not isinstance(load, Load):
                    raise TypeError(f"expected a Load from read(), not {load!r}")
                shared = self._shared
                state = judge(self._state, load) if shared is None else shared.judge(load)
                if load.service is None:
                    self._see_whether_it_moves(load.queued)
                elif self._queued:
                    self._queued = 0
                if self._unread.lasts:
                    self._unread.over()
            except Exception as error:  # guarding must never be the outage: taken to be free
                load, state, self._queued = UNKNOWN, FREE, 0
                if self._unread.begins():
                    self._news.append(partial(logger.error, UNREAD, self.adapter, error))
            if state is not self._state:
                self._change(state, load)
            elif self._journal.watching and (now := self._clock()) >= self._journal.due:
                self._write(self._journal.looked(state, load, self._since, now))
        finally:
            self._looking = False
        self._load = load
        if self._interrupted and once_more:
            self._interrupted = False
            return self._look(once_more=False)
        return load

    def _see_whether_it_moves(self, queued: int) -> None:
        """Remember since when no look has seen the queue get shorter. Requires self._lock.

        All there is to go by where nobody says how long requests take, nor how long one has waited.
        """
        if not queued or queued < self._queued or not self._queued:
            self._moved = self._clock()
        self._queued = queued

    def _change(self, state: State, load: Load) -> None:
        """Note a change of state, and have the listeners called. Requires self._lock."""
        now = self._clock()
        change = Transition(state, load, now, now - self._since)
        self._state, self._since = state, now
        self._history.note(change, time.time())
        self._write(self._journal.changed(change))
        self._news.append(partial(self._notifier.announce, state, change))

    def _write(self, line: LogLine | None) -> None:
        """Have a line be written to the log, once it is nobody's lock. Requires self._lock."""
        if line is not None and not self.quiet:
            self._news.append(partial(elsewhere, _write, line, self._shared, self.stacks))

    def _begin_history(self) -> None:
        self._journal = StateLog()
        self._history = History()

    def _seen_here(self) -> Changes:
        """Return what changes were seen here. Requires self._lock."""
        return self._history.until(self._clock() - self._since, self._state is BUSY)

    def _take(self, adapter: Adapter) -> None:
        known_adapter(adapter)
        if isinstance(adapter, PostsChecks):
            adapter.hears(self._asked)
        under(self._lock, self._have, adapter)
        if isinstance(adapter, Subscribes):
            adapter.subscribe(self.refresh)

    def _have(self, adapter: Adapter) -> None:
        """Read this adapter from now on. Requires self._lock."""
        self.adapter = adapter
        self._shared = adapter.shared if isinstance(adapter, ReadsSeveral) else None
        self._was_ready: dict[float, bool] = {}  # damped's last answer here, by patience
        self._patience: float | None = None  # the one for which all have one memory
        self._polled = not isinstance(adapter, Subscribes)

    def _in_common(self, patience: float) -> Shared | None:
        """Return what remembers damped's last answer for all processes. Requires self._lock.

        Only for the patience that is asked for first, which is the one that all are set up with;
        for any other each process has a memory of its own.
        """
        if self._patience is None:
            self._patience = patience
        return self._shared if patience == self._patience else None

    def _remember(self, well: bool, patience: float, common: Shared | None) -> None:
        """Remember damped's last answer. Requires self._lock."""
        if common is None:
            self._was_ready[patience] = well
        else:
            common.was_ready = well

    def _listen(self, state: State, listener: Listener) -> Listener:
        if not callable(listener):
            name = f"on_{state.value}"
            raise TypeError(f"{name} must be a function that takes a Transition, not {listener!r}")
        self._notifier.add(state, listener)
        self._listen_on()
        return listener

    def _listen_on(self) -> None:
        """Look at an adapter that has to be looked at, if nobody does yet."""
        if self._polled:
            self._ticker.pause = self.interval
            self._ticker.start()

    def _after_fork(self) -> None:
        """Go on in a child process, where only the thread that forked is left."""
        self._lock = owned_lock()  # another thread may have held it
        self._notifier.after_fork()
        self._looking = False
        for counts in self._asked.values():
            counts[:] = [0] * len(counts)
        self._begin_history()


def _write(line: LogLine, shared: Shared | None, stacks: ShowsStacks | None) -> None:
    """Write a line to the log; of several processes one does, with the load that all judged."""
    if shared is not None:
        if not shared.is_leader():
            return
        recent = shared.changes().recent
        if recent and line.event == recent[-1].state.value:
            line = line._replace(load=recent[-1].load)
    logger.log(line.level, "%s", line.message(stacks), extra=line.extra)
