"""Decisions: a value in, a value out.

May this server get new requests, and what are the limits of its queue? Nothing here reads a
clock, takes a lock or knows a server.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, NamedTuple

from .load import FREE, Load, State, delay

if TYPE_CHECKING:
    from .load import Load


#: Seconds after which a client is taken to give up, unless the operator says.
CLIENT_TIMEOUT = 5.0

#: HAProxy's default ``inter``: a queue that is gone before the balancer asks again is no reason
#: to leave the rotation.
PATIENCE = 2.0

EXACT, DAMPED, ALWAYS = READY_POLICIES = ("exact", "damped", "always")

DRAINING = "draining"
ABSENT = "absent"


class Verdict(NamedTuple):
    """What a check is told.

    :param word: ``"free"``, ``"busy"`` or ``"draining"``: how things are; ``"absent"`` where
        nobody is there to serve.
    :param ready: whether new requests should come here: what the policy makes of it.
    :param load: the load it was judged by.
    """

    word: str
    ready: bool
    load: Load


class Reason(enum.Enum):
    """Why a request is refused, in the words of the ``Busyguard-Refused`` header."""

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
) -> Limits:
    """Return the limits meant by these arguments; ``None`` stands for the defaults.

    Four waiting for each slot **and** a fifth of the client's timeout: without the age limit the
    same length collapses when a request takes longer than it used to, without the length bound a
    long queue only burns memory. ``math.inf`` turns either limit off.
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
        max_wait = 0.2 * client_timeout
    return Limits(slots, max_queue, seconds("max_wait", max_wait))


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
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not value > 0:
        raise ValueError(f"{name} must be more than 0 seconds, not {value}")
    return value


def share(limit: int, balancers: int) -> int:
    """Return how many requests each balancer may have here, so that it is ``limit`` together."""
    return max(1, math.ceil(limit / max(1, balancers)))
