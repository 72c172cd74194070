"""Reads the accept queue of uWSGI's listeners and what its workers do.

The module ``uwsgi`` exists inside uWSGI only, so nothing here imports it before it is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ...load import Load
from ...policy import whole
from .in_flight import calls_in_flight, count_calls
from .prefork import Listeners, others, share_of

if TYPE_CHECKING:
    from ...board.board import Board
    from .derived import DerivedAdapter


class WorkerAdapter:
    """Reads what one worker serves, and the queue of all."""

    def __init__(self) -> None:
        self._uwsgi = server()
        self._capacity = threads()
        if threads() > 1:
            count_calls()
        self._listeners = Listeners(self._uwsgi.sockets)

    def read(self) -> Load | None:
        """Return the figures of this instant; ``None`` if no listener's queue can be read."""
        queued = self._listeners.waiting()
        return None if queued is None else Load(queued, self._active(queued), self._capacity)

    def progress(self) -> int:
        """Return how many requests have been answered, by all processes."""
        return answered(self._uwsgi.workers())

    def _active(self, _queued: int) -> int:
        if threads() > 1:
            return calls_in_flight()
        here = self._uwsgi.worker_id()
        return others(working(worker for worker in self._uwsgi.workers() if worker["id"] == here))

    def __repr__(self) -> str:
        return f"<WorkerAdapter at {self._listeners!r}>"


class UwsgiAdapter(WorkerAdapter):
    """Reads the load of a whole uWSGI, in any of its workers.

    :param capacity: requests that may be in the application at once; ``None`` is processes times
        threads.
    :raises RuntimeError: outside uWSGI, and in a mule or spooler, where the listeners are closed.

    Exact for several processes of one thread and for one process of several. Of several processes
    of several threads each knows its own requests only, so the others' are taken to be as many as
    can be while requests wait, and none else; for those, post on a board: :func:`guarded_app`.

    ``uwsgi.listen_queue()`` is not used: in a worker it is always 0.
    """

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__()
        if capacity is None:
            capacity = self._uwsgi.numproc * threads()
        self._capacity = int(whole("capacity", capacity, least=1))

    def share(self, board: Board) -> DerivedAdapter:
        """Return what reads this worker's part of it, for a board on which every worker posts."""
        return share_of(WorkerAdapter(), board)

    def _active(self, queued: int) -> int:
        if threads() == 1:
            return others(working(self._uwsgi.workers()))
        # Whoever finds a thread free does not wait.
        full = queued and self._uwsgi.numproc > 1
        return others(self._capacity) if full else calls_in_flight()

    def __repr__(self) -> str:
        return f"<UwsgiAdapter of {self._capacity} at {self._listeners!r}>"


def threads() -> int:
    """Return how many requests each process of this uWSGI serves at once."""
    return int(server().cores)


def server() -> Any:
    """Return the module ``uwsgi`` of the server that this process is of.

    :raises RuntimeError: outside uWSGI, and in a mule or a spooler.
    """
    try:
        uwsgi = importlib.import_module("uwsgi")
    except ImportError:
        raise RuntimeError("expected to run inside uWSGI, which gives the module uwsgi") from None
    if not hasattr(uwsgi, "numproc"):
        raise RuntimeError(f"expected uWSGI's own module uwsgi, not {uwsgi!r}")
    if uwsgi.mule_id() or uwsgi.i_am_the_spooler():
        raise RuntimeError(
            "uWSGI's listeners are closed in mules and spoolers: read the board there,"
            " by Watcher(Board(FILE))"
        )
    return uwsgi


def working(workers: Any) -> int:
    """Return how many of ``uwsgi.workers()`` are at work, be it for one of uWSGI's signals."""
    statuses = [worker["status"] for worker in workers if worker["pid"]]
    return sum(status == b"busy" or status.startswith(b"sig") for status in statuses)


def answered(workers: Any) -> int:
    """Return how many requests ``uwsgi.workers()`` have answered."""
    return sum(worker["requests"] for worker in workers)
