"""Has each gunicorn that a test starts take guarded workers for the names of the stock ones."""

from __future__ import annotations

from gunicorn.workers import SUPPORTED_WORKERS

GUARDED = {"sync": "GuardedSync", "gthread": "GuardedThreads", "gevent": "GuardedGevent"}

for name, guarded in GUARDED.items():
    SUPPORTED_WORKERS[name] = f"wsgi_busyguard.adapters.gunicorn.{guarded}"
