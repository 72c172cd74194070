"""Reads a gevent.pywsgi server that has a Pool. Knows that server and nothing else of gevent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..acceptqueue import AcceptQueueAdapter

if TYPE_CHECKING:
    from ...load import Load


class PywsgiAdapter:
    """Reads a server that serves as many connections at once as its Pool has places.

    :param server: a :class:`gevent.pywsgi.WSGIServer` made with ``spawn=N`` or ``spawn=Pool(N)``.

    While the pool is full the server does not accept, so those who wait are in the kernel; where
    the kernel does not tell (not Linux), the load is unknown. A connection that is kept alive holds
    its place while nothing is asked. Without a Pool a server has no queue, and nothing can be read.
    """

    def __init__(self, server: Any) -> None:
        pool: Any = getattr(server, "pool", None)
        size = getattr(pool, "size", None)
        if size is None:
            raise TypeError(
                f"server must be a gevent.pywsgi.WSGIServer with spawn=Pool(N), not {server!r}"
            )
        self._name = type(server).__name__
        self._queue = AcceptQueueAdapter([server.socket], size, lambda: size - pool.free_count())

    def read(self) -> Load | None:
        """Return the figures of this instant. Callable from any thread; takes no lock."""
        return self._queue.read()

    def __repr__(self) -> str:
        return f"<PywsgiAdapter of {self._name}>"
