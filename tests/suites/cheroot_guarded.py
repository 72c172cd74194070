"""Has cheroot's own tests start guarded servers: a plugin for ``pytest -p``."""

from __future__ import annotations

from typing import Any

from cheroot import server, wsgi

from wsgi_busyguard.adapters.cheroot.front import CherootFront
from wsgi_busyguard.adapters.cheroot.server import GuardedServer

THREADS = 10  # as cheroot has it


class Guarded(GuardedServer):
    """A guarded server that is made, and given its app, as a stock one is."""

    def __init__(
        self, bind_addr: Any, wsgi_app: Any = None, numthreads: int = THREADS, **more: Any
    ) -> None:
        self._front = CherootFront(numthreads, max_queue=1000)  # fifty come at once
        super().__init__(self._front, 1, bind_addr, wsgi_app, numthreads=numthreads, **more)

    @property
    def wsgi_app(self) -> Any:
        return self._app

    @wsgi_app.setter
    def wsgi_app(self, app: Any) -> None:
        self._app = app and self._front.guarded(self._front.behind(app))


class Native(Guarded):
    """One whose requests go to a gateway that is no app."""

    def __init__(
        self, bind_addr: Any, gateway: Any, minthreads: int = THREADS, maxthreads: int = -1,
        **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(bind_addr, None, minthreads, max=maxthreads, **more)
        self.gateway = gateway


def parent(kind: Any, it: Any) -> Any:
    """Return what ``super`` does, for cheroot's own server, which asks for it by its name."""
    return super(Stock if kind is Guarded else kind, it)


Stock = wsgi.Server
wsgi.super = parent
wsgi.Server = Guarded
server.HTTPServer = Native
