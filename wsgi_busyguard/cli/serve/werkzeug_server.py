"""Werkzeug's threaded server, which knows who is connected, and who of them is being answered."""

from __future__ import annotations

import io
import socket
import time
from typing import TYPE_CHECKING, Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from ..._support.listening_sockets import NO_DESCRIPTOR
from ...adapters.front.descriptors import Room, eviction_order, excess, hang_up, is_open, overdrawn
from ...adapters.front.last_connections import LOOK_SECONDS

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ...adapters.front.progress import Clients


class Handler(WSGIRequestHandler):
    """One connection, in a thread of its own."""

    timeout = 60
    server: ThreadedServer

    def setup(self) -> None:
        """Read the client from where its progress is seen."""
        super().setup()
        clients = self.server.clients
        self.watched = clients.watched(self.connection)
        # It counts as a user of the socket: one that an app closes stays open until the end.
        self._file = self.rfile
        read_from: Any = self.watched
        self.rfile = io.BufferedReader(socket.SocketIO(read_from, "r"))
        clients.begin(self.watched)

    def finish(self) -> None:
        """End."""
        self.server.clients.end(self.watched)
        super().finish()

    def run_wsgi(self) -> None:
        """Answer a request, to the last byte."""
        server = self.server
        server.answering.add(self)
        try:
            super().run_wsgi()
        finally:
            server.connected.pop(self.connection, None)
            server.connected[self.connection] = True  # the last, from now on
            server.answering.discard(self)

    def log(self, type: str, message: str, *args: Any) -> None:
        """Write nothing: a line a request is what an overloaded server needs least."""


class ThreadedServer(ThreadedWSGIServer):
    """The server.

    :ivar connected: the connections, the oldest first, and whether they ever asked for anything.
    :ivar answering: the handlers that are answering a request.
    """

    def __init__(self, listener: socket.socket, app: WSGIApplication, clients: Clients) -> None:
        self.clients = clients
        self.answering: set[Handler] = set()
        self.connected: dict[Any, bool] = {}
        self._room: Room[Any] = Room(self._end, is_open)
        host, port = listener.getsockname()[:2]
        super().__init__(host, port, app, Handler, fd=listener.fileno())

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection."""
        try:
            return super().get_request()
        except OSError as error:  # it is asked for again at once
            if error.errno in NO_DESCRIPTOR:
                self._room.make(1, self._candidates)
                time.sleep(LOOK_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection."""
        self._room.make(excess(request.fileno()), self._candidates)
        self.connected[request] = False
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        super().shutdown_request(request)
        self.connected.pop(request, None)

    def look(self) -> None:
        """Cut off clients that make no progress, and idle ones where descriptors run out."""
        self.clients.cut_the_stalled()
        self._room.make(overdrawn(), self._candidates)

    def _candidates(self) -> list[Any]:
        busy = {handler.connection for handler in self.answering.copy()}
        known = [(sock, asked) for sock, asked in self.connected.copy().items() if sock not in busy]
        idle, silent = ([s for s, asked in known if asked is which] for which in (True, False))
        return eviction_order(silent, idle, [])

    def _end(self, sock: Any) -> None:
        self.connected.pop(sock, None)
        hang_up(sock)  # its thread closes it
