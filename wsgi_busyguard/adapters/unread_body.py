"""Reads what is left of a refused request's body, where the server does not do that itself.

A server that closes a connection in which something lies unread resets it, and so does what comes
in after the close (RFC 9112, section 9.6). A proxy that still sends then never gets to read the
refusal: nginx says 502, which nobody may take for "it has not run".

What bounds it: bytes, seconds, and how many threads may do it at once, for a server has only so
many to spare, and a check needs one of them. Whoever sends more, or more slowly, or when enough
others are at it, is refused as before, and may be reset.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from .._support.locks import under
from .._support.log import logger
from .._support.unpatched import Bell, socket_at
from .detect import calling, is_a

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..policy import Reason

    Refused = Callable[[Reason], WSGIApplication]

# Bytes; nginx lets a body of 1 MB pass unless it is told otherwise, and a form with photographs is
# of some more.
MOST_BYTES = 10_000_000

# Seconds for all of it. What a proxy has buffered is here in milliseconds.
LONGEST_SECONDS = 1.0

# How many may be at it on a server that starts a thread for each connection.
MOST_THREADS = 64

PIECE_BYTES = 65536

# Packages that read the connection in a loop of their own, and give the app what has come.
BRIDGES = ("granian", "a2wsgi")


class UnreadBodyReader:
    """Reads bodies off, on the thread that is about to refuse; called with the environ."""

    def __init__(self) -> None:
        self.allow(1)

    def allow(self, threads: float) -> None:
        """Have at most so many threads do it at once, and at least one."""
        self._free = threading.Semaphore(int(min(max(threads, 1), MOST_THREADS)))

    def before(self, refused: Refused) -> Refused:
        """Return what refuses as ``refused`` does, when it has read what is left."""

        def refused_after(reason: Reason) -> WSGIApplication:
            refuse = refused(reason)

            def read_and_refuse(
                environ: WSGIEnvironment, start_response: StartResponse
            ) -> Iterable[bytes]:
                self(environ)
                return refuse(environ, start_response)

            return read_and_refuse

        return refused_after

    def __call__(self, environ: Mapping[str, Any]) -> None:
        """Read what is left. Whatever goes wrong, the refusal is what is to come."""
        left, chunked = _announced(environ)
        free = self._free
        if not left or not free.acquire(blocking=False):
            return
        body = None
        try:
            body = _body(environ, left, chunked)
            if body is not None:
                body.read_off(free.release)
        except Exception:
            logger.debug("could not read the body of a refused request", exc_info=True)
        finally:  # whatever is raised, a greenlet's time limit say, which is no Exception
            if body is None:
                free.release()


class Body:
    """The body of a request, as far as the server has not read it.

    :param read: returns at most so many bytes; none at the end.
    :param left: how many there may be.
    """

    def __init__(self, read: Callable[[int], bytes], left: int) -> None:
        self._read = read
        self._left = min(left, MOST_BYTES)
        self._over = False

    def read_off(self, done: Callable[[], object]) -> None:
        """Read it, within the limits; call ``done`` when no thread is at it any more."""
        raise NotImplementedError

    def _read_on(self) -> None:
        while self._left > 0 and not self._over:
            piece = self._read(min(PIECE_BYTES, self._left))
            if not piece:
                return
            self._left -= len(piece)


class ConnectionBody(Body):
    """One that is read from a connection; when the time is up, nothing more comes from there."""

    def __init__(self, read: Callable[[int], bytes], left: int, descriptor: int) -> None:
        super().__init__(read, left)
        # One of our own, for a number that the server has closed may be another connection's; and
        # a plain one, for to shut the inner one of a TLS socket says nothing to the peer.
        self._connection = socket_at(os.dup(descriptor))
        self._lock = threading.RLock()
        self._bell = Bell()

    def read_off(self, done: Callable[[], object]) -> None:
        """Read it here; another thread watches the clock."""
        with ExitStack() as ends:  # all of them, though a time limit of the app's be raised in one
            ends.callback(done)
            ends.callback(self._connection.close)
            ends.callback(self._bell.ring)
            ends.callback(under, self._lock, self._end)
            threading.Thread(target=self._watch, name="busyguard-leftovers", daemon=True).start()
            self._read_on()

    def _watch(self) -> None:
        if not self._bell.wait(LONGEST_SECONDS):
            under(self._lock, self._cut_off)

    def _end(self) -> None:
        """Note that from here on the connection may be for the next request."""
        self._over = True

    def _cut_off(self) -> None:
        """Have the read that waits end, unless all is over."""
        if not self._over:
            self._over = True
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RD)


class ServerBody(Body):
    """One that is read from a server whose connection is not seen.

    A read that waits cannot be ended there. So it is left alone when the time is up; it ends when
    the server lets go of the request. Only for inputs that any thread may read, and that nobody
    else reads any more.
    """

    def read_off(self, done: Callable[[], object]) -> None:
        """Have it be read by another thread, and wait for that."""
        bell = Bell()

        def work() -> None:
            try:
                self._read_on()
            except Exception:
                logger.debug("could not read the body of a refused request", exc_info=True)
            finally:
                done()
                bell.ring()

        try:
            threading.Thread(target=work, name="busyguard-leftovers", daemon=True).start()
        except BaseException:
            done()
            raise
        bell.wait(LONGEST_SECONDS)
        self._over = True


def _announced(environ: Mapping[str, Any]) -> tuple[int, bool]:
    """Return how many bytes a request's body may have, and whether it comes in chunks."""
    length = environ.get("CONTENT_LENGTH") or ""
    if length.isascii() and length.isdigit():
        return int(length[:18]), False
    chunked = "chunked" in environ.get("HTTP_TRANSFER_ENCODING", "").lower()
    return (MOST_BYTES if chunked else 0), chunked


def _body(environ: Mapping[str, Any], left: int, chunked: bool) -> Body | None:
    for look in (_gunicorn, _uwsgi, _cheroot, _bridge, _socketserver):
        body = look(environ, left, chunked)
        if body is not None:
            return body
    return None


def _gunicorn(environ: Mapping[str, Any], left: int, _: bool) -> Body | None:
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket):
        return None
    # Who expects a 100 has had it by now.
    return ConnectionBody(environ["wsgi.input"].read, left, connection.fileno())


def _uwsgi(environ: Mapping[str, Any], left: int, chunked: bool) -> Body | None:
    uwsgi: Any = sys.modules.get("uwsgi")  # cannot be imported anywhere else
    if not isinstance(environ.get("uwsgi.version"), bytes) or _expects(environ):
        return None
    read = (lambda _: uwsgi.chunked_read()) if chunked else environ["wsgi.input"].read
    return ConnectionBody(read, left, uwsgi.connection_fd())


def _cheroot(environ: Mapping[str, Any], left: int, _: bool) -> Body | None:
    thread: Any = threading.current_thread()
    if not is_a(thread, "cheroot.workers.threadpool", "WorkerThread"):
        return None
    # Who expects a 100 has had it by now.
    return ConnectionBody(environ["wsgi.input"].read, left, thread.conn.socket.fileno())


def _bridge(environ: Mapping[str, Any], left: int, _: bool) -> Body | None:
    body: Any = environ.get("wsgi.input")
    if type(body).__module__.partition(".")[0] not in BRIDGES or _expects(environ):
        return None
    return ServerBody(body.read, left)


def _socketserver(environ: Mapping[str, Any], left: int, chunked: bool) -> Body | None:
    """Look for Paste, wsgiref, and whatever else is made of the standard library's."""
    handler: Any = calling("socketserver", "__init__")
    if not is_a(handler, "socketserver", "BaseRequestHandler") or chunked or _expects(environ):
        return None  # they know nothing of pieces
    return ConnectionBody(environ["wsgi.input"].read, left, handler.request.fileno())


def _expects(environ: Mapping[str, Any]) -> bool:
    """Return whether it sends its body only when it is told to, which reading would do."""
    return "HTTP_EXPECT" in environ
