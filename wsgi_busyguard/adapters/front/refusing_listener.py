"""A listening socket that refuses, in an overload, before the server makes anything of a request.

To take a connection in, read its request and answer it costs a server two to three times as much
as the answer alone. At ten times the load that is most of what the processor does; and each of
those who are taken in stands in the server's own loop, where it gets older and hides from the gate.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..._support.log import Streak
from ..._support.request_head import ordinary_head, read_head
from ..._support.socket_calls import readable
from .sockets import PEEK_BYTES, peek, since_heard

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..._support.request_head import Head
    from ...gate import Gate
    from ...policy import Reason

# So many are refused, or let in, in one go; then whoever else is attended to has a turn.
CONNECTIONS_PER_TURN = 16

# tcp(7). Who has said nothing for about so many seconds, which are one here, is shown all the same.
DEFER_ACCEPT = getattr(socket, "TCP_DEFER_ACCEPT", -1)

UNJUDGED = "could not judge a connection; left to the server"

# With one of these more is to come of the request, or it is to be something else than HTTP/1.
UNFINISHED_HEADERS = ("CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "HTTP_UPGRADE")


class RefusingListener:
    """Accepts for a server, and refuses those itself that the gate has no room for.

    :param sock: the listening socket; all but :meth:`accept` is as there.
    :param is_check: returns whether such a head asks for a check.
    :param refusal: returns the bytes that refuse a request of such a method.
    :param many: whether the server accepts many in one turn of its loop, before it reads of any.
        Then no more are let in than there is room for.

    Only who has sent one whole request, and no body, is refused here, or dropped if it has left.
    Checks, and whoever speaks TLS or HTTP/2, are the server's, as everybody is at a free gate.
    """

    def __init__(
        self,
        sock: Any,
        gate: Gate,
        is_check: Callable[[Head], bool],
        refusal: Callable[[str, Reason], bytes],
        *,
        many: bool = False,
    ) -> None:
        self._sock = sock
        self._gate = gate
        self._is_check = is_check
        self._refusal = refusal
        self._many = many
        self._let_in = 0  # in this turn of the server's loop, where it is many
        self._deferred = False
        self._unjudged = Streak()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def accept(self) -> tuple[Any, Any]:
        """Return the next connection that is not refused, and its address.

        :raises OSError: as a socket does; :exc:`BlockingIOError` also when others are to have a
            turn, of whom the gate may be one.
        """
        self._defer(self._gate.discipline.tight and not self._gate.draining)
        for _ in range(CONNECTIONS_PER_TURN):
            if self._many and self._let_in >= max(1, min(CONNECTIONS_PER_TURN, self._gate.room())):
                break
            try:
                sock, address = self._sock.accept()
            except OSError:
                self._let_in = 0
                raise
            if not self._is_settled(sock):
                self._let_in += 1
                return sock, address
            if self._sock.gettimeout() != 0 and not readable(self._sock):  # it would wait
                break
        self._let_in = 0
        raise BlockingIOError(errno.EWOULDBLOCK, "others have a turn")

    def _defer(self, stands: bool) -> None:
        """In an overload, have the kernel show a connection when something has come by it.

        One that has only connected cannot be refused yet. It was every third, and at ten times the
        load those were enough for a site to serve nobody.
        """
        if stands is not self._deferred:
            self._deferred = stands
            with suppress(OSError):  # of a UNIX socket; or it is not Linux
                self._sock.setsockopt(socket.IPPROTO_TCP, DEFER_ACCEPT, int(stands))

    def _is_settled(self, sock: socket.socket) -> bool:
        """Return whether nothing more is to be done: it is refused, or has left."""
        try:
            settled = not self._gate.draining and self._settle(sock)
            self._unjudged.over()
            return settled
        except Exception:  # guarding must never be the outage
            self._unjudged.failed(UNJUDGED, exc_info=True)
            return False

    def _settle(self, sock: socket.socket) -> bool:
        gate, (age, has_left) = self._gate, since_heard(sock)
        gate.late = max(gate.late, age)
        # At any other time who has closed its half may be waiting for its answer.
        stands = gate.discipline.tight or age > gate.limits.max_wait
        if not stands or (not has_left and gate.room(age) > 0):
            return False
        head = self._asked(sock)
        if head is None:
            return False
        answer = b""
        if has_left:
            gate.lose()
        else:
            reason = gate.turn_away(age)
            if reason is None:
                return False
            answer = self._refusal(head.method, reason)  # before: what raises leaves it unread
        with suppress(OSError):
            sock.recv(head.size, socket.MSG_DONTWAIT)  # unread it would reset the connection
            if answer:
                sock.send(answer, socket.MSG_DONTWAIT)
        sock.close()
        return True

    def _asked(self, sock: socket.socket) -> Head | None:
        """Return the head that has come, if there is nothing behind it and it is no check's."""
        data = peek(sock)
        if not data or len(data) >= PEEK_BYTES or not data.endswith(b"\r\n\r\n"):
            return None  # what ends in a lone LF has no end yet for most servers
        head = ordinary_head(data)
        if head is not None:
            return None if self._is_check(head) else head
        try:
            head = read_head(data)
        except ValueError:  # the server says what it thinks of it
            return None
        if head is None or head.size != len(data) or self._is_check(head):
            return None
        return None if any(name in head.headers for name in UNFINISHED_HEADERS) else head
