"""A waitress server from one call: its dispatcher, the guard, and a stop that lets it finish."""

from __future__ import annotations

import inspect
import math
import select
from typing import TYPE_CHECKING, Any

from waitress import create_server
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer
from waitress.task import ThreadedTaskDispatcher

from ..._support.log import logger
from ..._support.wsgi_app import wsgi_app
from ...policy import limits, seconds, whole
from ..front.base import GRACE_SECONDS
from ..front.descriptors import SPARE_CONNECTIONS, limit
from ..front.signals import draining_at_signals
from ..front.threaded import split
from ..readers.waitress import WaitressAdapter
from .dispatcher import PATIENCE_SECONDS, GuardedDispatcher, WaitressFront

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# waitress's own default is 100, which 100 idle browsers reach.
CONNECTION_LIMIT = 1000

# What the guard uses of waitress's beside what its manual names, in all from 2.1 to 3.0.
KNOWN_NAMES = {
    ThreadedTaskDispatcher: ("add_task", "set_thread_count", "shutdown", "queue_logger"),
    BaseWSGIServer: ("channel_class", "accept", "handle_accept", "pull_trigger"),
    HTTPChannel: (
        *("service", "cancel", "handle_close", "close_when_flushed", "total_outbufs_len"),
        *("request", "last_activity"),
    ),
}


def moved() -> list[str]:
    """Return what is not as it is known in this waitress."""
    parameters = inspect.signature(create_server).parameters
    missing = [
        f"create_server({name}=)" for name in ("_dispatcher", "map") if name not in parameters
    ]
    for kind, names in KNOWN_NAMES.items():
        missing += [f"{kind.__name__}.{name}" for name in names if not hasattr(kind, name)]
    return missing


def guarded_server(
    app: WSGIApplication, *, threads: int = 4, grace: float = GRACE_SECONDS, **options: Any
) -> Any:
    """Return a waitress server that serves a WSGI app behind a guard.

    :param threads: how many requests may be in the app at once.
    :param grace: seconds that running requests get to finish when the process is told to stop.
    :param options: those of the guard, see :class:`~wsgi_busyguard.options.GuardOptions`; all
        others are waitress's: ``listen``, ``sockets``, ``connection_limit`` and so on.
    :raises ValueError, TypeError: for arguments that are not valid.

    The server's ``guard`` has ``monitor``, ``gate`` and ``drain(grace)``. Its ``run()`` returns
    when the server has ended. If it is called in the main thread, and nobody else handles SIGTERM
    and Ctrl-C, then checks say draining at the first of them, new requests are refused, and
    ``run()`` returns when the last one inside or in the queue has its answer, or when ``grace`` is
    over.
    """
    wsgi_app("app", app)
    whole("threads", threads, least=1)
    seconds("grace", grace)
    ours, adjustments = split(options)
    adjustments.setdefault("connection_limit", connections())
    # select() cannot look at file descriptors from 1024 on.
    adjustments.setdefault("asyncore_use_poll", hasattr(select, "poll"))
    missing = moved()
    if missing:
        logger.warning(
            "this waitress has no %s as it was known: the guard stands behind its threads, so"
            " checks wait for one, and nothing is refused",
            ", ".join(missing),
        )
        server = _behind(app, threads, ours, adjustments)
    else:
        server = _in_front(app, threads, ours, adjustments)
    server.guard.shares = "sockets" in adjustments
    server.run = _running(server, server.run, grace)
    server.guard.start()
    return server


def connections() -> int:
    """Return how many connections can be open and leave the app its file descriptors."""
    most = limit()
    return CONNECTION_LIMIT if most is None else max(100, min(CONNECTION_LIMIT, most // 2))


def _in_front(
    app: WSGIApplication, threads: int, ours: dict[str, Any], adjustments: dict[str, Any]
) -> Any:
    _, queue, _ = limits(threads, ours.get("max_queue"))
    most = int(adjustments["connection_limit"])
    if queue != math.inf and threads + queue + SPARE_CONNECTIONS > most:
        raise ValueError(
            f"connection_limit={most} is too few for threads={threads} and max_queue={queue}:"
            f" make it {threads + int(queue) + SPARE_CONNECTIONS} at least, or lower max_queue"
        )
    sockets: dict[int, Any] = {}
    room = most - threads - SPARE_CONNECTIONS
    front = WaitressFront(threads, sockets, most_queued=room, **ours)
    front.dispatcher = GuardedDispatcher(front)
    private = {"map": sockets, "_dispatcher": front.dispatcher}
    try:
        server: Any = create_server(front.guarded(app), threads=threads, **private, **adjustments)
    except BaseException:  # the port is taken, say
        front.abandon()
        raise
    front.dispatcher.set_thread_count(threads)
    front.make_room(most)
    server.guard = front
    return server


def _behind(
    app: WSGIApplication, threads: int, ours: dict[str, Any], adjustments: dict[str, Any]
) -> Any:
    late: list[WSGIApplication] = []  # the server wants the app, and the app the server's monitor

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        return late[0](environ, start_response)

    sockets: dict[int, Any] = {}
    server: Any = create_server(serve, map=sockets, threads=threads, **adjustments)
    adapter = WaitressAdapter(server)
    server.guard = WaitressFront(threads, sockets, adapter=adapter, **ours)
    late.append(server.guard.behind(app))
    return server


def _running(server: Any, run: Callable[[], object], grace: float) -> Callable[[], None]:
    def running() -> None:
        try:
            with draining_at_signals(server.guard, grace):
                run()
        finally:
            server.guard.stop()
            server.task_dispatcher.shutdown(timeout=PATIENCE_SECONDS)

    return running
