"""Which names are new at the agent port: a name that has asked only once is no balancer yet.

Whoever reaches the port may say any name, and each name that counts takes a share from all others.
A balancer asks again and again, somebody who looks around mostly does not. Reads no clock.
"""

from __future__ import annotations

from typing import Any

# Names of one address that are remembered until they ask again, and addresses. Beyond, the oldest
# goes: a flood of names costs a new balancer of the same address its place, and no memory.
MOST_NAMES = 16
MOST_ADDRESSES = 256


class Newcomers:
    """Remembers who has asked once. For one thread."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}

    def asked_before(self, host: str, name: str) -> bool:
        """Return whether ``name`` has asked from this address before, and remember that it did."""
        names = self._names.pop(host, {})
        self._names[host] = names  # the last, for it is the newest
        known = name in names
        names.pop(name, None)
        names[name] = None
        _shorten(names, MOST_NAMES)
        _shorten(self._names, MOST_ADDRESSES)
        return known


def _shorten(known: dict[str, Any], most: int) -> None:
    if len(known) > most:
        del known[next(iter(known))]
