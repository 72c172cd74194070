"""What is in force in a guard, by its options and by the limits of its gate."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, cast

from .._support.log import logger
from ..board.publisher import Publisher
from ..load import (
    ADAPTED,
    CHECKS_ONLY,
    DEFAULT,
    DISABLED,
    GATE,
    GIVEN,
    LIMITED,
    PICK_UP,
    THREADS,
    GuardLimits,
)
from ..options import OPTIONS
from ..policy import loose_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..load_report import LimitFigures
    from ..monitor import Monitor
    from ..options import GuardOptions
    from ..policy import Limits
    from .gate import Gate
    from .pickup import PickUp


def gate_in_force(options: GuardOptions, gate: Gate | None) -> GuardLimits:
    """Return what is in force in a guard that is a gate; or only answers checks, without one."""
    if gate is None:
        return in_force(options, CHECKS_ONLY)
    discipline = gate.discipline
    bounds = discipline.in_force._replace(slots=gate.limits.slots)
    return in_force(options, GATE, bounds, gate.slots, gate.why, tight=discipline.tight)


def pick_up_in_force(options: GuardOptions, pick_up: PickUp | None = None) -> GuardLimits:
    """Return what is in force in a guard that refuses what the server's threads pick up.

    :param pick_up: what refuses there; ``None`` where nobody has been refused yet.
    """
    loose = loose_limits(1, None, options.max_wait, options.client_timeout)
    max_wait = loose.max_wait if pick_up is None else pick_up.max_wait
    if max_wait == math.inf:
        return in_force(options, CHECKS_ONLY)
    return in_force(options, PICK_UP)._replace(max_wait=max_wait)


def in_force(
    options: GuardOptions,
    acts: str,
    bounds: Limits | None = None,
    slots: int | None = None,
    why: str | None = None,
    *,
    tight: bool = False,
) -> GuardLimits:
    """Return what is in force in a guard with these options.

    :param acts: what it does to requests; see :class:`~wsgi_busyguard.load.GuardLimits`.
    :param bounds: the limits by which it refuses, or would refuse; ``None`` where it does not.
    :param slots: how many slots there are now, where some are taken away, and ``why`` they are.
    :param tight: whether the bounds are those of an overload.
    """
    if options.disabled:
        acts, bounds, slots = DISABLED, None, None
    at_most = None if bounds is None else bounds.slots
    now = at_most if slots is None else slots
    origins = _origins(options, bounds if tight else None, now == at_most)
    return GuardLimits(
        acts,
        now,
        at_most,
        None if bounds is None else _bound(bounds.max_queue),
        None if bounds is None else _bound(bounds.max_wait),
        options.timeout,
        options.ready,
        options.patience,
        origins,
        why or "",
    )


def _origins(options: GuardOptions, tight: Limits | None, all_slots: bool) -> tuple[str, ...]:
    """Return where each limit is from.

    :param tight: the limits of an overload, where there is one.
    :param all_slots: whether none is taken away.
    """
    given = {name for name in LIMITED if getattr(options, name) != OPTIONS[name].default}
    origins = {name: GIVEN if name in given else DEFAULT for name in LIMITED}
    for name in ("max_queue", "max_wait") if tight else ():
        if getattr(tight, name) != getattr(options, name):
            origins[name] = ADAPTED
    if not all_slots:
        origins["slots"] = ADAPTED
    elif "slots" not in given:
        origins["slots"] = THREADS  # in front of these the guard has as many
    return tuple(origins.values())


def _bound(limit: float) -> float | None:
    return None if limit == math.inf else limit


def limit_figures(each: Iterable[GuardLimits | None]) -> list[LimitFigures]:
    """Return what is in force, and in how many processes it is the same."""
    figures = [
        {
            "processes": processes,
            **limits._asdict(),
            "origins": dict(zip(LIMITED, limits.origins, strict=True)),
        }
        for limits, processes in Counter(each).items()
        if limits is not None
    ]
    return cast("list[LimitFigures]", figures)


def tell_limits(monitor: Monitor, limits: Callable[[], GuardLimits]) -> None:
    """Have a monitor, and the board that it reads, know what is in force in its guard.

    Of several guards with one monitor the first is the one in front.
    """
    if monitor.limits is None:
        monitor.limits = limits
        if isinstance(monitor.adapter, Publisher):
            monitor.adapter.limits = limits


def log_limits(monitor: Monitor) -> None:
    """Write what is in force to the log; of several processes on a board one does."""
    if monitor.limits is not None and monitor.is_leader():
        logger.info("in force: %s", monitor.limits())
