"""Which bulkhead a call goes through, by its host; and their limits, from settings."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .._support.forks import Stage, after_fork
from .._support.locks import owned_lock, under
from ..bulkhead import Bulkhead, BulkheadFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..bulkhead import Place

# Hosts that have a bulkhead of their own; more of them are no few services, and share one.
MOST_HOSTS = 32
OTHER_HOSTS = "other hosts"

_lock = owned_lock()
_hosts: dict[str, Bulkhead] = {}


def chosen(bulkhead: Bulkhead | bool | None, host: str | None) -> Bulkhead | None:
    """Return the bulkhead for a call to a host; ``None`` if there is to be none.

    :param bulkhead: ``True``: one for each host.
    """
    if bulkhead is True:
        known = _hosts.get(host or OTHER_HOSTS)
        return known or under(_lock, _made, host or OTHER_HOSTS)
    return bulkhead or None


def known(bulkhead: Bulkhead | bool | None) -> Bulkhead | bool | None:
    """Return ``bulkhead`` if it can be one, else raise :exc:`TypeError`."""
    if bulkhead is None or isinstance(bulkhead, (bool, Bulkhead)):
        return bulkhead
    raise TypeError(f"bulkhead must be a Bulkhead, or True for one per host, not {bulkhead!r}")


def taken(
    bulkhead: Bulkhead | bool | None,
    host: str | None,
    timeout: float | None,
    refused: Callable[[str], Exception],
) -> Place | None:
    """Return a place for a call to a host, if it needs one; ``refused(why)`` if it is full."""
    one = chosen(bulkhead, host)
    try:
        return None if one is None else one.take(timeout)
    except BulkheadFull as full:
        raise refused(str(full)) from None


@contextmanager
def given_back_if_raised(place: Place | None) -> Iterator[None]:
    """Give a place back if the call raises; else whoever has the answer does."""
    try:
        yield
    except BaseException as error:
        if place is not None:
            place.give(error)
        raise


def _made(host: str) -> Bulkhead:
    """Return the bulkhead of a host. Requires _lock."""
    name = host if host in _hosts or len(_hosts) < MOST_HOSTS else OTHER_HOSTS
    if name not in _hosts:
        _hosts[name] = Bulkhead(name)
    return _hosts[name]


def from_settings(settings: Any, where: str) -> dict[str, Mapping[str, Any]]:
    """Return the limits of bulkheads, by their names, from settings in capitals.

    :param settings: ``{"rates": {"AT_MOST": 3}}``.
    :param where: what it is called in errors.
    :raises ValueError, TypeError: for what is not valid.
    """
    if not isinstance(settings, dict) or not all(
        isinstance(one, dict) for one in settings.values()
    ):
        raise TypeError(f"{where} must be as {{'rates': {{'AT_MOST': 3}}}}, not {settings!r}")
    found: dict[str, Mapping[str, Any]] = {}
    for name, given in settings.items():
        wrong = [key for key in given if key not in ("AT_MOST", "SHARE", "SLOW")]
        if wrong:
            raise ValueError(
                f"{where}[{name!r}] has no {wrong[0]!r}; there are AT_MOST, SHARE, SLOW"
            )
        found[name] = {key.lower(): value for key, value in given.items()}
        try:
            Bulkhead(name, **found[name])
        except (ValueError, TypeError) as error:
            raise type(error)(f"{where}[{name!r}]: {error}") from None
    return found


def _after_fork_in_child() -> None:
    global _lock
    _lock = owned_lock()


after_fork(Stage.OWN, _after_fork_in_child)
