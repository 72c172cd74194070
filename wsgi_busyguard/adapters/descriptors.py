"""When file descriptors run out: a front makes room before nobody can get in any more.

Knows descriptors and sockets; no server.
"""

from __future__ import annotations

import os
from contextlib import suppress

# Left for the app's files and connections, and for the check port: at most so many, and at most a
# quarter of all.
SPARE = 64
SHARE = 4


def limit() -> int | None:
    """Return how many file descriptors this process may have; ``None`` where nothing bounds it."""
    with suppress(ImportError):
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return None if most == resource.RLIM_INFINITY else most
    return None


def scarce(descriptor: int) -> bool:
    """Return whether the descriptor of a connection that was just accepted is among the last.

    The kernel gives out the lowest that is free, so all below it are taken.
    """
    most = limit()
    return most is not None and descriptor >= most - spare(most)


def spare(most: int) -> int:
    """Return how many of so many descriptors are not for connections."""
    return min(SPARE, most // SHARE)


def bearable(most: int, least: int) -> int:
    """Return how many connections can be open beside what is open now.

    :param most: as many as the server is to have at once, if there are descriptors for them.
    :param least: as many as there must be.
    """
    bound = limit()
    if bound is None:
        return most
    taken = 0
    with suppress(OSError):  # no such folder on this system
        taken = len(os.listdir("/dev/fd"))
    return max(least, min(most, bound - taken - spare(bound)))
