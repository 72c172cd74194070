"""A stock CherryPy with a check port that reads its queue: says its ports, then serves."""

from __future__ import annotations

import json
import os
import sys
import time

import cherrypy

from wsgi_busyguard import Monitor
from wsgi_busyguard.adapters.cheroot import CherootAdapter
from wsgi_busyguard.checkport import CheckPort


def app(environ, start_response):
    while not os.path.exists(environ["PATH_INFO"]):
        time.sleep(0.02)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"done"]


monitor = Monitor(CherootAdapter(cherrypy.server))
check = CheckPort(monitor, "127.0.0.1:0", ready="exact").start()
cherrypy.tree.graft(app, "/until")
cherrypy.config.update(
    {
        "server.socket_port": int(sys.argv[1]),
        "server.socket_host": "127.0.0.1",
        "server.thread_pool": 4,
        "server.socket_queue_size": 128,
        "log.screen": False,
    }
)
cherrypy.engine.signals.subscribe()
cherrypy.engine.start()
print("check:", json.dumps(check.address[1]), flush=True)
cherrypy.engine.block()
