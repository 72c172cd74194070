"""Twisted: a guard in front of the reactor's thread pool, and adapters for pools of your own."""

from __future__ import annotations

from ..readers.twisted import TwistedAdapter
from .pool import BusyThreadPool
from .resource import GuardedWSGIResource
from .site import GuardedSite, guarded_site

__all__ = [
    "BusyThreadPool",
    "GuardedSite",
    "GuardedWSGIResource",
    "TwistedAdapter",
    "guarded_site",
]
