"""A cheroot server from one call, with the guard in front of its threads."""

from __future__ import annotations

import os
import socket
import threading
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from cheroot.makefile import MakeFile
from cheroot.server import HTTPConnection, HTTPRequest
from cheroot.wsgi import Server

from ..._support.log import logger
from ..._support.wsgi_app import wsgi_app
from ...policy import seconds, whole
from ..front.base import GRACE_SECONDS
from ..front.descriptors import Acceptor
from ..front.signals import draining_at_signals
from ..front.threaded import split
from ..front.waiting_sockets import FIRST_BYTE_SECONDS
from ..readers.cheroot import CherootAdapter
from .front import CherootFront, CherootVisit

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication

# cheroot's own default is 5; whoever comes sixth is not let in by the kernel, and tries again after
# a second.
BACKLOG_CONNECTIONS = 1024

# What is waited for, at the very end, are threads that are stuck.
PATIENCE_SECONDS = 1.0

# What the guard uses of cheroot's beside what its manual names, in all from 9.0 to 11.1.
KNOWN_NAMES = {
    Server: ("process_conn", "put_conn", "can_add_keepalive_connection", "ConnectionClass"),
    HTTPConnection: ("communicate", "close"),
    HTTPRequest: ("parse_request", "simple_response"),
}


def moved() -> list[str]:
    """Return what is not as it is known in this cheroot."""
    return [
        f"{kind.__name__}.{name}"
        for kind, names in KNOWN_NAMES.items()
        for name in names
        if not hasattr(kind, name)
    ]


class GuardedConnection(HTTPConnection):
    """A connection that gives its place back when its request has been served.

    :ivar accepted: when, in monotonic seconds; 0 before the front has seen it.
    :ivar used: whether a request has come by it.
    :ivar seen: how many bytes of a head that is not whole have been seen, and
    :ivar since: since when, in monotonic seconds.
    """

    visit: CherootVisit | None = None
    accepted = 0.0
    used = False
    seen = 0
    since: float | None = None

    def __init__(self, server: Any, sock: Any, makefile: Callable[..., Any] = MakeFile) -> None:
        # cheroot's own limit, server.timeout, is for the next byte, and begins anew with each.
        self._upload = upload = server.guard.clients.watched(sock)

        def make(sock: Any, mode: str, *size: int) -> Any:
            # What pyOpenSSL has is no socket, and cheroot makes a file only of its very own.
            is_watched = "r" in mode and isinstance(sock, socket.socket)
            return makefile(upload if is_watched else sock, mode, *size)

        super().__init__(server, sock, make)

    def communicate(self) -> bool:
        """Serve one request; return whether to keep the connection."""
        visit, self.visit = self.visit, None
        serve: Callable[[], bool] = super().communicate
        self.server.guard.clients.begin(self._upload)
        try:
            return serve() if visit is None else bool(visit.serve(serve))
        finally:
            self.used = True
            self.server.guard.clients.end(self._upload)
            self.server.guard.asking.pop(self, None)

    def close(self) -> None:
        """Close it."""
        guard = self.server.guard
        guard.asking.pop(self, None)
        # Of those in its loop cheroot closes the ones whose time is over, and all at its end.
        is_late = guard.idle.pop(self, self) is None and self.server.ready
        if is_late and (self.since is not None or not self.used):
            guard.answer_late(self)
        super().close()


class GuardedServer(Server):
    """A :class:`cheroot.wsgi.Server` with a guard; see :func:`guarded_server`."""

    ConnectionClass: Any = GuardedConnection

    def __init__(self, front: CherootFront, grace: float, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.guard = front
        self._grace = grace
        front.server = self
        if front.bounds:
            front.hand = super().process_conn
        else:  # the guard stands behind the threads
            self.ConnectionClass = HTTPConnection

    def process_conn(self, conn: Any) -> None:
        """Answer, refuse, or let in; a connection with something to read, or a new one."""
        if self.guard.bounds:
            self.guard.meet(conn)
        else:
            super().process_conn(conn)

    def put_conn(self, conn: Any) -> None:
        """Wait until there is something to read of a connection."""
        if self.guard.bounds:
            self.guard.idle[conn] = None
        super().put_conn(conn)

    def prepare(self) -> None:
        """Listen, and start the threads."""
        # Threads are daemons if they are started by one, and then those that are stuck do not keep
        # a process that has to go.
        raised: list[BaseException] = []

        def prepare() -> None:
            try:
                super(GuardedServer, self).prepare()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=prepare, daemon=True)
        thread.start()
        thread.join()
        if raised:
            raise raised[0]
        if self.guard.bounds:
            self.socket = self.guard.refusing(self.socket)
            self._accept_patiently()
        self.guard.shares = bool(os.getenv("LISTEN_PID"))  # by which cheroot takes systemd's socket
        self.guard.start()

    def _accept_patiently(self) -> None:
        """Have it wait a little while no file descriptor is left, if it is as it was known."""
        manager: Any = getattr(self, "_connections", None)
        accept = getattr(manager, "_from_server_socket", None)
        if accept is not None:
            make_room = partial(self.guard.make_room, 1, FIRST_BYTE_SECONDS)
            manager._from_server_socket = Acceptor(accept, make_room)

    def serve(self) -> None:
        """Serve until somebody stops it, or a drain is over."""
        with draining_at_signals(self.guard, self._grace):
            super().serve()
        # stop() goes on while this returns; what it closes last are connections.
        self.guard.stopped.wait(PATIENCE_SECONDS)

    def stop(self) -> None:
        """Stop at once; see :meth:`CherootFront.drain` for a stop that lets requests finish."""
        if self.ready:
            self.guard.stop()
        super().stop()
        self.guard.stopped.set()


def guarded_server(
    app: WSGIApplication,
    bind_addr: Any = ("127.0.0.1", 8080),
    *,
    threads: int = 10,
    grace: float = GRACE_SECONDS,
    **options: Any,
) -> GuardedServer:
    """Return a cheroot server that serves a WSGI app behind a guard.

    :param bind_addr: host and port, or the path of a UNIX socket.
    :param threads: how many requests may be in the app at once.
    :param grace: seconds that running requests get to finish when the process is told to stop.
    :param options: those of the guard, see :class:`~wsgi_busyguard.options.GuardOptions`; all
        others are cheroot's: ``server_name``, ``request_queue_size`` (1024 here) and so on.
    :raises ValueError, TypeError: for arguments that are not valid.

    The server's ``guard`` has ``monitor``, ``gate`` and ``drain(grace)``. ``start()`` returns when
    the server has ended. If it is called in the main thread, and nobody else handles SIGTERM and
    Ctrl-C, then checks say draining at the first of them, new requests are refused, and ``start()``
    returns when the last one inside or in the queue has its answer, or when ``grace`` is over.
    """
    wsgi_app("app", app)
    whole("threads", threads, least=1)
    seconds("grace", grace)
    ours, theirs = split(options)
    for name in ("numthreads", "accepted_queue_size", "accepted_queue_timeout"):
        if name in theirs:
            raise TypeError(f"give threads and max_queue, not {name}: the guard is the queue")
    theirs.setdefault("request_queue_size", BACKLOG_CONNECTIONS)
    theirs["numthreads"] = threads
    if moved():
        return _behind(app, ours, grace, bind_addr, theirs)
    front = CherootFront(threads, **ours)
    # Over TLS, and where a head is read in another way here, a check comes through a thread.
    return GuardedServer(front, grace, bind_addr, front.guarded(front.behind(app)), **theirs)


def _behind(
    app: WSGIApplication, ours: dict[str, Any], grace: float, bind_addr: Any, theirs: dict[str, Any]
) -> GuardedServer:
    logger.warning(
        "this cheroot has no %s as it was known: the guard stands behind its threads, so"
        " checks wait for one, and nothing is refused",
        ", ".join(moved()),
    )
    late = SimpleNamespace(httpserver=None)  # the server wants the guard, which reads the server
    front = CherootFront(theirs["numthreads"], adapter=CherootAdapter(late), **ours)
    server = GuardedServer(front, grace, bind_addr, front.behind(app), **theirs)
    late.httpserver = server
    return server
