"""Has waitress' own functional tests start guarded servers: a plugin for ``pytest -p``."""

from __future__ import annotations

import functools
from typing import Any

from waitress import server
from waitress.adjustments import Adjustments

from wsgi_busyguard.adapters.waitress.dispatcher import GuardedDispatcher, WaitressFront


def guarded(kind: Any) -> Any:
    """Return a server class whose instances have the guard in front of their threads."""

    @functools.wraps(kind, updated=())
    class Guarded(kind):
        def __init__(self, application: Any, map: Any = None, **more: Any) -> None:
            adjustments = {k: v for k, v in more.items() if hasattr(Adjustments, k)}
            threads = Adjustments(**adjustments).threads
            sockets: dict[int, Any] = {} if map is None else map
            front = WaitressFront(threads, sockets)
            front.dispatcher = GuardedDispatcher(front)
            super().__init__(
                front.guarded(application), sockets, dispatcher=front.dispatcher, **more
            )
            front.dispatcher.set_thread_count(threads)
            front.start()

    return Guarded


server.TcpWSGIServer = guarded(server.TcpWSGIServer)
server.UnixWSGIServer = guarded(server.UnixWSGIServer)
