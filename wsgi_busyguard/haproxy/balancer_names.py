"""Which names are new at the agent port: a name that has asked only once is no balancer yet.

Whoever reaches the port may say any name, and each name that counts takes a share from all others.
A balancer asks again and again, somebody who looks around mostly does not. Reads no clock.
"""

from __future__ import annotations

from typing import Any

# Names of one address that are remembered until they ask again, and addresses. Beyond, the oldest
# goes: a flood of names costs a new balancer of the same address its place, and no memory.
MOST_NAMES = 16
MOST_ADDRESSES = 64


class NewBalancers:
    """Remembers who has asked once. For one thread."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, bool]] = {}  # by address: whether it asked again

    def asked_before(self, host: str, name: str) -> bool:
        """Return whether ``name`` has asked from this address before, and remember that it did."""
        names = self._names.pop(host, {})
        self._names[host] = names  # the last, for it is the newest
        known = name in names
        names.pop(name, None)
        names[name] = known
        _shorten(names, MOST_NAMES)
        _shorten(self._names, MOST_ADDRESSES)
        return known

    def count(self, most: int) -> int:
        """Return how many have asked once and not again, at most so many of each address.

        An address itself is none: the name of who asked there may only have been late.
        """
        return sum(
            min(most, sum(not again and name != host for name, again in names.items()))
            for host, names in self._names.items()
        )


def _shorten(known: dict[str, Any], most: int) -> None:
    if len(known) > most:
        del known[next(iter(known))]
