"""The last call: who has a connection when a server ends gets an answer; who comes later has none.

A listener that is closed resets whoever waits in its queue, and whoever is in the middle of the
handshake, who takes himself for connected. Knows listening sockets; no server.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Seconds for handshakes that are under way, which takes one round trip: a balancer is nearer. Not
# more, for whoever comes meanwhile is not answered and tries again only after a second.
HANDSHAKE_SECONDS = 0.002

# Seconds for those who were let in to send their requests. Most have sent them by then.
LINGER_SECONDS = 0.5

# Seconds between two looks at whether all have their answers.
LOOK_SECONDS = 0.01

# From linux/socket.h and linux/filter.h. The filter sees each packet from its TCP header on, whose
# byte 13 has the flags, and drops those with SYN and without ACK: the first of each handshake.
SO_ATTACH_FILTER = 26
FLAGS, SYN, SYN_AND_ACK = 13, 0x02, 0x12
FILTER = (
    (0x30, 0, 0, FLAGS),  # load the byte
    (0x54, 0, 0, SYN_AND_ACK),  # keep the two
    (0x15, 0, 1, SYN),  # go on if it is the first, else to the second but one
    (0x06, 0, 0, 0),  # take nothing of the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # take all of it
)


class Stoppable(Protocol):
    """A server that can be asked what it has left, and told to listen no more."""

    def listeners(self) -> Iterable[socket.socket]:
        """Return the sockets at which it listens."""

    def stop_listening(self) -> object:
        """Take in those who wait there, and close them; now or soon."""

    def awaited(self) -> bool:
        """Return whether a request is still to come by a connection, as far as is known."""

    def flushed(self) -> bool:
        """Return whether all that was answered has been sent."""


def last_call(
    server: Stoppable,
    closed: Iterable[socket.socket],
    opened_by: int,
    until: float,
    now: Callable[[], float],
) -> Iterator[float]:
    """Have a server serve those who have connected, and nobody else; it is drained when this ends.

    Yields the seconds to wait before it goes on, for a thread to sleep or a reactor to come back.

    :param closed: those of the listeners that nobody else has.
    :param opened_by: the process that has made them.
    :param until: when it ends in any case.
    :param now: the clock.
    """
    for listener in closed:
        admit_no_more(listener, opened_by)
    yield max(0.0, min(HANDSHAKE_SECONDS, until - now()))
    listeners = list(server.listeners())
    closing = min(now() + LINGER_SECONDS, until)
    while any(map(pending, listeners)) and now() < closing:
        yield LOOK_SECONDS
    server.stop_listening()
    yield 0.0
    silent = now() + LINGER_SECONDS
    while now() < until:
        is_awaited = now() < silent and (server.awaited() or any(map(pending, listeners)))
        if not is_awaited and server.flushed():
            break
        yield LOOK_SECONDS


def admit_no_more(listener: socket.socket, opened_by: int) -> bool:
    """Have the kernel let nobody in any more; who is in can still be accepted. Return if it does.

    There is no way back, so nothing is done where others may listen at the same socket. Who comes
    from then on is not answered by the kernel; he tries again after a second, and is refused when
    the socket is closed by then.

    :param opened_by: the process that has made the socket.
    """
    if sys.platform != "linux" or not _is_alone(opened_by):
        return False
    with suppress(OSError):
        if listener.family == socket.AF_UNIX:
            listener.shutdown(socket.SHUT_RD)  # on a TCP listener this resets those who wait
            return True
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            steps = b"".join(struct.pack("=HBBI", *step) for step in FILTER)
            program = ctypes.create_string_buffer(steps, len(steps))
            where = struct.pack("@HP", len(FILTER), ctypes.addressof(program))
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, where)
            return True
    return False


def pending(listener: socket.socket) -> bool:
    """Return whether somebody waits to be accepted. Never blocks."""
    poller = select.poll()
    try:
        poller.register(listener, select.POLLIN)
    except (OSError, ValueError):  # closed
        return False
    return any(event & select.POLLIN for _, event in poller.poll(0))


def _is_alone(opened_by: int) -> bool:
    """Return whether no other process can have a socket: no parent gave it, no child is there."""
    if os.getpid() != opened_by:
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False
