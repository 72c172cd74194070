"""Has Twisted's own tests of its WSGI resource make guarded ones: a plugin for ``pytest -p``."""

from __future__ import annotations

from typing import Any

from twisted.web import wsgi

from wsgi_busyguard.adapters.twisted import GuardedWSGIResource

# What the stand-ins of those tests have not, for the stock resource needs nothing of it.
REACTOR = ("callWhenRunning", "addSystemEventTrigger", "callLater")
THREADS = 4


class Guarded(GuardedWSGIResource):
    def __init__(self, reactor: Any, threadpool: Any, application: Any) -> None:
        for name in REACTOR:
            if not hasattr(reactor, name):
                setattr(reactor, name, lambda *_, **__: None)
        if not hasattr(threadpool, "max"):
            threadpool.max = THREADS
        super().__init__(reactor, threadpool, application)


wsgi.WSGIResource = Guarded
