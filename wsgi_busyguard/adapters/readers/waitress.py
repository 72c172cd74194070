"""Reads a stock waitress server. Knows its task dispatcher and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...load import load_of

if TYPE_CHECKING:
    from ...load import Load

# The dispatcher's lock is held for microseconds, unless whoever has it waits for the interpreter's
# behind threads that compute, or for a handler of waitress's own log line about its queue, which is
# written under it; and that handler may come here.
PATIENCE_SECONDS = 0.05


class WaitressAdapter:
    """Reads the queue of a waitress server: exact, and from one instant.

    Where waitress's lock is not to be had within 50 ms the figures may be wrong by one.

    :param server: what :func:`waitress.create_server` returns.

    Requests that a client has pipelined behind one that is queued or runs are not counted: waitress
    takes them up one by one. It knows no service times, see
    :ref:`how they are estimated <estimated>`.
    """

    def __init__(self, server: Any) -> None:
        if not hasattr(server, "task_dispatcher"):
            raise TypeError(
                f"server must be a waitress server, as waitress.create_server() returns it,"
                f" not {server!r}"
            )
        self._server = server

    def read(self) -> Load:
        """Return the figures. Callable from any thread."""
        dispatcher = self._server.task_dispatcher
        locked = dispatcher.lock.acquire(timeout=PATIENCE_SECONDS)
        try:
            capacity = len(dispatcher.threads) - dispatcher.stop_count
            outstanding = len(dispatcher.queue) + dispatcher.active_count
        finally:
            if locked:
                dispatcher.lock.release()
        return load_of(outstanding, capacity)

    def __repr__(self) -> str:
        return f"<WaitressAdapter of {type(self._server).__name__}>"
