"""The addresses of a host, so that all of them together have one deadline."""

from __future__ import annotations

import socket


def addresses(host: str, port: int | None) -> list[str]:
    """Return the addresses of a host, in the order in which they are tried.

    The host itself if it is none that can be looked up, or if an address is not all (a link-local
    one of IPv6 needs its interface): whoever connects says or does the rest. To look a name up
    takes as long as the resolver does, whatever timeout there is.

    :raises OSError: if it has none.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except UnicodeError:
        return [host]
    if any(any(rest[1:]) for *_, (_, _, *rest) in found):
        return [host]
    return list(dict.fromkeys(str(info[4][0]) for info in found))
