"""An app for servers of several processes; what it does is in the path."""

from __future__ import annotations

import os
import time

from wsgi_busyguard.adapters.mod_wsgi import queue_time


def app(environ, start_response):
    _, what, *rest = environ["PATH_INFO"].split("/")
    body = DOES.get(what, pid)(environ, *rest)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def sleep(environ, seconds):
    time.sleep(float(seconds))
    return str(queue_time(environ)).encode()


def pid(*_):
    return str(os.getpid()).encode()


DOES = {"sleep": sleep}
