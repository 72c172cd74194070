"""How many of a gate's slots are worth having: fewer while they only compete for the interpreter.

Python's interpreter runs one thread at a time. Ten requests that compute are served no sooner than
one after the other, only all late, and the server's own loop starves beside them. Neither their
number nor their time shows that: a request that waits for the interpreter looks like one that waits
for a database. What shows it is the processor time of the process *and* the delay of a thread that
sleeps and then needs the interpreter. Either alone is wrong: code in C that lets go of the
interpreter uses up the one and leaves the other alone, and on a machine whose processors others use
it is the other way round. Both are read from outside the requests, and cost them nothing.

:func:`direction` and :class:`Steps` decide and know no clock; :class:`Adaptive` samples, on a
thread of its own, while the gate is crowded or several inside use the interpreter up. No such
thread, then all slots.
"""

from __future__ import annotations

import math
import sys
import time
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from ._support.forks import Stage, after_fork
from ._support.log import logger
from ._support.machine import Machine, main_thread, sees_main_thread, this_machine
from ._support.periodic import Periodic
from ._support.switch_interval import SwitchInterval
from ._support.unpatched import is_patched

if TYPE_CHECKING:
    from collections.abc import Callable

    from .gate import Gate

# Seconds of sleep between two samples of the delay, and of a look, which is made of some.
BEAT_SECONDS, LOOK_SECONDS, LOOK_BEATS = 0.02, 0.25, 3

# Seconds without a crowd after which all slots are there again and the thread ends.
QUIET_SECONDS = 5.0

# Shares of the processor time that a process can have: all of it; some of it left; most of it left;
# so little that to have several inside is worth no look.
FULL, SPARE, IDLE, LITTLE = 0.95, 0.88, 0.5, 0.2

# Shares of the samples that found the interpreter taken, whatever else the machine does.
MOSTLY, SELDOM = 0.6, 0.4

# Delays in switch intervals, as measured: most slots wait for others (below 0.25), many do (0.4),
# no thread computes all the time (up to 0.8), one does (1.04), several do (from 1.5 on), very many
# (from 10 on). From half of one on, somebody had the interpreter when it was asked for.
WAIT, MIXED, ALONE, QUEUED, MANY_QUEUED = 0.25, 0.4, 0.8, 1.5, 10.0
TAKEN_SHARE = 0.5

# How many looks in a row have to ask for one slot more; twice as many each time that it has to be
# taken back soon, up to so many.
ASKED, ASKED_MOST, SOON_LOOKS = 2, 32, 8

# Seconds by which a thread that sleeps is late anyway, be the interpreter free or not.
LATE_ANYWAY = 0.0001

# Seconds of the interpreter that a request may have had before it takes no slot from the others.
LONG_SECONDS = 1.0


class Signals(NamedTuple):
    """What one look has seen.

    :param used: processor seconds a second of the process.
    :param loop: of these, those of the server's own loop.
    :param lag: mean delay in getting the interpreter, in switch intervals.
    :param taken: share of the samples that found it taken.
    :param waits: whether somebody waited for a slot, most of the time.
    :param late: whether somebody had waited too long already when the server's loop took it in.
    """

    used: float
    loop: float
    lag: float
    taken: float
    waits: bool
    late: bool = False


class Direction(IntEnum):
    """Where to go from the slots that there are."""

    MANY_FEWER = -2
    FEWER = -1
    KEEP = 0
    MORE = 1
    MANY_MORE = 2


def direction(signals: Signals, machine: Machine, slots: int) -> Direction:
    """Return whether fewer slots would do, or more would help. In between, nothing moves.

    Fewer only if the interpreter is hardly idle, *and* threads queue for it, *and* it is not the
    server's loop that uses it. So a slow outside service never takes a slot away. Fewer as well
    while the loop is too late for those who come because the slots leave it nothing: where each
    request computes for a moment and waits, nobody queues for long, and all is served too late.
    """
    used, loop, lag, taken, waits, late = signals
    share, pool = used / machine.usable, used - loop
    # Where others use the processors, too, whoever has the interpreter needs longer for its turn:
    # so the delay counts by the processor time that went by.
    queue = lag * min(1.0, share) if machine.one_at_a_time else 0.0
    is_pools = pool >= max(LITTLE * machine.usable, used / 2)
    if queue >= QUEUED and is_pools and (share >= FULL or taken >= MOSTLY):
        return Direction.MANY_FEWER if queue >= MANY_QUEUED else Direction.FEWER
    if late and is_pools and share >= IDLE:
        return Direction.FEWER
    # All processors are used up, and as few threads as there are processors could do that.
    if used >= FULL * machine.cores and pool >= machine.cores / 2 and slots > machine.cores:
        return Direction.FEWER
    if not waits or used >= SPARE * machine.cores:
        return Direction.KEEP
    if share < IDLE and queue < WAIT:
        return Direction.MANY_MORE
    is_free = lag < ALONE or queue < MIXED or (share < IDLE and taken < SELDOM)
    return Direction.MORE if is_free else Direction.KEEP


class Steps:
    """How far to go in a direction, look after look.

    Half of the slots at first, half as far after each turn, twice as far while it goes on, so that
    the end is found one by one. Where very many compute, a quarter of the slots is left; where most
    of the time is left, there are twice as many.
    """

    def __init__(self) -> None:
        self._size = 0
        self._way = 0
        self._asks = 0  # looks in a row that asked for more
        self._needed = ASKED
        self._tried: int | None = None  # looks since there was one more that may not last

    def next(self, slots: int, least: int, most: int, way: Direction) -> int:
        """Return how many slots there should be after ``slots``."""
        if self._tried is not None:
            self._tried += 1
            if self._tried > SOON_LOOKS:  # it has lasted
                self._tried, self._needed = None, ASKED
        self._asks = self._asks + 1 if way > 0 else 0
        if way < 0 and self._tried is not None:
            self._tried, self._needed = None, min(2 * self._needed, ASKED_MOST)
        if way is Direction.FEWER:
            slots -= self._step(slots, -1)
        elif way is Direction.MANY_FEWER:
            slots, self._size, self._way = slots // 4, slots // 4, -1
        elif way is Direction.MANY_MORE:
            slots, self._size, self._way, self._needed = 2 * slots, slots, 1, ASKED
        elif way is Direction.MORE and self._asks >= self._needed:
            slots += self._step(slots, 1)
            self._asks = self._tried = 0
        return max(1, least, min(slots, most))

    def _step(self, slots: int, way: int) -> int:
        if way != self._way or not self._size:
            self._size = (self._size or slots) // 2
        else:
            self._size *= 2
        self._size, self._way = max(1, min(self._size, slots // 2)), way
        return self._size


class Adaptive:
    """Keeps a gate at as many slots as are worth having.

    :param gate: is changed by :meth:`~wsgi_busyguard.gate.Gate.resize`.
    :param clock: monotonic seconds.
    :param processor: processor seconds of this process.
    :param loop: of these, those of the server's own loop.
    """

    def __init__(
        self,
        gate: Gate,
        machine: Machine,
        clock: Callable[[], float] = time.monotonic,
        processor: Callable[[], float] = time.process_time,
        loop: Callable[[], float] | None = None,
    ) -> None:
        self._gate = gate
        self._machine = machine
        self._clock = clock
        self._processor = processor
        self._loop = loop or main_thread
        self._is_off = False
        self._interval = SwitchInterval()
        # At the end once more: another thread may say so in the middle of a look.
        end = self._interval.restore
        self._beats = Periodic(self.beat, BEAT_SECONDS, "busyguard-adaptive", at_end=end)
        self._reset()
        after_fork(Stage.OWN, self._reset)

    def begin(self) -> None:
        """Have the thread begin, if it is time: the gate is crowded, or the interpreter used up.

        By :attr:`Gate.crowding`, in any thread.
        """
        if self._beats.wanted or self._is_off:
            return
        try:
            if self._gate.crowded or self._is_hot():
                self._is_off = is_patched("threading")  # one thread runs all, and none queues
                if not self._is_off:
                    self._beats.start()
        except Exception:
            self._fail()

    def beat(self) -> None:
        """Take a sample; look at them if it is time. In the thread."""
        if self._is_off:
            return
        try:
            self._sample()
        except Exception:
            self._fail()

    def _fail(self) -> None:
        """Have all slots, and no more of this: guarding must never be the outage."""
        self._is_off = True
        logger.exception("could not see how many slots are worth having; leaving them all")
        self._end()

    def _reset(self) -> None:
        """Know nothing, as in the beginning."""
        self._interval.restore()
        self._steps = Steps()
        self._due = 0.0
        self._quiet_since: float | None = None
        self._shares: dict[float, float] = {}
        self._seen: tuple[float, float] | None = None
        self._cost = RequestCost()
        self._window: Window | None = None

    def _is_hot(self) -> bool:
        """Return whether the interpreter was used up since this was last asked, a moment ago."""
        now = self._clock()
        if self._seen is not None and now - self._seen[0] < LOOK_SECONDS:
            return False
        used = self._processor()
        (before, had), self._seen = self._seen or (now - math.inf, used), (now, used)
        return used - had >= LITTLE * self._machine.usable * (now - before)

    def _sample(self) -> None:
        gate, now = self._gate, self._clock()
        window = self._window
        if window is None:
            gate.late = 0.0  # of long ago, or of other slots
            self._window = Window(now, self._processor(), self._loop())
        else:
            window.lags.append(max(0.0, now - self._due - LATE_ANYWAY))
            window.waits += gate.queued > 0
            window.crowds += gate.crowded
            if now - window.since >= LOOK_SECONDS and len(window.lags) >= LOOK_BEATS:
                self._look(now, window)
        self._due = self._clock() + BEAT_SECONDS

    def _look(self, now: float, window: Window) -> None:
        """Decide by what was seen since the last look, and begin anew."""
        gate, seconds = self._gate, now - window.since
        used, loop = self._processor(), self._loop()
        self._window = Window(now, used, loop)
        late, gate.late = gate.late, 0.0
        signals = window.signals(seconds, used, loop, late > gate.limits.max_wait)
        inside = gate.inside()
        is_hot = len(inside) > 1 and signals.used >= LITTLE * self._machine.usable
        if not inside or not (window.crowds or is_hot):
            self._rest(now)
            return
        self._quiet_since = None
        self._cost.add((signals.used - signals.loop) * seconds, gate.counts().served)
        wanted = gate.wanted
        way = direction(signals, self._machine, wanted)
        if gate.slots > wanted:  # surplus holders are still to leave: only the way back is open
            if way > 0:
                gate.resize(gate.slots, self._why(gate.slots))
            return
        least = self._least(inside, now, seconds)
        to = self._steps.next(wanted, least, gate.limits.slots, way)
        if to != wanted:
            gate.resize(to, self._why(to))
            self._window = None  # the next look is of what comes of it
        elif gate.why is not None:
            gate.why = self._why(to)
        is_full = signals.used >= IDLE * self._machine.usable and self._machine.one_at_a_time
        self._take_turns(short=to == least and is_full)

    def _take_turns(self, short: bool) -> None:
        """Have threads take short turns at the interpreter, or those that they took before.

        Short ones where there cannot be fewer slots, and only then: by them it cannot be seen any
        more how many compute.
        """
        if self._interval.shorten() if short else self._interval.restore():
            self._window = None  # its delays were by other turns

    def _rest(self, now: float) -> None:
        """Nobody is in anybody's way: have all slots again when it has been so for a while."""
        if self._quiet_since is None:
            self._quiet_since = now
        elif now - self._quiet_since >= QUIET_SECONDS:
            self._end()

    def _end(self) -> None:
        self._gate.resize(self._gate.limits.slots)
        self._reset()
        self._beats.stop()

    def _least(self, inside: list[float], now: float, seconds: float) -> int:
        """Return how many slots there have to be: one beside those who have long had theirs.

        Else a request that computes for minutes would have all others refused.
        """
        shares, self._shares = self._shares, {}
        for since in inside:
            part = max(0.0, min(seconds, now - since)) / len(inside)
            self._shares[since] = shares.get(since, 0.0) + part
        most = min(LONG_SECONDS, self._gate.limits.max_wait)
        return 1 + sum(share > most for share in self._shares.values())

    def _why(self, slots: int) -> str:
        machine, most = self._machine, self._gate.limits.slots
        who = "this interpreter" if machine.one_at_a_time else f"{machine.cores:g} processors"
        return (
            f"a request computes {self._cost.milliseconds():.0f} ms: {who} cannot use more than"
            f" {slots} of the {most} slots; more processes would help"
        )


class Window:
    """What is sampled for one look."""

    def __init__(self, since: float, used: float, loop: float) -> None:
        self.since = since
        self.lags: list[float] = []
        self.waits = self.crowds = 0
        self._used = used
        self._loop = loop

    def signals(self, seconds: float, used: float, loop: float, late: bool) -> Signals:
        """Return what has been seen in so many seconds."""
        beats, interval = len(self.lags), sys.getswitchinterval()
        return Signals(
            (used - self._used) / seconds,
            (loop - self._loop) / seconds,
            math.fsum(self.lags) / beats / interval,
            sum(lag >= TAKEN_SHARE * interval for lag in self.lags) / beats,
            2 * self.waits >= beats,
            late,
        )


class RequestCost:
    """The processor time of one request, from that of all and how many were served."""

    def __init__(self) -> None:
        self._seconds = self._served = 0.0
        self._before: int | None = None

    def add(self, seconds: float, served: int) -> None:
        """Count so many seconds more, by when so many were served in all. Forgets old ones."""
        if self._before is not None:
            self._seconds = 0.95 * self._seconds + seconds
            self._served = 0.95 * self._served + served - self._before
        self._before = served

    def milliseconds(self) -> float:
        """Return what one took."""
        return 1000 * self._seconds / max(1.0, self._served)


def adapted(gate: Gate, wanted: bool = True) -> Gate:
    """Return a gate that goes by what this machine can run, if wanted, and where that is seen."""
    if wanted and sees_main_thread():  # on Linux, that is
        gate.crowding = Adaptive(gate, this_machine()).begin
    return gate
