"""A thread pool that is counted exactly, and whose queue is bounded in length and in age."""

from __future__ import annotations

from .carriers import QueueFull, QueueTimeout
from .executor import CountingExecutor

__all__ = [
    "CountingExecutor",
    "QueueFull",
    "QueueTimeout",
]
