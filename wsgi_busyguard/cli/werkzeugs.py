"""``busyguard serve --server werkzeug``: a thread a connection, and the guard as the queue."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from ..adapters.lastcall import HANDSHAKES, LINGER, LOOK, admit_no_more, pending
from ..checkport import bound
from ..middleware import BusyGuard

if TYPE_CHECKING:
    import argparse
    import socket

    from _typeshed.wsgi import WSGIApplication


def serve_werkzeug(app: WSGIApplication, arguments: argparse.Namespace) -> int:
    """Serve with Werkzeug's threaded server until SIGTERM or Ctrl-C."""
    from . import serve  # which knows this module

    with serve.said_in_one_line():
        guard = BusyGuard(app, slots=arguments.threads, **serve._guarding(arguments))
    with ExitStack() as stack:
        with serve.opening(arguments.listen):
            listener = stack.enter_context(bound(arguments.listen))
        server = _server(listener, guard)
        stack.callback(server.server_close)
        guard.monitor.serves = True  # before its first request
        if arguments.board is not None:
            poster: Any = guard.monitor.adapter
            poster.call()
        where = serve._start_ports(guard.monitor, arguments, stack)
        ending = Ending(server, listener, guard, arguments.grace)

        def stop(*_: object) -> None:
            serve.leave_at_next_signal()
            ending.told.set()

        threading.Thread(target=ending.stop_when_told, daemon=True).start()
        serve._at_signals(stop)
        host, port = listener.getsockname()[:2]
        serve._say(arguments, host, port, where)
        server.serve_forever(0.1)
        ending.serve_the_last()
    return 0


def _server(listener: socket.socket, guard: BusyGuard) -> Any:
    """Return a server that knows who is connected, and who of them is being answered."""
    from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

    class Handler(WSGIRequestHandler):
        timeout = 60

        def run_wsgi(self) -> None:
            """Answer a request, to the last byte."""
            answering.add(self)
            try:
                super().run_wsgi()
            finally:
                answering.discard(self)

        def log(self, type: str, message: str, *args: Any) -> None:
            """Write nothing: a line a request is what an overloaded server needs least."""

    class Server(ThreadedWSGIServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            """Start a thread for a connection."""
            connected.add(request)
            super().process_request(request, client_address)

        def shutdown_request(self, request: Any) -> None:
            """Close a connection."""
            super().shutdown_request(request)
            connected.discard(request)

    answering: set[Handler] = set()
    connected: set[Any] = set()
    host, port = listener.getsockname()[:2]
    server: Any = Server(host, port, guard, Handler, fd=listener.fileno())
    server.answering, server.connected = answering, connected
    return server


class Ending:
    """The end of a server: who is inside or waits is served, and then who has connected.

    :ivar told: set when it is to begin.
    """

    def __init__(self, server: Any, listener: socket.socket, guard: Any, grace: float) -> None:
        self._server = server
        self._listener = listener
        self._monitor = guard.monitor
        self._grace = grace
        self._opened_by = os.getpid()
        self._until = 0.0
        self.told = threading.Event()

    def stop_when_told(self) -> None:
        """Refuse new requests, wait until those inside are answered, and let nobody new in."""
        self.told.wait()
        self._until = time.monotonic() + self._grace
        gate: Any = getattr(self._monitor.adapter, "adapter", self._monitor.adapter)
        self._monitor.drain()
        gate.drain()
        while not gate.empty and time.monotonic() < self._until:
            time.sleep(0.05)
        admit_no_more(self._listener, self._opened_by)
        time.sleep(HANDSHAKES)
        self._server.shutdown()

    def serve_the_last(self) -> None:
        """Take in those whom the server's loop has left, and wait until all have their answers."""
        self._listener.setblocking(False)
        closing = time.monotonic() + LINGER
        while pending(self._listener) and time.monotonic() < closing:
            with suppress(OSError):  # gone already
                self._server.process_request(*self._listener.accept())
        self._listener.close()
        silent = time.monotonic() + LINGER
        while (now := time.monotonic()) < self._until and self._server.connected:
            # A slot may be left before the last byte is written.
            if now >= silent and not self._server.answering:
                break
            time.sleep(LOOK)
