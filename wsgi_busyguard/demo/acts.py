"""The acts: their names, and what people read of them."""

from __future__ import annotations

from typing import NamedTuple


class Act(NamedTuple):
    """An act: the name that the processes know it by, and what people read."""

    name: str
    title: str
    text: str


ACTS = (
    Act("one", "as it was", "bare option httpchk, checks go through the app, no bound"),
    Act("two", "the remedy of 2013", "check off the pool, 503 while busy, no bound"),
    Act(
        "three", "the guard", "bounded queue, damped check, agent says maxconn, calls in a bulkhead"
    ),
)
