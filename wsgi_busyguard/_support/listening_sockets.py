"""Tells whether this process listens: what serves does, and what only imports an app does not.

Knows descriptors and sockets; no server.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import weakref
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

from .unpatched import socket_at

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Iterable

R = TypeVar("R")


# What accept() says when no descriptor is left, for this process or for the whole system.
NO_DESCRIPTOR = frozenset((errno.EMFILE, errno.ENFILE))

# Where a system shows the descriptors of a process; macOS has the second.
FOLDERS = ("/proc/self/fd", "/dev/fd")

# Where it does not, so many are tried.
MOST_TRIED = 512

# Check ports and agent ports, whose ``listener`` shows nothing of whether an app is served.
_ours: weakref.WeakSet[Any] = weakref.WeakSet()


def note_ours(port: Any) -> None:
    """Have :func:`listens` pass over the listener of this port; to be called before it listens."""
    _ours.add(port)


def listens() -> bool:
    """Return whether this process has a socket that connections are accepted from.

    Some 2 us for each open descriptor.
    """
    found = [number for number in descriptors() if look_at(number, is_listener)]
    # Looked at last: each is noted before it listens, so what was found of them is among these.
    ours = {port.listener.fileno() for port in list(_ours)} if found else ()
    return any(number not in ours for number in found)


def is_socket(number: int) -> bool:
    """Return whether a descriptor is a socket.

    To be asked before a descriptor is copied: when a copy is closed, the process loses the record
    locks that it has on that file, SQLite's among them.
    """
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        return False


def look_at(number: int, look: Callable[[Any], R]) -> R | None:
    """Return what a look at the socket of this number says; ``None`` if it is none."""
    if not is_socket(number):
        return None
    try:
        copy = os.dup(number)
    except OSError:
        return None
    try:
        sock = socket_at(copy)
    except OSError:
        os.close(copy)
        return None
    with closing(sock):
        try:
            return look(sock)
        except OSError:
            return None


def is_listener(sock: _socket.socket) -> bool:
    """Return whether connections are accepted from a socket."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def descriptors() -> Iterable[int]:
    """Return the numbers of the descriptors of this process, where the system tells."""
    for folder in FOLDERS:
        try:
            return [int(name) for name in os.listdir(folder) if name.isdigit()]
        except OSError:
            continue
    return range(MOST_TRIED)
