"""bjoern: reads what waits for a loop that runs one request at a time."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import TYPE_CHECKING, Any

from ...load import Load
from ..acceptqueue import waiting
from .in_flight import inside
from .prefork import descriptors, look_at, speaks

if TYPE_CHECKING:
    from ...board.board import Board

NOTHING = struct.pack("i", 0)


class BjoernAdapter:
    """Reads the load of a bjoern, in the process that serves.

    :param listener: the socket at which it listens, as ``bjoern.listen()`` returns it.
    :raises TypeError: for what is no socket.

    bjoern calls the app in its loop, and reads and accepts nothing meanwhile. So who waits is in
    the kernel: connections that it has not accepted, and accepted ones, kept alive or new, from
    which there is something to read. Linux only; elsewhere the load is unknown. A look costs 3 us
    for each open descriptor while a request is in the app, else 1 us.

    Of several processes that share a listener each reads who has yet to be accepted by any of them.
    """

    _board: Board | None = None

    def __init__(self, listener: socket.socket) -> None:
        if not isinstance(listener, socket.socket):
            raise TypeError(f"listener must be the socket of bjoern.listen(), not {listener!r}")
        self._listener = listener
        self._place = _place(listener)

    def read(self) -> Load | None:
        """Return the figures of this instant; ``None`` if the queue cannot be read."""
        queued, active = waiting(self._listener), min(1, inside())
        if queued is None:
            return None
        if self._board is not None and not speaks(self._board):
            queued = 0
        return Load(queued + (self._unread() if active else 0), active, 1)

    def _unread(self) -> int:
        """Return how many accepted connections have something that bjoern has not read."""
        full = [number for number in descriptors() if _has_bytes(number)]
        return [look_at(number, _place) for number in full].count(self._place)

    def share(self, board: Board) -> BjoernAdapter:
        """Return what reads this process's part of it, for a board on which several post.

        One of them posts those whom nobody has accepted.
        """
        share = BjoernAdapter(self._listener)
        share._board = board
        return share

    def __repr__(self) -> str:
        return f"<BjoernAdapter: one request at a time, the others wait at {self._place!r}>"


def _place(sock: socket.socket) -> Any:
    """Return where a socket is, as far as its listener and the connections to it agree."""
    name = sock.getsockname()
    return name[1] if isinstance(name, tuple) else name


def _has_bytes(number: int) -> bool:
    try:
        return fcntl.ioctl(number, termios.FIONREAD, NOTHING) != NOTHING
    except OSError:  # of a kind that has none, such as a listener
        return False
