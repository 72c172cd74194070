"""gunicorn: a worker class of each kind that guards, chosen with ``-k``; one voice for the host.

``gunicorn -k wsgi_busyguard.adapters.gunicorn.GuardedThreads --threads 8 app:application``
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..readers.gunicorn import GunicornAdapter
from .gthread import GuardedThreads
from .sync import GuardedSync

if TYPE_CHECKING:
    from .gevent import GuardedGevent

__all__ = ["GuardedGevent", "GuardedSync", "GuardedThreads", "GunicornAdapter"]


def __getattr__(name: str) -> Any:
    """Import gevent for whoever asks for its worker, and for nobody else."""
    if name == "GuardedGevent":
        from .gevent import GuardedGevent

        return GuardedGevent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
