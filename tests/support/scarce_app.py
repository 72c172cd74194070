"""An app whose guard wants all the threads that a guard can want; for stock workers."""

from __future__ import annotations

import os

from wsgi_busyguard import BusyGuard
from wsgi_busyguard.metrics.graphite import Graphite


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"served"]


NOWHERE = "127.0.0.1:1"

application = BusyGuard(app, board=os.environ["BOARD"], push=f"tcp:{NOWHERE}#app/web1")
application.monitor.on_busy(print)
sender = Graphite(application.monitor, NOWHERE).start()
