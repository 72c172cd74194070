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
    "max_workers": "slots",
    "concurrency": "slots",
    "max_concurrency": "slots",
    "capacity": "slots",
    "backlog": "max_queue",
    "queue": "max_queue",
    "queue_size": "max_queue",
    "queue_timeout": "max_wait",
    "timeout": "client_timeout",
    "policy": "ready",
    "paths": "ready_paths",
}


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return which of these names is meant, as it is spelled there; ``None`` if none is near."""
    spelled = {known.lower(): known for known in names}
    elsewhere = {name: spelled[ours] for name, ours in ELSEWHERE.items() if ours in spelled}
    for known, cutoff in ((elsewhere, 0.85), (spelled, 0.6)):
        if near := difflib.get_close_matches(name.lower(), known, 1, cutoff):
            return known[near[0]]
    return None


def nearest_argument(argument: str, known: Iterable[str]) -> str | None:
    """Return which of these arguments of a command is meant, as ``nearest`` does."""
    spelled = {one.lstrip("-").replace("-", "_"): one for one in known}
    near = nearest(argument.partition("=")[0].lstrip("-").replace("-", "_"), spelled)
    return None if near is None else spelled[near]
