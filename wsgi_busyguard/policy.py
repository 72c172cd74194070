"""Decisions: a value in, a value out.

May this server get new requests, and what are the limits of its queue? Nothing here reads a
clock, takes a lock or knows a server.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

from .load import FREE, Load, State, delay

#: Seconds after which a client is taken to give up, unless the operator says.
CLIENT_TIMEOUT = 5.0

#: The share of a client's timeout that it may spend in a queue that comes and goes; what is left
#: has to do for the request itself. Or of a balancer's patience, if that is less: a burst that is
#: served takes no server out of the rotation.
LOOSE_SHARE = 0.8

#: The same in an overload that stands.
TIGHT_SHARE = 0.2

#: How many may wait in a queue that comes and goes, if that is more than four for each slot. More
#: would only cost memory, and file descriptors, of which many servers have 1024.
LOOSE_QUEUE = 400

#: In an overload of Poisson arrivals a queue of K is empty for a share of about rho ** -K of the
#: time, where rho is arrivals / departures. One in so many is what slots may be idle for that.
IDLE_ONE_IN = 200

#: They come in waves, or the overload is over, where more than one in so many leaves a slot over.
SPARE_ONE_IN = 20

#: HAProxy's default ``inter``: a queue that is gone before the balancer asks again is no reason
#: to leave the rotation.
DAMPED_PATIENCE = 2.0

EXACT, DAMPED, ALWAYS = READY_POLICIES = ("exact", "damped", "always")

DRAINING = "draining"
ABSENT = "absent"


class Verdict(NamedTuple):
    """The answer to a check, before it is put into HTTP.

    :param word: ``"free"``, ``"busy"`` or ``"draining"``: how things are; ``"absent"`` where
        nobody is there to serve.
    :param ready: whether new requests should come here: what the policy makes of it.
    :param load: the load it was judged by.
    """

    word: str
    ready: bool
    load: Load


class Reason(enum.Enum):
    """Why a request is refused, as the header ``Busyguard-Refused`` says it."""

    QUEUE_FULL = "queue-full"
    QUEUE_AGE = "queue-age"
    DRAINING = "draining"


def known_policy(ready: str) -> str:
    """Return ``ready`` if it is one of the three policies, else raise :exc:`ValueError`."""
    if ready not in READY_POLICIES:
        raise ValueError(f"ready must be one of {', '.join(READY_POLICIES)}, not {ready!r}")
    return ready


def is_ready(ready: str, state: State, load: Load, patience: float, was_ready: bool) -> bool:
    """Return whether new requests should come here.

    ``exact`` follows the state. ``damped`` turns away only while busy and with a delay of at least
    ``patience``, and comes back below half of it; where no delay is known, it goes by how long
    nobody has got a thread. ``always`` is always ready.
    """
    if state is FREE:
        return True
    if ready != DAMPED:
        return ready == ALWAYS
    expected = delay(load)
    if expected is None:  # it is not known how long a request takes
        expected = max(load.waited, load.lag)
    return expected < (patience if was_ready else patience / 2)


class Limits(NamedTuple):
    """The limits of a gate: requests at once, requests waiting, seconds of waiting."""

    slots: int
    max_queue: float
    max_wait: float


def limits(
    slots: int,
    max_queue: float | None = None,
    max_wait: float | None = None,
    client_timeout: float | None = None,
    most_queued: float = math.inf,
) -> Limits:
    """Return the limits meant by these arguments; ``None`` stands for the defaults.

    Four waiting for each slot **and** a fifth of the client's timeout: without the age limit the
    same length collapses when a request takes longer than it used to, without the length bound a
    long queue only burns memory. ``math.inf`` turns either limit off.

    :param most_queued: how many the server can have wait, whatever is said.
    """
    whole("slots", slots, least=1)
    if client_timeout is None:
        client_timeout = CLIENT_TIMEOUT
    seconds("client_timeout", client_timeout)
    if max_queue is None:
        max_queue = 4 * slots
    elif max_queue != math.inf:
        whole("max_queue", max_queue, least=0)
    if max_wait is None:
        max_wait = TIGHT_SHARE * client_timeout
    return Limits(slots, min(max_queue, most_queued), seconds("max_wait", max_wait))


def loose_limits(
    slots: int,
    max_queue: float | None = None,
    max_wait: float | None = None,
    client_timeout: float | None = None,
    most_queued: float = math.inf,
) -> Limits:
    """Return the limits of a queue that comes and goes: nobody is refused who would be served soon.

    What is given is a bound always; only the defaults are looser than those of :func:`limits`.
    """
    tight = limits(slots, max_queue, max_wait, client_timeout, most_queued)
    if max_queue is None:
        tight = tight._replace(max_queue=min(most_queued, max(4 * slots, LOOSE_QUEUE)))
    if max_wait is None:
        most = min(client_timeout or CLIENT_TIMEOUT, DAMPED_PATIENCE)
        tight = tight._replace(max_wait=max(tight.max_wait, LOOSE_SHARE * most))
    return tight


def queue_length(slots: int, rho: float) -> int:
    """Return how many have to wait in an overload so that hardly ever a slot is idle.

    :param rho: arrivals / departures.
    """
    most = 4 * slots
    if rho <= 1:
        return most
    return min(most, max(2, math.ceil(math.log(IDLE_ONE_IN) / math.log(rho))))


class Discipline:
    """How long a queue may be, and how old who stands in it. A burst is served, an overload is not.

    *Loose* while the queue comes and goes (:func:`loose_limits`). *Tight* once there has been no
    place to spare for ``client_timeout`` and the queue is beyond the ordinary :func:`limits`, or
    somebody was refused: as many may wait as keep the slots busy (:func:`queue_length`), and for
    no longer than ordinarily. Loose again when there is a place to spare that none of those wanted
    who were refused within the last ``max_wait``. With ``max_wait=math.inf`` it is never tight.

    :param slots: as for :func:`limits`, and so are the others. What is given bounds always, and
        is no default of a server's, which belongs into ``most_queued``.
    :ivar in_force: the :class:`Limits` for who comes now. Read it as often as you like; it is
        replaced and never changed.
    :ivar tight: whether they are those of an overload.

    Its owner says what happens, under a lock of its own: :meth:`crowded` when one more waits, with
    how many there are and for how long the first has waited *here*; :meth:`spare` when a slot is
    left over and nobody waits; :meth:`arrived` for each that comes and gets no slot at once;
    :meth:`left` for each that goes from the queue to a slot; :meth:`refused` for each that gives up
    there, or is refused because of ``in_force`` (not of what it brought: a drain, an old header).
    """

    def __init__(
        self,
        slots: int,
        max_queue: float | None = None,
        max_wait: float | None = None,
        client_timeout: float | None = None,
        most_queued: float = math.inf,
    ) -> None:
        self._given = (max_queue, max_wait, client_timeout, most_queued)
        self._client_timeout = client_timeout or CLIENT_TIMEOUT
        self._since: float | None = None  # when the first came who waited, since a place to spare
        self._refused_at: float | None = None  # the last, since then or while it is tight
        self._spared = False  # since then, but for those who had just been refused
        self._least = 0  # how many may wait in waves
        self._counted_from = 0.0
        self._arrivals = self._departures = self._spares = 0
        self._rho = 1.0
        self.tight = False
        self.resize(slots)

    def resize(self, slots: int) -> None:
        """Go by so many slots from now on."""
        self._ordinary = limits(slots, *self._given)
        self._loose = loose_limits(slots, *self._given)
        if self.tight:
            self._stand()
        else:
            self.in_force = self._loose

    def most(self, service: float | None, ago: float = 0.0) -> float:
        """Return how many may wait where a request takes so many seconds; ``None``: not known.

        No more than are served before they are too old, so that who comes too late hears at once.

        :param ago: seconds for which the last of them has waited elsewhere.
        """
        slots, most, max_wait = self.in_force
        if not service:
            return most
        return min(most, max(self._ordinary.max_queue, (max_wait - ago) * slots / service))

    def too_late(self, ago: float) -> bool:
        """Return whether one that has waited elsewhere for so long has no time left to be served.

        Not even if a slot is free: the queue outside is as old as that, and behind it are others.
        """
        return ago > max(self.in_force.max_wait, LOOSE_SHARE * self._client_timeout)

    def arrived(self, count: int = 1) -> None:
        """Count one that has come and got no slot at once, or so many."""
        self._arrivals += count

    def left(self) -> None:
        """Count one that has gone from the queue to a slot."""
        self._departures += 1

    def refused(self, now: float) -> None:
        """Take note that one was refused because of what is in force, or has left the queue."""
        self._refused_at = now

    def crowded(self, now: float, queued: int, waited: float) -> bool:
        """Take note that so many wait, the first of them for so many seconds.

        Returns whether it is tight from now on: those who stand beyond it are to be refused, the
        oldest first, for their clients will soon leave.
        """
        if self._spared and not self._was_wanted(now):
            self._since = None
        self._spared = False
        if self._since is None:
            self._calm_down()
            self._since = now
            if not self.tight:
                self._count_anew(now)
        elif self.tight:
            if now - self._counted_from >= self._client_timeout:
                self._tighten(now)
        elif now - self._since >= self._client_timeout and self._exceeds(queued, waited):
            self._refused_at = now  # who stands beyond it is refused just now
            self._tighten(now)
            self.tight = True  # last: a signal handler may raise at any step
            return True
        elif now - self._counted_from >= self._client_timeout:  # what was long ago counts less
            self._arrivals, self._departures = self._arrivals // 2, self._departures // 2
            self._counted_from = now
        return False

    def spare(self, now: float) -> None:
        """Take note that a slot is left over and nobody waits.

        It is none to spare if somebody was refused just now, or has left: where clients give up
        sooner than is known, all who wait leave together.
        """
        was_spared, self._spared = self._spared, True
        if not self._was_wanted(now):
            self._since = None
            self._calm_down()
        elif self.tight and not was_spared:
            self._spares += 1
            if self._spares > self._ordinary.slots + self._departures / SPARE_ONE_IN:
                self._lengthen(now)

    def _exceeds(self, queued: int, waited: float) -> bool:
        _, max_queue, max_wait = self._ordinary
        if max_wait == math.inf:
            return False
        return queued > max_queue or waited > max_wait or self._refused_at is not None

    def _was_wanted(self, now: float) -> bool:
        """Return whether somebody refused of late wants a place to spare."""
        return self._refused_at is not None and now - self._refused_at <= self._ordinary.max_wait

    def _calm_down(self) -> None:
        self.tight, self._refused_at, self._least = False, None, 0
        self.in_force = self._loose

    def _lengthen(self, now: float) -> None:
        """Have one wait for each slot, for they end together; then as many as ordinarily."""
        slots = self._ordinary.slots
        self._least = slots if self._least < slots else 4 * slots
        self._stand()
        self._count_anew(now)

    def _tighten(self, now: float) -> None:
        """Go by what has come and gone of late."""
        self._rho = self._arrivals / max(1, self._departures)
        self._stand()
        self._count_anew(now)

    def _stand(self) -> None:
        """Have the limits of an overload in force. A limit that is turned off stays so."""
        length = most = self._ordinary.max_queue
        if most != math.inf:
            length = min(max(queue_length(self._ordinary.slots, self._rho), self._least), most)
        self.in_force = self._ordinary._replace(max_queue=length)

    def _count_anew(self, now: float) -> None:
        self._counted_from = now
        self._arrivals = self._departures = self._spares = 0


def own_max_wait(limits: Limits, client_timeout: float, patience: float) -> float:
    """Return how long a request may wait whose client says after how many seconds it gives up.

    One that gives up sooner than most may wait less, in proportion.
    """
    return min(patience, limits.max_wait * patience / client_timeout)


def whole(name: str, value: float, least: int) -> float:
    """Return ``value`` if it is a whole number of at least ``least``, else raise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return value


def flag(name: str, value: bool) -> bool:
    """Return ``value`` if it is true or false and nothing else, else raise: ``"no"`` is true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def seconds(name: str, value: float) -> float:
    """Return ``value`` if it can be a positive number of seconds, else raise."""
    if not number(name, value, "a number of seconds") > 0:
        raise ValueError(f"{name} must be more than 0 seconds, not {value}")
    return value


def duration(name: str, value: float) -> float:
    """Return ``value`` if it can be a number of seconds, 0 included, else raise."""
    if not number(name, value, "a number of seconds") >= 0:
        raise ValueError(f"{name} must be at least 0 seconds, not {value}")
    return value


def number(name: str, value: float, meant: str) -> float:
    """Return ``value`` if it is a number, else raise, in words that say what is meant."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {meant}, not {value!r}")
    return value


def share(limit: int, balancers: int) -> int:
    """Return how many requests each balancer may have here, so that it is ``limit`` together."""
    return max(1, math.ceil(limit / max(1, balancers)))


def service_name(name: str) -> str:
    """Return ``name`` if people can know an outside service by it, else raise."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {name!r}")
    if not name.strip():
        raise ValueError(f"name must say which service it is, not {name!r}")
    return name


def places(at_most: int | None, part: float | None) -> tuple[int | None, float]:
    """Return the limits of a bulkhead that are meant: a number of calls, or a part of the slots."""
    if at_most is not None and part is not None:
        raise ValueError(f"give at_most or share, not both: at_most={at_most!r}, share={part!r}")
    if at_most is not None:
        whole("at_most", at_most, least=1)
    if part is None:
        return at_most, 0.5
    if not 0 < number("share", part, "a part of the slots, as 0.5") <= 1:
        raise ValueError(f"share must be more than 0 and at most 1, not {part}")
    return at_most, part


def calls_at_most(slots: int | None, at_most: int | None, part: float) -> float:
    """Return how many calls to one service may run at once, with so many slots in force."""
    if at_most is not None:
        return at_most
    return math.inf if slots is None else max(1, math.ceil(slots * part))
