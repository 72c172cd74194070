"""Reads a stock cheroot server, or CherryPy's. Knows its thread pool and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...load import load_of

if TYPE_CHECKING:
    from ...load import Load


class CherootAdapter:
    """Reads the queue of a cheroot server.

    :param server: a :class:`cheroot.wsgi.Server`, or ``cherrypy.server``.

    It counts connections, and such as have not said anything yet are among them. What it reads
    changes between two of its looks; a connection that a thread has just taken may be in none of
    them. Connections that the kernel has not let in are not seen: cheroot lets only 5 wait there
    unless ``request_queue_size`` is raised. It knows no service times, see
    :ref:`how they are estimated <estimated>`.
    """

    def __init__(self, server: Any) -> None:
        if not hasattr(server, "requests") and not hasattr(server, "httpserver"):
            raise TypeError(
                f"server must be a cheroot.wsgi.Server or cherrypy.server, not {server!r}"
            )
        self._server = server

    def read(self) -> Load | None:
        """Return the figures; ``None`` before CherryPy has started. Callable from any thread."""
        # CherryPy makes its server when it starts.
        server = getattr(self._server, "httpserver", self._server)
        if server is None:
            return None
        pool = server.requests
        # ``max`` is only a ceiling: nothing in cheroot lets a pool grow. No public name says how
        # many there are; before the start there are none.
        threads = getattr(pool, "_threads", None)
        capacity = len(threads) if threads else pool.min
        return load_of(pool.qsize + (capacity - pool.idle if threads else 0), capacity)

    def __repr__(self) -> str:
        return f"<CherootAdapter of {type(self._server).__name__}>"
