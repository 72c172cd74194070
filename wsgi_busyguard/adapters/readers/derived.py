"""An adapter that is made of another one, for what is to be read in another way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...counters import Counts
from ...load import Progresses, Subscribes

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...counters import Counters
    from ...load import Load


class DerivedAdapter:
    """Reads by a function; counts, and tells of changes and progress, as another adapter does.

    :param read: returns the load.
    :param adapter: the other one, by whose name this goes.
    :param counts: returns what is counted, where the other one does not count.
    """

    def __init__(
        self,
        read: Callable[[], Load | None],
        adapter: Any,
        counts: Callable[[], Counters | None] | None = None,
    ) -> None:
        self.read = read
        self._adapter = adapter
        if isinstance(adapter, Counts):
            counts = adapter.counts
        if counts is not None:
            self.counts = counts
        if isinstance(adapter, Subscribes):
            self.subscribe = adapter.subscribe
        if isinstance(adapter, Progresses):
            self.progress = adapter.progress

    def __repr__(self) -> str:
        return repr(self._adapter)
