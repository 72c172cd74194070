"""mod_wsgi: a guard in each process of a daemon process group, and the adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .front.prefork import GuardedProcess
from .readers.mod_wsgi import ModWsgiAdapter, queue_time, server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ..middleware import BusyGuard

__all__ = ["ModWsgiAdapter", "guarded_app", "queue_time"]


def guarded_app(app: WSGIApplication, **options: Any) -> BusyGuard:
    """Return ``app`` guarded for mod_wsgi: each process posts on the board, and reads the sum.

    :param options: those of :class:`~wsgi_busyguard.BusyGuard` but ``monitor``. With ``slots`` each
        process is a gate of so many. With ``board`` alone the queue in the kernel is read; one
        board is for one daemon process group.
    :raises RuntimeError: outside mod_wsgi; in embedded mode with ``board`` and without ``slots``.

    While the process is shutting down, checks say so.
    """
    module = server()
    guarded = GuardedProcess(app, ModWsgiAdapter, **options)
    guarded.begin()
    subscribe = getattr(module, "subscribe_shutdown", None)  # not in old ones
    if subscribe is not None:
        subscribe(lambda *_, **__: guarded.end())
    return guarded.guard
