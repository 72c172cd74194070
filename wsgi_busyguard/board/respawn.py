"""Tells whether this process was made by a server that has served before: a respawn, a reload.

There an error ends more than it should: gunicorn ends its master, and with it the site, if a worker
cannot load the app. Knows processes; no server.
"""

from __future__ import annotations

import os

from .._support.listening_sockets import listens
from .processes import born

# Seconds in which a server makes its first processes, however slowly they import the app then.
STARTING_SECONDS = 5.0


def is_late() -> bool:
    """Return whether a server made this process when it had long been there.

    A process that listens before its app is whole has its sockets from the server that forked it.
    Where the system does not tell when processes began (no ``/proc``, or one that shows each user
    its own only), nobody is late.
    """
    if not listens():
        return False
    try:
        ours, servers = born(os.getpid(), 0), born(os.getppid(), 0)
    except OSError:  # /proc with hidepid=1, and the server is another user's
        return False
    return ours - servers > STARTING_SECONDS * os.sysconf("SC_CLK_TCK") and servers > 0
