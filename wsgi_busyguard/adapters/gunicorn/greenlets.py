"""gevent workers: a greenlet a connection, on a hub that one busy request can stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gunicorn.workers.ggevent import GeventWorker

from ...answers import Answers
from ...gate import Gate
from ...holding import holding
from .worker import Guarded, counting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class GuardedGevent(Guarded, GeventWorker):
    """gunicorn's gevent worker, with its requests counted.

    A thousand greenlets say nothing of what the app can bear; ``BUSYGUARD_SLOTS`` does, and then
    the guard is the queue in each worker. Beats come from the hub, so that one that is stuck shows.
    """

    loop = True

    def queue(self) -> Any:
        """Return the gate of the requests, which without a limit only counts."""
        options = self.options
        if options.slots is None:
            self._gate = counting(self.worker_connections)
        else:
            self._gate = Gate(
                options.slots,
                options.max_queue,
                options.max_wait,
                client_timeout=options.client_timeout,
            )
            self._gate.subscribe(lambda: self.poster.post())
        return self._gate

    def guarded(self, app: WSGIApplication) -> WSGIApplication:
        """Return the app behind the gate, and that behind the guard."""
        timeout = self.options.client_timeout
        refused = Answers(retry_after=self.options.retry_after).refused
        return super().guarded(
            holding(self._posting(app), self._gate, self.monitor, refused, timeout)
        )

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        """Serve a request, and post when it is over."""
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            self.poster.post()

    def _posting(self, app: WSGIApplication) -> WSGIApplication:
        """Return ``app``, with a post when a request has got in: the hub may be stuck from then."""

        def posting(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            self.poster.post()
            return app(environ, start_response)

        return posting
