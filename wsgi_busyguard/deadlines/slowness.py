"""Whether an outside service is so slow that it is better not called: a breaker on slowness.

Not on errors: one that fails at once holds nobody up. It is if of the calls that ended in the last
10 s (at least 3) half were slow or cut by their deadline, or if half of the places are held by
calls that are slow already, or half of those that all services have together.

Before it is that slow it may be seen that it hangs: by calls that run for longer than they mostly
do, or that do not end, one after the other, as often as they should. While what may be hanging has
half of the slots, no more is called of it, so that the other half is left to requests that call
nothing.

Reads no clock and takes no lock.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from ..load import smoothed
from ..policy import CLIENT_TIMEOUT, seconds

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

# Seconds for which a call that has ended counts, and how many of the last are remembered.
WINDOW_SECONDS = 10.0
MOST_CALLS = 1000

# Fewer calls say nothing.
LEAST_CALLS = 3

PROBE_FIRST_SECONDS, PROBE_LAST_SECONDS = 1.0, 30.0
PROBES_TO_OPEN = 2

# A call may be hanging that takes so long, and so many times what they mostly take, and longer than
# any has of late.
USUAL_LEAST_SECONDS, USUAL_FACTOR = 0.05, 3

# That none of so many calls has ended that should have is hardly chance: once in 55 times where
# each may end at any moment; where all take as long as each other, once that time has gone by.
MISSING_CALLS, MISSING_FACTOR = 4, 1.5

# Of all services together, which are all refused then, and not one: once in 1100 times.
MISSING_OF_ALL = 7

# How far into what has raised an error is looked for a timeout.
DEEPEST_CAUSE = 5


class Shut(NamedTuple):
    """A service that is not called but by one probe at a time.

    :param since: monotonic seconds.
    :param probe_at: from when on the next probe may go.
    :param pause: seconds before it, but for the jitter.
    :param good: how many probes in a row were quick.
    """

    since: float
    probe_at: float
    pause: float = PROBE_FIRST_SECONDS
    good: int = 0


def too_late(late: int, limit: float) -> bool:
    """Return whether so many calls that run are slow already that it is of no use to wait for them.

    :param limit: how many may run at once.
    """
    return late > 0 and late >= max(limit / 2, min(limit, LEAST_CALLS))


def too_slow(good: int, bad: int) -> bool:
    """Return whether a service is so slow that it is better not called.

    :param good: calls that have ended lately and in time; ``bad``: that were slow.
    """
    ended = good + bad
    return ended >= LEAST_CALLS and 2 * bad >= ended


class Running(NamedTuple):
    """The calls to one service that run now, and what is known of it.

    :param ages: seconds.
    :param quiet: seconds since a call has ended that was not slow.
    :param mean: seconds that such a call takes.
    :param usual: seconds within which calls mostly end.
    :param late: how many are slow already.
    :param suspect: whether it is shut, or the last call that ended was slow.
    """

    ages: tuple[float, ...]
    quiet: float
    mean: float
    usual: float
    late: int = 0
    suspect: bool = False

    @property
    def hangs(self) -> bool:
        """Whether it may be hanging."""
        oldest = max(self.ages, default=0.0)
        if self.suspect or oldest >= self.usual:
            return True
        return oldest >= MISSING_FACTOR * self.mean and missing([self]) >= MISSING_CALLS


def missing(services: Collection[Running]) -> float:
    """Return how many calls should have ended since one of any of these services has."""
    quiet = min((one.quiet for one in services), default=0.0)
    return sum(min(age, quiet) / one.mean for one in services for age in one.ages)


def all_hang(services: Collection[Running]) -> bool:
    """Return whether all services may be hanging: they often share a network."""
    busy = [one for one in services if one.ages]
    quiet, calls = min((one.quiet for one in busy), default=0.0), sum(len(one.ages) for one in busy)
    typical = sum(len(one.ages) * one.mean for one in busy)
    return calls * quiet >= typical and missing(busy) >= MISSING_OF_ALL


def fill_their_part(own: Running, services: Collection[Running], most: float) -> bool:
    """Return whether the calls to services that may be hanging are too many, its own one of them.

    :param own: the service of the last call, one of ``services``.
    :param most: how many all of them together may be.
    """
    if sum(len(one.ages) for one in services) <= most:
        return False
    if all_hang(services):
        return True
    return own.hangs and sum(len(one.ages) for one in services if one.hangs) > most


def shut(now: float, jitter: float) -> Shut:
    """Return a service that is not called from now on; ``jitter``, about 1, is for the pause."""
    return Shut(now, now + PROBE_FIRST_SECONDS * jitter)


def after_probe(state: Shut, now: float, good: bool, jitter: float) -> Shut | None:
    """Return what comes after a probe; ``None`` if the service may be called again.

    The second of two good ones goes at once: it is open a moment after the service is well.
    """
    if not good:
        pause = min(2 * state.pause, PROBE_LAST_SECONDS)
        return Shut(state.since, now + pause * jitter, pause)
    if state.good + 1 >= PROBES_TO_OPEN:
        return None
    return state._replace(probe_at=now, good=state.good + 1)


def is_timeout(error: BaseException | None) -> bool:
    """Return whether a call was cut by its deadline, by the names that clients' errors have."""
    for _ in range(DEEPEST_CAUSE):
        if error is None:
            return False
        names = [kind.__name__ for kind in type(error).__mro__]
        # urllib3 calls a refused connection a timeout, too.
        if "NewConnectionError" not in names and any("Timeout" in name for name in names):
            return True
        error = error.__cause__ or error.__context__
    return False


class Slowness:
    """What is known of how slow a service is. All of it requires its owner's lock.

    :param given: seconds from which on a call is slow; if not given, half of the timeout.
    :ivar timeout: the longest that a call may take, if that is known.
    :ivar client_timeout: seconds after which clients give up.
    :ivar probe: what stands for the call by which a shut one is tried.
    :ivar mean: seconds that a call takes which is not slow.
    :ivar shut: how it is probed while it is not called.
    """

    def __init__(self) -> None:
        self.given: float | None = None
        self.timeout: float | None = None
        self.client_timeout = CLIENT_TIMEOUT
        self.mean: float | None = None
        self.shut: Shut | None = None
        self.probe: object = None
        self._longest = self._longest_before = 0.0  # that was not slow, by turns of WINDOW_SECONDS
        self._turned = -math.inf
        self.good: deque[float] = deque(maxlen=MOST_CALLS)  # when they ended
        self.bad: deque[float] = deque(maxlen=MOST_CALLS)

    def expect(self, timeout: float) -> None:
        """Take a call that needs more than half of this for slow, unless ``given`` says."""
        if timeout != self.timeout:
            self.timeout = seconds("at_most", timeout)

    @property
    def slow(self) -> float:
        """Seconds from which on a call is slow."""
        if self.given is not None:
            return self.given
        return (self.timeout or self.client_timeout) / 2

    def usual(self, now: float) -> float:
        """Return the seconds within which calls mostly end; one that runs longer may be hanging."""
        if self.mean is None:
            return self.slow
        lately = now - self._turned < 2 * WINDOW_SECONDS
        longest = max(self._longest, self._longest_before) if lately else 0.0
        return min(self.slow, max(USUAL_LEAST_SECONDS, USUAL_FACTOR * self.mean, longest))

    def judge(self, now: float, late: int, hopeless: bool, jitter: float) -> str | None:
        """Shut if it is too slow, and return why.

        :param late: calls that still run and are slow already; ``hopeless``: too many of them.
        """
        ends = [sum(at >= now - WINDOW_SECONDS for at in list(at)) for at in (self.good, self.bad)]
        good, bad = ends
        if self.shut is not None or not (hopeless or too_slow(good, bad)):
            return None
        self.shut, self.probe = shut(now, jitter), None
        return f"{bad} of {good + bad} calls of the last 10 s and {late} that still run are slow"

    def running(self, now: float, sinces: Iterable[float]) -> Running:
        """Return what runs now of this service, of calls that began then."""
        quiet = now - self.good[-1] if self.good else math.inf
        last_bad = self.bad[-1] if self.bad else -math.inf
        suspect = self.shut is not None or now - last_bad < quiet
        least, slow = USUAL_LEAST_SECONDS / USUAL_FACTOR, self.slow
        mean = slow if self.mean is None else max(self.mean, least)
        ages = tuple(now - at for at in sinces)
        late = sum(age >= slow for age in ages)
        return Running(ages, quiet, mean, self.usual(now), late, suspect)

    def ended(self, key: object, now: float, took: float, bad: bool, jitter: float) -> str | None:
        """Take note of a call that has ended; return what there is to tell, if anything."""
        if self.shut is not None:
            return self._probed(now, bad, jitter) if key is self.probe else None
        if bad:
            self.bad.append(now)
            return self.judge(now, 0, False, jitter)
        self.good.append(now)
        self.mean = smoothed(self.mean, took)
        if now - self._turned >= WINDOW_SECONDS:
            self._turned, self._longest, self._longest_before = now, 0.0, self._longest
        self._longest = max(self._longest, took)
        return None

    def _probed(self, now: float, bad: bool, jitter: float) -> str | None:
        self.probe = None
        self.shut = self.shut and after_probe(self.shut, now, not bad, jitter)
        if self.shut is not None:
            return None
        self.good.clear()
        self.bad.clear()
        return "open again"
