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


class _UnknownWorker(ImportError, RuntimeError):
    """There is no such worker class. gunicorn tells a RuntimeError of its start in one line."""


def __getattr__(name: str) -> Any:
    """Import gevent for whoever asks for its worker, and for nobody else."""
    if name == "GuardedGevent":
        from .gevent import GuardedGevent

        return GuardedGevent
    # Of an AttributeError gunicorn would make "str object is not callable", with a traceback.
    if name.startswith("Guarded"):
        known = ", ".join(each for each in __all__ if each.startswith("Guarded"))
        raise _UnknownWorker(f"no worker class {name!r} in {__name__}: there are {known}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
