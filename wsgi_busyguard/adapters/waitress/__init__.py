"""waitress: a guard in front of its threads, and an adapter for a server that you have already."""

from __future__ import annotations

from ..readers.waitress import WaitressAdapter
from .dispatcher import GuardedDispatcher
from .server import guarded_server

__all__ = ["GuardedDispatcher", "WaitressAdapter", "guarded_server"]
