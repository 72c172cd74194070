"""How often the state has changed, for how long it was busy, and what the last changes were."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .load import Load, State

# So many changes are kept to be shown.
RECENT = 16


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
