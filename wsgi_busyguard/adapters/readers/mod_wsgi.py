"""Reads the queue of a daemon process group of mod_wsgi, and how long a request has been in it.

The module ``mod_wsgi`` is what it should be inside Apache only, so nothing here imports it before
it is needed.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

from ..._support.listening_sockets import descriptors, look_at
from ...load import Load
from .prefork import Listeners, name_of, others, share_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...board.board import Board
    from .derived import DerivedAdapter

# What mod_wsgi has written into the environ since 4.0: whole microseconds. Since 6.0 it is a float
# of seconds, 0.0 in embedded mode.
MICROSECONDS = re.compile(r"[0-9]{15,17}")

# Nothing is from before 2000, and mod_wsgi's clock is not later than 2100.
EARLIEST_SECONDS, LATEST_SECONDS = 946684800.0, 4102444800.0

# Seconds; a longer wait is a clock that was set.
LONGEST_SECONDS = 600.0


def queue_time(environ: Mapping[str, Any]) -> float | None:
    """Return the seconds that a request has waited for a thread of its daemon process.

    ``None`` where mod_wsgi does not say: in embedded mode, and outside it. Both moments are from
    one clock, so nothing of this is skew.
    """
    start = _moment(environ.get("mod_wsgi.queue_start"))
    end = _moment(environ.get("mod_wsgi.daemon_start"))
    if start is None or end is None or not 0.0 <= end - start <= LONGEST_SECONDS:
        return None
    return end - start


def _moment(value: object) -> float | None:
    """Return the seconds since 1970; ``None`` if that is not what it says."""
    if isinstance(value, str) and MICROSECONDS.fullmatch(value):
        seconds = int(value) / 1e6
    elif isinstance(value, float):
        seconds = value
    else:
        return None
    return seconds if EARLIEST_SECONDS <= seconds <= LATEST_SECONDS else None


class ModWsgiAdapter:
    """Reads the load of the daemon process group that this process is one of.

    :raises RuntimeError: outside mod_wsgi, or if the group's listener is not to be found.

    Exact for a group of one process. Of a group of several each knows its own requests only, so the
    others' are taken to be as many as can be while requests wait, and none else; for those, post
    on a board: :func:`guarded_app`.

    In embedded mode nothing waits here, and only the requests being served are known.
    """

    def __init__(self) -> None:
        self._server = server()
        self._capacity = self._server.maximum_processes * threads()
        self._listeners = None if embedded() else Listeners([_listener()])

    def read(self) -> Load | None:
        """Return the figures of this instant; ``None`` if the queue cannot be read."""
        active = serving()
        if self._listeners is None:
            return Load(0, active, None)
        queued = self._listeners.waiting()
        if queued is None:
            return None
        if queued and self._server.maximum_processes > 1:
            active = self._capacity  # whoever finds a thread free does not wait
        return Load(queued, active, self._capacity)

    def share(self, board: Board) -> DerivedAdapter:
        """Return what reads this process's part of it, for a board on which the group posts."""
        return share_of(ProcessAdapter(), board)

    def __repr__(self) -> str:
        if self._listeners is None:
            return "<ModWsgiAdapter: embedded; no queue, no capacity>"
        return f"<ModWsgiAdapter of {self._capacity} at {self._listeners!r}>"


class ProcessAdapter:
    """Reads what one process serves, and the queue of its group."""

    def __init__(self) -> None:
        self._listeners = Listeners([_listener()])

    def read(self) -> Load | None:
        """Return the figures of this instant; ``None`` if the queue cannot be read."""
        queued = self._listeners.waiting()
        return None if queued is None else Load(queued, serving(), threads())

    def __repr__(self) -> str:
        return f"<ProcessAdapter at {self._listeners!r}>"


def threads() -> int:
    """Return how many requests each process of this group serves at once."""
    return int(server().threads_per_process)


def embedded() -> bool:
    """Return whether this process is one of Apache's own, and not of a daemon process group."""
    return not server().process_group


def serving() -> int:
    """Return how many requests this process serves, without the check that asks."""
    return others(len(server().active_requests))


def server() -> Any:
    """Return the module ``mod_wsgi`` of the Apache that this process is of.

    :raises RuntimeError: elsewhere. The package of that name, from PyPI, can be imported anywhere.
    """
    try:
        module = importlib.import_module("mod_wsgi")
    except ImportError:
        module = None
    if not hasattr(module, "process_group"):
        raise RuntimeError("expected to run inside Apache with mod_wsgi, which gives mod_wsgi")
    return module


def _listener() -> int:
    """Return the descriptor of the group's listener; a daemon process closes the other groups'.

    :raises RuntimeError: if it cannot be told.
    """
    names = {number: look_at(number, name_of) for number in descriptors()}
    found = {number: name for number, name in names.items() if isinstance(name, (str, bytes))}
    # An app may listen by itself; mod_wsgi's end in .PID.GENERATION.NUMBER.sock.
    ours = {number: name for number, name in found.items() if str(name).endswith(".sock")}
    for some in (found, ours):
        if len(some) == 1:
            return next(iter(some))
    raise RuntimeError(
        f"expected one Unix listener, that of the daemon process group, not {list(found.values())}"
    )
