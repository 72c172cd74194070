"""What stands between cheroot's connections and its threads: answers, refuses, or lets in.

cheroot's loop, and a thread that has served, hand over each connection with something to read.
Neither may block, so whatever is said here is said by other threads.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..._support.log import Streak
from ..._support.request_head import read_head, unfinished
from ..._support.socket_calls import readable
from ..._support.unpatched import begin
from ...policy import Reason
from ..front.base import UNJUDGED_MESSAGE, nothing
from ..front.descriptors import Room, eviction_order, excess, hang_up, is_open, overdrawn
from ..front.sockets import (
    BAD_REQUEST,
    PEEK_BYTES,
    cut_short,
    drain,
    peek,
    response_bytes,
    send,
    wake_beyond,
)
from ..front.threaded import SocketVisit, ThreadedFront
from .reply_thread import ReplyThread
from .request import PeekedRequest, reads, refusal_of, too_late

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication

    from ...checks import Check


class CherootFront(ThreadedFront):
    """The guard in front of a cheroot server's threads."""

    def __init__(self, threads: int, **options: Any) -> None:
        super().__init__(threads, **options)
        # One thread each: a refusal app that is slow, or a flood of those who are refused, must
        # not hold up the checks.
        self._checking = ReplyThread("busyguard-checks")
        self._refusing = ReplyThread("busyguard-refusals")
        self._unjudged = Streak()
        self.stopped = threading.Event()
        self.asking: dict[Any, None] = {}  # connections whose request is still to be answered
        self.idle: dict[Any, None] = {}  # connections in cheroot's loop, the oldest first
        self._room: Room[Any] = Room(self._hang_up, lambda conn: is_open(conn.socket))
        self.server: Any = None
        self.hand: Callable[[Any], object]

    def start(self) -> None:
        """Begin to look after those who wait, and to answer."""
        super().start()
        self._checking.start()
        self._refusing.start()

    def stop(self) -> None:
        """Stop that."""
        super().stop()
        self._checking.stop()
        self._refusing.stop()

    def beat(self) -> None:
        """Also make room if a burst has taken the last file descriptors."""
        super().beat()
        self.make_room(overdrawn())

    def meet(self, conn: Any) -> None:
        """Answer a connection if it asks for a check, wait for its head, refuse it or let it in."""
        self.asking[conn] = None
        self.idle.pop(conn, None)
        try:
            if not conn.accepted:
                conn.accepted = time.monotonic()
                self.make_room(excess(conn.socket.fileno()))
            self._judge(conn)
        except Exception:  # guarding must never be the outage
            self._unjudged.failed(UNJUDGED_MESSAGE, exc_info=True)
            self.hand(conn)

    def flushed(self) -> bool:
        """Return whether all that was answered has been read."""
        return self._checking.empty and self._refusing.empty

    def awaited(self) -> bool:
        """Return whether somebody has connected, or begun to ask, and has no answer."""
        return bool(self.asking)

    def listeners(self) -> list[Any]:
        """Return the socket at which cheroot listens."""
        return [] if self.server.socket is None else [self.server.socket]

    def stop_listening(self) -> None:
        """Close it; cheroot's loop has nothing to do with it any more, and goes on."""
        for listener in self.listeners():
            listener.close()

    def end(self) -> None:
        """Have the server stop; on a thread, for it waits for its own."""
        stop = self.server.stop
        try:
            begin(threading.Thread(target=stop, name="busyguard-stop", daemon=True))
        except RuntimeError:  # none is to be had now, and nobody comes here again
            stop()

    def refuse(self, conn: Any, request: PeekedRequest | None, reason: Reason) -> None:
        """Answer 503 in place of the app, on the thread for that."""
        last = reason is Reason.DRAINING
        job = partial(self._say, self._refusing, conn, request, self.refusal(reason), last)
        self._refusing.put(partial(_or_close, conn, job))

    def make_room(self, wanted: int = 1, least_age: float = 0.0) -> None:
        """Have others go so that so many can be accepted.

        cheroot's loop finds the end of such a connection, and closes it.

        :param least_age: seconds for which one who has said nothing must have been here.
        """
        self._room.make(wanted, partial(self._in_turn, time.monotonic() - least_age))

    def _in_turn(self, since: float) -> list[Any]:
        """Return the connections in cheroot's loop, and who is to go first."""
        silent: list[Any] = []
        idle: list[Any] = []
        half: list[Any] = []
        for conn in self.idle.copy():  # threads add to it
            if not conn.seen and readable(conn.socket):
                continue  # it is no silent one any more
            if not conn.used and conn.accepted > since:
                continue  # it is about to speak
            (silent if not conn.used else half if conn.seen else idle).append(conn)
        silent.sort(key=attrgetter("accepted"))
        return eviction_order(silent, idle, half)

    def _hang_up(self, conn: Any) -> None:
        self.idle.pop(conn, None)
        hang_up(conn.socket)

    def _judge(self, conn: Any) -> None:
        ahead = _ahead(conn)
        if self.server.ssl_adapter is not None:  # can only be read by decrypting it
            if ahead or conn.socket.pending() or readable(conn.socket):
                CherootVisit(self, conn, None).enter()
            else:
                self.server.put_conn(conn)
            return
        data = peek(conn.socket)
        if ahead or data:
            self._read(conn, ahead, data or b"")
        elif data is None:
            self.server.put_conn(conn)
        else:
            conn.close()

    def _read(self, conn: Any, ahead: bytes, data: bytes) -> None:
        """Look at a request, of which cheroot may have read the first part ahead."""
        begins = ahead + data
        try:
            if unfinished(begins) and self._waits_for_more(conn, len(begins), len(data)):
                return
        except ValueError:
            turn_away = partial(self._turn_away, conn, begins)
            self._refusing.put(partial(_or_close, conn, turn_away))
            return
        _wake_as_ever(conn)
        try:
            head = read_head(begins)
        except ValueError:  # cheroot says what it thinks of it
            CherootVisit(self, conn, None).enter()
            return
        request = None if head is None else PeekedRequest(head, bool(ahead))
        check = None if head is None else self.match(*head[:4])
        whole = begins[: head.size] if head is not None else b""
        if check is None or request is None or request.has_body or not reads(self.server, whole):
            CherootVisit(self, conn, request).enter()
        else:
            answer = partial(self._answer, conn, request, check)
            self._checking.put(partial(_or_close, conn, answer))
        self._unjudged.over()

    def _waits_for_more(self, conn: Any, size: int, seen: int) -> bool:
        """Leave a connection whose head is not whole to cheroot's loop; return whether it was left.

        A thread would wait ten seconds for the rest.

        :param seen: how many of the ``size`` bytes are in the socket.
        """
        now = time.monotonic()
        since = now if conn.since is None else conn.since
        is_late = now - since > self.server.timeout
        if is_late or cut_short(conn.socket, seen):
            if is_late:
                self.answer_late(conn)
            conn.close()
            return True
        # It would be readable all the time, but for this. Where that is of no use it comes again.
        again = conn.since is not None and conn.seen == seen
        if size >= PEEK_BYTES or again or not wake_beyond(conn.socket, seen):
            return False
        conn.since, conn.seen = since, seen
        # Else cheroot would hand it on at once, for what it has read ahead.
        conn.rfile.has_data = nothing
        try:
            self.server.put_conn(conn)
        finally:
            vars(conn.rfile).pop("has_data", None)
        return True

    def answer_late(self, conn: Any) -> None:
        """Say to one who has not asked in time that it is closed, and why, as cheroot does."""
        if self.server.ssl_adapter is not None:  # it might wait
            return
        with suppress(ValueError):  # somebody has just closed it
            send(conn.socket, too_late(self.server))
            drain(conn.socket)  # unread it would reset the connection

    def _turn_away(self, conn: Any, begins: bytes) -> None:
        """Say what cheroot says of what is no HTTP. In the thread of refusals."""
        send(conn.socket, refusal_of(self.server, begins) or BAD_REQUEST)
        self._refusing.linger(conn.socket, conn.close)

    def _answer(self, conn: Any, request: PeekedRequest, check: Check) -> None:
        accept = request.head.headers.get("HTTP_ACCEPT")
        self._say(self._checking, conn, request, self.answer(check, accept))

    def _say(
        self,
        replies: ReplyThread,
        conn: Any,
        request: PeekedRequest | None,
        app: WSGIApplication,
        last: bool = False,
    ) -> None:
        """Say it; then keep the connection, or see it off. In the thread of ``replies``."""
        keep = False
        method, version = ("GET", (1, 0)) if request is None else request.speaks
        if request is not None and not request.has_body:
            request.take(conn)
            keep = not last and request.persists and self.server.can_add_keepalive_connection
        data = response_bytes(app, method, version, last=not keep)
        if send(conn.socket, data) and keep:
            self.asking.pop(conn, None)
            self.server.put_conn(conn)
        elif self.server.ssl_adapter is not None:
            conn.close()
        else:
            replies.linger(conn.socket, conn.close)


class CherootVisit(SocketVisit):
    """One request on its way through the gate."""

    def __init__(self, front: CherootFront, conn: Any, request: PeekedRequest | None) -> None:
        peer = str(conn.remote_addr)
        client = front.client({} if request is None else request.head.headers, peer)
        super().__init__(front, conn.socket, client)
        self._cheroot = front
        self._conn = conn
        self._request = request

    def run(self) -> None:
        """Have a thread serve the request."""
        self._conn.visit = self
        self._cheroot.hand(self._conn)

    def refuse(self, reason: Reason) -> None:
        """Answer 503 in place of the app."""
        self._cheroot.refuse(self._conn, self._request, reason)

    def drop(self) -> None:
        """Close the connection; nobody is there to hear an answer."""
        self._conn.close()


def _ahead(conn: Any) -> bytes:
    """Return what cheroot has read ahead of a connection; its socket holds what comes after."""
    rfile = conn.rfile
    # Not the connection's own, which another thread may have replaced for a moment.
    return rfile.peek(0) if type(rfile).has_data(rfile) else b""


def _wake_as_ever(conn: Any) -> None:
    """Have a connection that may have waited be as it was, for whoever reads it now."""
    if conn.since is not None:
        conn.since = None
        wake_beyond(conn.socket, 0)


def _or_close(conn: Any, job: Callable[[], object]) -> None:
    try:
        job()
    except BaseException:
        conn.close()
        raise
