"""cheroot: a guard in front of its threads, and an adapter for a server that you have already."""

from __future__ import annotations

from ..readers.cheroot import CherootAdapter
from .server import GuardedServer, guarded_server

__all__ = ["CherootAdapter", "GuardedServer", "guarded_server"]
