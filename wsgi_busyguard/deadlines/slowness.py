"""Whether an outside service is so slow that it is better not called: a breaker on slowness.

Not on errors: one that fails at once holds nobody up. Reads no clock and takes no lock.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ..load import smoothed
from ..policy import CLIENT_TIMEOUT, seconds

# Seconds for which a call that has ended counts, and how many of the last are remembered.
WINDOW_SECONDS = 10.0
MOST_CALLS = 1000

# Fewer calls say nothing.
LEAST_CALLS = 3

PROBE_FIRST_SECONDS, PROBE_LAST_SECONDS = 1.0, 30.0
PROBES_TO_OPEN = 2

# A call that takes so long may be hanging whatever they mostly take.
USUAL_LEAST_SECONDS, USUAL_FACTOR = 0.05, 3

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


def too_slow(good: int, bad: int, late: int, limit: float) -> bool:
    """Return whether a service is so slow that it is better not called.

    :param good: calls that have ended lately and in time; ``bad``: that were slow.
    :param late: calls that still run and are slow already.
    :param limit: how many may run at once.
    """
    if late and late >= max(limit / 2, min(limit, LEAST_CALLS)):
        return True  # with half of the places gone it is too late to wait for them to end
    ended = good + bad
    return ended >= LEAST_CALLS and 2 * bad >= ended


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
    :ivar timeout: the longest that a call may take, if anybody has said.
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
        self.good: deque[float] = deque(maxlen=MOST_CALLS)  # when they began, or ended
        self.bad: deque[float] = deque(maxlen=MOST_CALLS)

    def expect(self, timeout: float) -> None:
        """Take a call that needs more than half of this for slow, unless told."""
        if timeout != self.timeout:
            self.timeout = seconds("at_most", timeout)

    @property
    def slow(self) -> float:
        """Seconds from which on a call is slow."""
        if self.given is not None:
            return self.given
        return (self.timeout or self.client_timeout) / 2

    @property
    def usual(self) -> float:
        """Seconds within which calls mostly end; one that runs longer may be hanging."""
        if self.mean is None:
            return self.slow
        return min(self.slow, max(USUAL_LEAST_SECONDS, USUAL_FACTOR * self.mean))

    def judge(self, now: float, late: int, limit: float, jitter: float) -> str | None:
        """Shut if it is too slow, and return why.

        :param late: calls that still run and are slow already.
        """
        ends = [sum(at >= now - WINDOW_SECONDS for at in list(at)) for at in (self.good, self.bad)]
        good, bad = ends
        if self.shut is not None or not too_slow(good, bad, late, limit):
            return None
        self.shut, self.probe = shut(now, jitter), None
        return f"{bad} of {good + bad} calls of the last 10 s and {late} that still run are slow"

    def ended(
        self, key: object, now: float, took: float, bad: bool, limit: float, jitter: float
    ) -> str | None:
        """Take note of a call that has ended; return what there is to tell, if anything."""
        if self.shut is not None:
            return self._probed(now, bad, jitter) if key is self.probe else None
        if bad:
            self.bad.append(now)
            return self.judge(now, 0, limit, jitter)
        self.good.append(now)
        self.mean = smoothed(self.mean, took)
        return None

    def _probed(self, now: float, bad: bool, jitter: float) -> str | None:
        """Take note of a probe that has ended."""
        self.probe = None
        self.shut = self.shut and after_probe(self.shut, now, not bad, jitter)
        if self.shut is not None:
            return None
        self.good.clear()
        self.bad.clear()
        return "open again"
