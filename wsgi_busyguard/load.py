"""What a server's load is, and when it is busy: values and the rules between them.

Nothing here reads a clock, takes a lock or knows a server.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Listener = Callable[["Transition"], object]

# A loop that is a whole beat (0.25 s) late does not take requests in, so nothing in its queue
# would show that it is stuck. Left again at half of that, like every other limit here.
LAG_BUSY = 0.25
LAG_FREE = LAG_BUSY / 2

# The weight of a new sample in the running mean of service times; TCP's round-trip estimate
# uses the same (RFC 6298, section 2).
SMOOTHING = 1 / 8


class State(enum.Enum):
    """Free or busy; nothing in between, and never a count."""

    FREE = "free"
    BUSY = "busy"


FREE, BUSY = State.FREE, State.BUSY  # an enum's own attributes are slow to look up


class Load(NamedTuple):
    """One look at a server's figures, all from one instant.

    :param queued: requests accepted that no thread is working on, nor about to.
    :param active: requests in the application.
    :param capacity: requests that may be in the application at once, whether their threads have
        been started or not; ``None`` where that is not known.
    :param waited: seconds for which no queued request has got a slot. It goes on counting
        when that one gives up, until one gets a slot: a queue that only drains by despair has
        not moved.
    :param service: seconds that a request takes, those that still run counted at their age;
        ``None`` where it is not known.
    :param lag: seconds by which the loop that takes requests in is late, where there is one.
    :param longest: seconds after which one that waits is refused; infinite where none is.
    """

    queued: int
    active: int
    capacity: int | None
    waited: float = 0.0
    service: float | None = None
    lag: float = 0.0
    longest: float = math.inf

    @property
    def idle(self) -> int | None:
        """``capacity - active``; ``None`` where the capacity is unknown."""
        return None if self.capacity is None else self.capacity - self.active

    @property
    def delay(self) -> float | None:
        """Seconds that a request arriving now would wait; ``None`` while that cannot be known."""
        return delay(self)


def delay(load: Load) -> float | None:
    """Return a load's ``delay``; a property costs a check more than what it computes.

    How long the queue will take is an estimate, of a few requests. It is believed no further than
    the queue's limit of age, at which whoever is at its end is refused, and one service time, for
    a slot that gets free may be needed to find that out; so a server that is slow still shows.
    """
    queued, _, capacity, waited, service, lag, longest = load
    seen = lag if lag > waited else waited
    if not queued or not capacity:
        return seen
    if service is None:
        return None
    ahead = queued * service / capacity
    if ahead > longest + service:
        ahead = longest + service
    return ahead if ahead > seen else seen


UNKNOWN = Load(0, 0, None)


def load_of(outstanding: int, capacity: int) -> Load:
    """Return the load of so many requests: what an idle thread is about to take is not queued."""
    active = min(outstanding, capacity)
    return Load(outstanding - active, active, capacity)


def more_queued(load: Load, count: int) -> Load:
    """Return the load with so many more in the queue, whom nobody refuses for their age there."""
    return load._replace(queued=load.queued + count, longest=math.inf) if count else load


class Transition(NamedTuple):
    """A change of state, as listeners get it.

    :param state: the state entered.
    :param load: the load that caused it.
    :param at: when, in seconds of the monotonic clock.
    :param lasted: seconds spent in the state that was left.
    """

    state: State
    load: Load
    at: float
    lasted: float


@runtime_checkable
class Adapter(Protocol):
    """Reads one server's :class:`Load`.

    ``read()`` is called from any thread, must not block, and must not call the monitor back.
    ``None`` or an exception means unknown. What an adapter can do beyond that are protocols of
    their own: :class:`Subscribes`, :class:`Progresses`, :class:`Shares`, and
    :class:`~wsgi_busyguard.counters.Counts`.
    """

    def read(self) -> Load | None:
        """Return the figures of this instant."""


@runtime_checkable
class Subscribes(Protocol):
    """An adapter that itself notices when the state may have changed; any other is polled."""

    def subscribe(self, changed: Callable[[], object], /) -> object:
        """Have ``changed`` called then, while no lock is held."""


@runtime_checkable
class Progresses(Protocol):
    """An adapter that sees in other processes as well whether requests end."""

    def progress(self) -> object:
        """Return a number which changes when a request has ended in whichever process."""


@runtime_checkable
class Shares(Protocol):
    """An adapter that reads a queue which several processes have in common."""

    def share(self, board: Any, /) -> Adapter:
        """Return what reads this process's part, for a board on which each of them posts."""


def known_adapter(adapter: Adapter) -> Adapter:
    """Return ``adapter`` if it can be read, else raise :exc:`TypeError`."""
    if not isinstance(adapter, Adapter):
        raise TypeError(f"adapter must have a read() that returns a Load, not {adapter!r}")
    return adapter


def judge(state: State, load: Load) -> State:
    """Return the state after ``load`` has been seen in ``state``.

    Busy when ``queued > idle``, free when there is a place to spare. In between, where every slot
    is taken and nobody waits, the state stays what it was: one number would flap on every request.

    :raises ValueError, TypeError: for rubbish, which must show here and not later.
    """
    queued, active, capacity, waited, service, lag, _ = load
    if waited < 0.0 or (service is not None and service < 0.0):
        raise ValueError(f"expected at least 0 seconds, not {load!r}")
    if lag >= LAG_BUSY:
        return BUSY
    spare = 1 if capacity is None else capacity - active - queued
    if spare < 0:
        return BUSY
    if spare > 0 and lag < LAG_FREE:
        return FREE
    return state


def smoothed(mean: float | None, sample: float) -> float:
    """Return the running mean after one more sample."""
    return sample if mean is None else mean + (sample - mean) * SMOOTHING


def service_time(mean: float | None, ages: Iterable[float]) -> float | None:
    """Return the seconds a request takes, from finished ones and from those still running.

    A request that has already run for longer than the mean will take at least its age, so its
    slot finishes at most ``1 / age`` requests a second. The mean of these rates, turned back
    into seconds, hardly moves for one slow request among ten and grows second by second when all
    are stuck, though nothing finishes. Before the first has finished their ages are all there is:
    a server that has just started is not taken for one that is stuck.
    """
    expected = [max(mean or 0.0, age, 1e-9) for age in ages]
    if not expected:
        return mean
    return len(expected) / sum(1 / seconds for seconds in expected)


# What a guard does to requests: it queues them itself; it refuses them when a thread picks them up;
# it only answers checks; it estimates what it would refuse; it is switched off, and only answers.
GATE, PICK_UP, CHECKS_ONLY, DRY_RUN, DISABLED = ACTS = (
    "gate",
    "pick-up",
    "checks",
    "dry run",
    "disabled",
)

# Where a limit is from: it was given, or not; measured, where fewer slots serve as many; or it is
# the number of the server's threads.
GIVEN, DEFAULT, ADAPTED, THREADS = ORIGINS = ("given", "default", "adapted", "threads")

# The limits that have an origin.
LIMITED = ("slots", "max_queue", "max_wait", "client_timeout", "ready", "patience")

DISABLE = "BUSYGUARD_DISABLE"

_DOES = {
    GATE: "gate",
    PICK_UP: "refuses at pick-up",
    CHECKS_ONLY: "only answers checks",
    DRY_RUN: "dry run, refuses nothing",
    DISABLED: f"only answers checks, disabled by {DISABLE}",
}


class GuardLimits(NamedTuple):
    """What a guard does to requests, and the limits that are in force now.

    :param acts: one of :data:`ACTS`.
    :param slots: requests that may be in the app at once; ``None`` where the guard does not bound
        them; likewise ``max_queue`` and ``max_wait``.
    :param at_most: the number of slots while none is taken away.
    :param origins: where each is from, in the order of :data:`LIMITED`.
    :param why: why there are fewer slots, if there are.
    """

    acts: str
    slots: int | None
    at_most: int | None
    max_queue: float | None
    max_wait: float | None
    client_timeout: float
    ready: str
    patience: float
    origins: tuple[str, ...]
    why: str = ""

    def __str__(self) -> str:
        parts = [f"{name} {value} ({origin})" for name, value, origin in self.rows(str(self.slots))]
        return f"{does(self.acts)}: {', '.join(parts)}"

    def rows(self, slots: str) -> list[tuple[str, str, str]]:
        """Return the names of the limits, their values, ``slots`` as given, and where from."""
        of = "" if slots == str(self.at_most) else f" of {self.at_most}"
        values = (
            None if self.slots is None else f"{slots}{of}",
            None if self.max_queue is None else str(self.max_queue),
            None if self.max_wait is None else f"{self.max_wait:g} s",
            None if self.acts == DISABLED else f"{self.client_timeout:g} s",
            self.ready,
            f"{self.patience:g} s",
        )
        return [
            (name, value or "none", origin)
            for name, value, origin in zip(LIMITED, values, self.origins, strict=True)
            if value is not None or self.acts == GATE
        ]


def does(acts: str) -> str:
    """Return as text what a guard does that ``acts`` so."""
    return _DOES.get(acts, acts)
