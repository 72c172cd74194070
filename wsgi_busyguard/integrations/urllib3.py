"""urllib3 with timeouts that end when the client's patience does."""

from __future__ import annotations

import io
import math
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from urllib3 import Retry, Timeout
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from ..deadlines.deadline import TooLate, call_timeout, current_deadline
from ..policy import duration, seconds
from .addresses import addresses
from .bulkheads import chosen, known

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

    from ..bulkhead import Bulkhead, Place


class NotBegun(ConnectTimeoutError):
    """Raised in place of a call that would outlive the client it is for.

    No :exc:`TooLate` itself, which is an OSError: urllib3 takes those for lost connections.
    """


class DeadlineTimeout(Timeout):
    """A timeout for a pool or a call: what the client has left, and never more than its own limit.

    :param connect: seconds that connecting may take, as :class:`urllib3.Timeout` has it.
    :param read: seconds between two bytes of the answer.
    :param least: what such a call takes at best. With less left it is not begun.
    :param bulkhead: holds a place for each attempt until its body is read or closed, or raises
        :exc:`~wsgi_busyguard.bulkhead.BulkheadFull`; ``True``: one for each host.

    Asked anew for each attempt, so one object serves a whole pool, and retries have less and less:
    ``PoolManager(timeout=DeadlineTimeout(connect=1, read=3))``. The client's deadline holds for the
    answer as a whole, its head and a body that is read later included.
    """

    def __init__(
        self,
        connect: Any = None,
        read: Any = None,
        *,
        least: float = 0.0,
        bulkhead: Bulkhead | bool | None = None,
    ) -> None:
        super().__init__(connect=connect, read=read)
        for name, limit in (("connect", connect), ("read", read)):
            if isinstance(limit, (int, float)):
                seconds(name, limit)  # urllib3 lets NaN through
        self._least = duration("least", least)
        self._bulkhead = known(bulkhead)
        self._place: Place | None = None  # goes with the attempt, if there is no answer

    def clone(self) -> DeadlineTimeout:
        """Return a copy for one attempt, which has not begun."""
        more: Any = {"least": self._least, "bulkhead": self._bulkhead}
        return DeadlineTimeout(self._connect, self._read, **more)

    def start_connect(self) -> float:
        """Begin an attempt, which has a place in the bulkhead from now on."""
        one = chosen(self._bulkhead, getattr(_connection(), "host", None))
        if one is not None:
            self._place = one.take(self._read if isinstance(self._read, (int, float)) else None)
        return super().start_connect()

    @property
    def connect_timeout(self) -> Any:
        """The seconds that connecting may take now, or sending on a connection that is open."""
        left = self._left(super().connect_timeout)
        connection, deadline = _connection(), current_deadline()
        if deadline is not None and hasattr(connection, "response_class"):
            _end_sending(connection, deadline)
            _end_connecting(connection, deadline)
        sock = getattr(connection, "sock", None)
        if sock is not None and isinstance(left, (int, float)):
            sock.settimeout(left)  # kept alive, it has the timeout of the call before
        return left

    @property
    def read_timeout(self) -> Any:
        """The seconds that one read may take now."""
        left = self._left(super().read_timeout)
        deadline, connection = current_deadline(), _connection()
        needed = deadline is not None or self._place is not None
        if hasattr(connection, "response_class"):
            vars(connection).pop("send", None)  # all is sent
            vars(connection).pop("_new_conn", None)  # it was open already
        if needed and hasattr(connection, "response_class"):
            _end_answer(connection, math.inf if deadline is None else deadline, self._place)
        return left

    def _left(self, limit: Any) -> Any:
        at_most = limit if isinstance(limit, (int, float)) else None
        try:
            left = call_timeout(at_most, least=self._least)
        except TooLate as late:
            raise NotBegun(str(late)) from late
        return limit if left is None else left


class DeadlineRetry(Retry):
    """Retries that sleep no longer than the client waits, whatever ``Retry-After`` says.

    ``PoolManager(timeout=DeadlineTimeout(3), retries=DeadlineRetry(3))``, and
    ``DeadlineAdapter(max_retries=DeadlineRetry(3, backoff_factor=0.1))``. urllib3's own default
    sleeps for as long as an answer with the status 503 asks for.
    """

    def sleep(self, response: BaseHTTPResponse | None = None) -> None:
        """Sleep before the next try, if there will be time for one."""
        pause = self.get_backoff_time()
        if self.respect_retry_after_header and response is not None:
            pause = self.get_retry_after(response) or pause
        try:
            call_timeout(least=pause)
        except TooLate as late:
            raise NotBegun(str(late)) from late
        super().sleep(response)


class _TimedReads(io.RawIOBase):
    """What is read from a socket, with less and less time for each read.

    :param raw: reads the socket.
    :param deadline: monotonic seconds.
    :param place: in a bulkhead, for as long as there is something to read.
    """

    def __init__(
        self, raw: io.RawIOBase, sock: socket.socket, deadline: float, place: Place | None = None
    ) -> None:
        self._raw = raw
        self._place = place
        self._sock = sock  # by which libraries that stream find it in socket.SocketIO
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client's patience ended before the answer did")
        before = self._sock.gettimeout()
        if left == math.inf or (before is not None and before <= left):
            return self._raw.readinto(buffer)
        self._sock.settimeout(left)
        try:
            return self._raw.readinto(buffer)
        finally:
            self._sock.settimeout(before)  # the next call may send on this connection

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
            if self._place is not None:
                self._place.give()
        super().close()


def _connection() -> Any:
    """Return the connection for which urllib3 asks one of our timeouts; ``None`` if unknown.

    It tells a timeout nothing, and reads with the one number for as long as bytes come. So this
    looks where it is asked from. Not found, the number holds for each read, as any timeout does.
    """
    return sys._getframe(2).f_locals.get("conn")


def _end_connecting(connection: Any, deadline: float) -> None:
    """Have all addresses of a host together be tried until the deadline, and not each so long.

    Where urllib3 itself connects; another library's connections (SOCKS, Unix sockets) have one.
    """
    if type(connection)._new_conn is not HTTPConnection._new_conn:
        return

    def connected() -> Any:
        vars(connection).pop("_new_conn", None)  # this was for one attempt
        name, given, error = connection._dns_host, connection.timeout, None
        try:
            for address in addresses(name, connection.port):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                connection._dns_host = address
                connection.timeout = min(given, left) if isinstance(given, (int, float)) else left
                try:
                    return type(connection)._new_conn(connection)
                except (NewConnectionError, ConnectTimeoutError) as failed:
                    error = failed
        except socket.gaierror as unknown:
            raise NameResolutionError(name, connection, unknown) from unknown
        finally:
            connection._dns_host, connection.timeout = name, given
        raise error or ConnectTimeoutError(connection, "the client's patience ended")

    connection._new_conn = connected


def _end_sending(connection: Any, deadline: float) -> None:
    """Have what is sent on a connection be sent by the deadline, also a file in many blocks."""
    send = type(connection).send

    def timed(data: Any) -> None:
        left, sock = deadline - time.monotonic(), connection.sock
        if left <= 0:
            raise TimeoutError("the client's patience ended before all was sent")
        before = sock and sock.gettimeout()
        if sock is not None and (before is None or before > left):
            sock.settimeout(left)
        send(connection, data)

    connection.send = timed


def _end_answer(connection: Any, deadline: float, place: Place | None) -> None:
    """Have the next answer on a connection end at the deadline, and give a place back."""
    make = connection.response_class

    def answer(sock: Any, *args: Any, **more: Any) -> Any:
        connection.response_class = make  # this was for one answer
        made = make(sock, *args, **more)
        made.fp = io.BufferedReader(_TimedReads(made.fp.detach(), sock, deadline, place))
        return made

    connection.response_class = answer
