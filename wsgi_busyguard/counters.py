"""What is counted of requests and checks, and how the counts of several processes add up.

Values only. Whoever counts has his own way to do it; here is what he hands over.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from .load import FREE as IS_FREE
from .policy import READY_POLICIES, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .load import Load, State, Transition
    from .policy import Verdict

# The upper bounds of the buckets in which times are counted, in seconds; one more is for all above.
# Two or three to a decade, from what no client notices to the 30 s after which processes are taken
# to be stuck. Our own limits are among them, so that a share beyond one is exact: the default
# max_wait (1), patience (2) and client_timeout (5).
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BUCKETS = len(BOUNDS) + 1

REASONS = tuple(Reason)

# What ready checks are answered, and whether with 200. Only a watcher answers ``absent``.
ANSWERS = (
    ("free", True),
    ("busy", True),
    ("busy", False),
    ("draining", False),
    ("absent", False),
)

#: The same by the policy that was asked for.
CHECKS = tuple((policy, *answer) for policy in READY_POLICIES for answer in ANSWERS)

SECOND = 10**9  # ns

NO_TIMES = (0,) * BUCKETS


class Counters(NamedTuple):
    """What has been counted since a process, or a host, began to; none of it ever goes down.

    :param admitted: requests that got a slot, whether they waited for it or not.
    :param served: those that have left it.
    :param refused: requests that got none, by :class:`~wsgi_busyguard.policy.Reason` in its order.
        ``queue-age`` are those that have expired: they waited for too long.
    :param dropped: requests whose client had left before the app was called.
    :param service: how many took how long in the app, by bucket: see :data:`BOUNDS`.
    :param service_ns: nanoseconds that they took together.
    :param waits: how many of the admitted waited how long, by bucket.
    :param waits_ns: nanoseconds that they waited together.
    """

    admitted: int = 0
    served: int = 0
    refused: tuple[int, ...] = (0,) * len(REASONS)
    dropped: int = 0
    service: tuple[int, ...] = NO_TIMES
    service_ns: int = 0
    waits: tuple[int, ...] = NO_TIMES
    waits_ns: int = 0

    def flat(self) -> list[int]:
        """Return all of them as a list, for :func:`of`."""
        numbers = [self.admitted, self.served, *self.refused, self.dropped]
        return [*numbers, *self.service, self.service_ns, *self.waits, self.waits_ns]


LENGTH = len(Counters().flat())

# So many of them, from the first on, are numbers of requests.
NAMED = 3 + len(REASONS)


def of(flat: Sequence[int]) -> Counters:
    """Return the counts that :meth:`Counters.flat` made into a list."""
    one = iter(flat)
    admitted, served = next(one), next(one)
    refused, dropped = tuple(islice(one, len(REASONS))), next(one)
    service, service_ns = tuple(islice(one, BUCKETS)), next(one)
    waits, waits_ns = tuple(islice(one, BUCKETS)), next(one)
    return Counters(admitted, served, refused, dropped, service, service_ns, waits, waits_ns)


def together(all_of_them: Iterable[Counters]) -> Counters:
    """Return the sum."""
    return of([sum(column) for column in zip(*(c.flat() for c in all_of_them), strict=True)])


# The places in the list in which the answers to checks are counted, one list for each policy.
FREE, BUSY_READY, BUSY_NOT, DRAINING, ABSENT = range(5)


def no_checks() -> dict[str, list[int]]:
    """Return what the answers to checks are counted in: by policy, in the order of the answers."""
    return {policy: [0] * (ABSENT + 1) for policy in READY_POLICIES}


def asked(checks: Mapping[str, Sequence[int]]) -> list[int]:
    """Return these counts in the order of :data:`CHECKS`."""
    return [n for policy in READY_POLICIES for n in checks[policy]]


@runtime_checkable
class Counts(Protocol):
    """An adapter that counts."""

    def counts(self) -> Counters | None:
        """Return what it has counted, from its start."""


def counts_of(adapter: object) -> Counters | None:
    """Return what an adapter has counted, or ``None`` if it does not count."""
    return adapter.counts() if isinstance(adapter, Counts) else None


# Seconds over which the rate of refusals is a mean: a second's burst is none, and a minute ago is
# no news to who adds servers.
RATE_SECONDS = 10.0

# Seconds between two looks that are remembered for it.
RATE_LOOK_SECONDS = 1.0


class RefusalRate:
    """How many requests are refused a second, from how many there were at the last looks.

    Whoever looks brings the time and the count. From any thread: what is remembered is replaced.
    """

    def __init__(self) -> None:
        self._looks: tuple[tuple[float, int], ...] = ()

    def look(self, now: float, refused: int) -> float:
        """Remember a look; return the rate since one that is ten seconds old, or the oldest."""
        looks = [look for look in self._looks if look[0] <= now and look[1] <= refused]
        old = [look for look in looks if now - look[0] >= RATE_SECONDS]
        looks = looks[max(0, len(old) - 1) :]
        if not looks or now - looks[-1][0] >= RATE_LOOK_SECONDS:
            looks.append((now, refused))
        self._looks = tuple(looks)
        at, before = looks[0]
        gone = now - at
        return (refused - before) / gone if gone >= RATE_LOOK_SECONDS else 0.0


@runtime_checkable
class AnswersChecks(Protocol):
    """What knows the answer to a check."""

    def check(self, ready: str, patience: float, count: bool = True) -> Verdict:
        """Return the answer to a check; not counted as one if it is only looked at."""


class Watched(AnswersChecks, Protocol):
    """What the report tells of: a monitor, or whatever watches several processes."""

    @property
    def load(self) -> Load:
        """The load now."""

    @property
    def draining(self) -> bool:
        """Whether the server is shutting down."""

    def is_leader(self) -> bool:
        """Return whether this process speaks for its host."""


def watched(monitor: Watched) -> Watched:
    """Return it; raise for what is no monitor, most often the guard that has one."""
    if not isinstance(monitor, AnswersChecks):
        raise TypeError(f"monitor must be a Monitor, not {monitor!r}: guard.monitor is one")
    return monitor


@runtime_checkable
class KeepsHistory(Counts, Protocol):
    """A monitor, or a watcher, that knows what has been."""

    refusals: RefusalRate

    def asked(self) -> list[int]:
        """Return how many checks were answered, in the order of :data:`CHECKS`."""

    def changes(self) -> Changes:
        """Return how often the state has changed."""


@runtime_checkable
class PostsChecks(Protocol):
    """An adapter that tells other processes how many checks were answered here."""

    def hears(self, asked: dict[str, list[int]], /) -> object:
        """Take the lists in which they are counted, by policy."""


class Shared(Protocol):
    """What monitors in several processes have in common; see :class:`~wsgi_busyguard.Board`."""

    was_ready: bool

    @property
    def draining(self) -> bool:
        """Whether all are to drain, by an order from outside."""

    def judge(self, load: Load) -> State:
        """Return the state after ``load``, and remember it for all."""

    def asked(self) -> list[int]:
        """Return how many checks were answered; see ``counters.CHECKS``."""

    def changes(self) -> Changes:
        """Return how often the state has changed."""

    def is_leader(self) -> bool:
        """Return whether this process is the one that speaks for all."""


# So many changes are kept to be shown.
RECENT_CHANGES = 16


class Change(NamedTuple):
    """A change of state as it is kept to be shown.

    :param state: the state entered.
    :param at: the time of day, in seconds since 1970.
    :param lasted: seconds spent in the state that was left; ``None`` where that is not known.
    :param load: the load that caused it.
    """

    state: State
    at: float
    lasted: float | None
    load: Load


class Changes(NamedTuple):
    """All changes so far.

    :param to_busy: how often the state became busy.
    :param to_free: how often it became free again.
    :param busy_seconds: seconds in which it was busy, until now.
    :param recent: the last changes, the oldest first.
    """

    to_busy: int = 0
    to_free: int = 0
    busy_seconds: float = 0.0
    recent: tuple[Change, ...] = ()


class History:
    """The changes that one process has seen; for whoever sees them, under its lock."""

    def __init__(self) -> None:
        self._times = 0  # that the state has changed
        self._busy_before = 0.0  # seconds, without those of a state that lasts
        self._recent: deque[Change] = deque(maxlen=RECENT_CHANGES)

    def note(self, change: Transition, at: float) -> None:
        """Note a change, and the time of day at which it was seen."""
        self._times += 1
        if change.state is IS_FREE:
            self._busy_before += change.lasted
        self._recent.append(Change(change.state, at, change.lasted, change.load))

    def until(self, lasts: float, busy: bool) -> Changes:
        """Return all of them, where the state has lasted for so many seconds."""
        seconds = self._busy_before + (lasts if busy else 0.0)
        return Changes((self._times + 1) // 2, self._times // 2, seconds, tuple(self._recent))
