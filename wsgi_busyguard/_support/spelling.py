"""The name that is meant where somebody gives one that there is not."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# What servers and other middleware call the same, which no comparison of letters finds.
ELSEWHERE = {
    "threads": "slots",
    "workers": "slots",
    "concurrency": "slots",
    "max_concurrency": "slots",
    "capacity": "slots",
    "backlog": "max_queue",
    "queue": "max_queue",
    "queue_timeout": "max_wait",
    "timeout": "client_timeout",
    "policy": "ready",
    "paths": "ready_paths",
}


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return which of these names is meant, as it is spelled there; ``None`` if none is near."""
    spelled = {known.lower(): known for known in names}
    lower = name.lower()
    elsewhere = spelled.get(ELSEWHERE.get(lower, ""))
    near = difflib.get_close_matches(lower, spelled, 1)
    return elsewhere or (spelled[near[0]] if near else None)
