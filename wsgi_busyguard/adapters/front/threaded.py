"""Fronts of servers that have threads and no reactor: they beat, and tell, on threads of their own.

Knows sockets; how a server is told to stop or is asked what it has left is the server's part.
"""

from __future__ import annotations

import math
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from ..._support.log import logger
from ..._support.notifier import ListenerThread
from ..._support.periodic import BEAT_SECONDS, Periodic
from ..._support.unpatched import begin
from ...deadlines.environ import stamping
from ...options import FRONT, OPTIONS, from_keywords
from .accept_backlog import StandingQueue
from .base import GRACE_SECONDS, Front, Visit
from .last_connections import last_call
from .progress import Clients
from .sockets import disconnected, has_left

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ...deadlines.client_timeout import Client
    from ...load import Adapter

UNTENDED_MESSAGE = "could not look after the queue; tried again at every beat"


class ThreadedFront(Front):
    """A front that looks after its requests on a thread of its own.

    :param adapter: what to read instead of the gate, where the guard cannot stand in front.
    :param most_queued: how many the server can have wait.
    :param keywords: see :class:`~wsgi_busyguard.options.GuardOptions`.
    :ivar monitor: the :class:`~wsgi_busyguard.Monitor`; its listeners run in a thread of their own.
    :ivar clients: those for whom threads work.
    :ivar drained: set when a drain is over.
    :ivar shares: whether somebody else may have the listening sockets, too.
    """

    shares = False

    def __init__(
        self,
        threads: int,
        *,
        adapter: Adapter | None = None,
        most_queued: float = math.inf,
        **keywords: Any,
    ) -> None:
        options = from_keywords(FRONT, keywords)
        self.bounds = adapter is None
        self.clients = Clients(options.progress_timeout)
        self.drained = threading.Event()
        self._until: float | None = None
        self._ending: threading.Thread | None = None
        self._made_by = os.getpid()
        self._listener_thread = ListenerThread()
        self._standing = StandingQueue(self.listeners)
        self._beats = Periodic(self.beat, BEAT_SECONDS, "busyguard-beat", failing=UNTENDED_MESSAGE)
        super().__init__(
            threads,
            options,
            lambda gate: self._standing.before(gate if adapter is None else adapter),
            self._listener_thread.put,
            most_queued=most_queued,
        )

    def start(self) -> None:
        """Begin to look after those who wait, a few times a second."""
        super().start()
        self._listener_thread.start()
        self._beats.start()

    def stop(self) -> None:
        """Stop that, and let go of everybody who still waits."""
        self._beats.stop(wait=True)
        self._listener_thread.stop()
        super().stop()

    def drain(self, grace: float = GRACE_SECONDS) -> threading.Event:
        """Refuse new requests, have checks say draining, and let the rest finish.

        Returns at once, and may be called in a signal handler. The server ends when nobody is
        inside or waits and all is sent, or after ``grace`` seconds; then the returned event is set.
        A client that has connected by then gets an answer still, if it asks within half a second.
        """
        self.begin_drain()
        self._until = time.monotonic() + grace
        return self.drained

    def behind(self, app: WSGIApplication) -> WSGIApplication:
        """Return the app for a server in front of which the guard cannot stand."""
        stamped = self._reported(app)
        if not self.disabled:
            stamped = stamping(stamped, self.monitor, self.client_timeout, self._read_client)

        def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
            query = environ.get("QUERY_STRING", "")
            check = self.match(environ["REQUEST_METHOD"], path, query, environ)
            if check is None:
                return stamped(environ, start_response)
            return self.answer(check, environ.get("HTTP_ACCEPT"))(environ, start_response)

        return serve

    def beat(self) -> None:
        """Look after those who wait, and whether a drain is over."""
        if not self.disabled:
            waiting = {visit.socket: visit for visit in list(self.waiting)}
            for sock in disconnected(waiting):
                waiting[sock].give_up()
        self.clients.cut_the_stalled()
        super().beat()
        if self._ending is None and self._is_over():
            ending = threading.Thread(target=self._end, name="busyguard-end", daemon=True)
            begin(ending)  # if no thread is to be had now, the next beat tries again
            self._ending = ending
        self._standing.look()

    def flushed(self) -> bool:
        """Return whether all that was answered has been sent."""
        return True

    def awaited(self) -> bool:
        """Return whether somebody has connected and not asked yet, as far as is known."""
        return False

    def listeners(self) -> Iterable[socket.socket]:
        """Return the sockets at which the server listens."""
        return ()

    def stop_listening(self) -> None:
        """Close them, and serve those who have connected."""

    def end(self) -> None:
        """Have the server's loop end, in any thread, without waiting for it."""

    def _is_over(self) -> bool:
        return self._until is not None and (self.gate.empty or time.monotonic() >= self._until)

    def _end(self) -> None:
        try:
            closed = () if self.shares else self.listeners()
            for pause in last_call(self, closed, self._made_by, self._until or 0.0, time.monotonic):
                time.sleep(pause)
        except Exception:
            logger.exception("could not wait for the last ones")
        self.end()
        self.drained.set()


class SocketVisit(Visit):
    """A visit whose client is seen to leave by looking at its socket.

    :param sock: its client's.
    """

    def __init__(self, front: ThreadedFront, sock: Any, client: Client) -> None:
        super().__init__(front, client)
        self.socket = sock

    def has_left(self) -> bool:
        """Return whether its client is gone."""
        return has_left(self.socket)


def split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the guard, and all others, which are the server's."""
    ours = {name: value for name, value in options.items() if name in OPTIONS}
    return ours, {name: value for name, value in options.items() if name not in ours}
