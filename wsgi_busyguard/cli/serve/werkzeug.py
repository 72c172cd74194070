"""``busyguard serve --server werkzeug``: a thread a connection, and the guard as the queue."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from ..._support.listener import bound
from ..._support.periodic import BEAT_SECONDS, Periodic
from ...adapters.front.accept_backlog import StandingQueue
from ...adapters.front.last_connections import LINGER_SECONDS, last_call, pending
from ...adapters.front.progress import Clients
from ...middleware import BusyGuard
from ..usage_errors import opening, usage_errors
from .startup import announce, at_signals, guard_options, leave_at_next_signal, start_ports

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication

    from ...gate import Gate
    from ...monitor import Monitor


def serve_werkzeug(app: WSGIApplication, arguments: argparse.Namespace) -> int:
    """Serve with Werkzeug's threaded server until SIGTERM or Ctrl-C."""
    from .werkzeug_server import ThreadedServer

    with usage_errors():
        given = guard_options(arguments)
        given.pop("progress_timeout", None)  # the server's here
        guard = BusyGuard(app, slots=arguments.threads, **given)
    with ExitStack() as stack:
        with opening(arguments.listen):
            listener = stack.enter_context(bound(arguments.listen))
        server = ThreadedServer(listener, guard, Clients(arguments.options.progress_timeout))
        stack.callback(server.server_close)
        # With a board the monitor reads what all processes post, and this one posts what it reads.
        reader: Any = guard.monitor if arguments.options.board is None else guard.monitor.adapter
        gate = reader.adapter
        watch = _watching(listener, guard.monitor, reader, server.look)
        beats = Periodic(watch, BEAT_SECONDS, "busyguard-beat")
        stack.callback(beats.stop, wait=True)
        guard.monitor.serves = True  # before its first request
        if arguments.options.board is not None:
            publisher: Any = guard.monitor.adapter
            publisher.call()
        where = start_ports(guard.monitor, arguments, stack)
        shutdown = GracefulShutdown(server, listener, guard.monitor, gate, arguments.grace)

        def stop(*_: object) -> None:
            leave_at_next_signal()
            shutdown.asked.set()

        threading.Thread(target=shutdown.stop_when_asked, daemon=True).start()
        at_signals(stop)
        announce(arguments, listener.getsockname(), where)
        beats.start()
        server.serve_forever(0.1)
        while not shutdown.over.wait(0.1):  # without an end the next signal might not be seen
            pass
    return 0


def _watching(
    listener: socket.socket, monitor: Monitor, reader: Any, beside: Callable[[], object]
) -> Callable[[], object]:
    """Have a monitor know who cannot get in; return what is to be done for it again and again.

    :param reader: what reads the gate for it.
    """
    standing = StandingQueue(lambda: (listener,))
    reader.adapter = standing.before(reader.adapter)

    def look() -> None:
        beside()
        standing.look()
        monitor.refresh()

    return look


class GracefulShutdown:
    """The end of a server: those inside or in the queue are served, then those that have connected.

    :ivar asked: set when it is to begin.
    :ivar over: set when all is over.
    """

    def __init__(
        self, server: Any, listener: socket.socket, monitor: Monitor, gate: Gate, grace: float
    ) -> None:
        self._server = server
        self._listener = listener
        self._monitor = monitor
        self._gate = gate
        self._grace = grace
        self._opened_by = os.getpid()
        self.asked = threading.Event()
        self.over = threading.Event()

    def stop_when_asked(self) -> None:
        """Refuse new requests, wait until those inside are answered, and make the last call."""
        self.asked.wait()
        try:
            self._stop(time.monotonic() + self._grace)
        finally:
            self.over.set()

    def _stop(self, until: float) -> None:
        gate = self._gate
        self._monitor.drain()
        gate.drain()
        while not gate.empty and time.monotonic() < until:
            time.sleep(0.05)
        closed = self.listeners()
        for pause in last_call(self, closed, self._opened_by, until, time.monotonic):
            time.sleep(pause)

    def listeners(self) -> list[socket.socket]:
        """Return the socket at which it listens."""
        return [self._listener]

    def stop_listening(self) -> None:
        """End the server's loop, take in those whom it has left, and close the socket."""
        self._server.shutdown()
        self._listener.setblocking(False)
        closing = time.monotonic() + LINGER_SECONDS
        while pending(self._listener) and time.monotonic() < closing:
            with suppress(OSError):  # gone already
                self._server.process_request(*self._listener.accept())
        self._listener.close()

    def awaited(self) -> bool:
        """Return whether anybody is connected."""
        return bool(self._server.connected)

    def flushed(self) -> bool:
        """Return whether nobody is being answered: a slot may be left before the last byte."""
        return not self._server.answering
