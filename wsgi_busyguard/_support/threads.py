"""A thread that tells the listeners, so that whoever sees a change need not."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from .launcher import launch
from .log import logger

if TYPE_CHECKING:
    from collections.abc import Callable


class Teller:
    """Calls what is put to it, in order, on a thread of its own.

    For listeners: a thread that sees a change may hold a server's lock, or be its loop.
    """

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.put: Callable[[Callable[[], object]], object] = self._news.put
        self._thread = threading.Thread(target=self._run, name="busyguard-teller", daemon=True)

    def start(self) -> None:
        """Begin, at once or as soon as a thread is to be had; what is put meanwhile waits."""
        launch(self._thread.start)

    def stop(self) -> None:
        """Stop after what has been put so far."""
        self._news.put(None)

    def _run(self) -> None:
        while (tell := self._news.get()) is not None:
            try:
                tell()
            except Exception:
                logger.exception("%r raised", tell)
