"""The kernel's queue of a server that accepts at once: who stands there cannot get in.

At a limit of its own, or without a file descriptor left, a server accepts nobody, while its threads
are idle and the queue in front of them is empty: by those figures it is free.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..._support.periodic import BEAT_SECONDS
from ...load import more_queued
from ..acceptqueue import in_the_kernel
from ..readers.derived import DerivedAdapter

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from ...load import Adapter, Load


class StandingQueue:
    """How long the kernel's queue has not become shorter.

    :param listeners: returns the listening sockets.
    """

    def __init__(self, listeners: Callable[[], Iterable[socket.socket]]) -> None:
        self._listeners = listeners
        self._length = 0
        self._since: float | None = None

    def look(self) -> None:
        """Look at it, a few times a second."""
        length = self._waiting()
        if not length:
            self._since = None
        elif self._since is None or length < self._length:
            self._since = time.monotonic()
        self._length = length

    def moved(self) -> None:
        """Note that somebody has been taken out of it. In any thread.

        For a server that accepts one as it can serve one: others come at the same rate, and at each
        look the queue may be as long as before.
        """
        self._since = None

    def before(self, adapter: Adapter) -> DerivedAdapter:
        """Return what reads an adapter's load and those who cannot get in."""

        def read() -> Load | None:
            load = adapter.read()
            return None if load is None else self.added(load)

        return DerivedAdapter(read, adapter)

    def added(self, load: Load) -> Load:
        """Return the load with those who cannot get in. In any thread.

        They are queued; and as nobody takes them in, the loop that should is late by as much.
        """
        length, age = self._standing()
        return more_queued(self._late(load, age), length) if length else load

    def late(self, load: Load) -> Load:
        """Return the load with their age alone, where somebody else counts them."""
        return self._late(load, self._standing()[1])

    @staticmethod
    def _late(load: Load, age: float) -> Load:
        return load._replace(lag=age) if age > load.lag else load

    def _standing(self) -> tuple[int, float]:
        """Return how many stand there, and for how long nobody has got in."""
        since = self._since
        age = 0.0 if since is None else time.monotonic() - since
        length = self._waiting() if age >= BEAT_SECONDS else 0
        return length, age if length else 0.0

    def _waiting(self) -> int:
        try:
            return in_the_kernel(self._listeners()) or 0
        except Exception:  # a server that is ending, or not as it was known: nobody stands there
            return 0
