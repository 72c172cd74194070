"""An app for servers of several processes; what it does is in the path."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

from wsgi_busyguard.adapters.readers.mod_wsgi import queue_time


def app(environ, start_response):
    _, what, *rest = environ["PATH_INFO"].split("/")
    if what in FILES:
        file, size = FILES[what](*rest)
        start_response("200 OK", [("Content-Length", str(size))])
        return environ["wsgi.file_wrapper"](file, 8192)
    body = DOES.get(what, pid)(environ, *rest)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def sleep(environ, seconds):
    time.sleep(float(seconds))
    return str(queue_time(environ)).encode()


def until(environ, *path):
    """Wait until there is a file."""
    while not os.path.exists("/" + "/".join(path)):
        time.sleep(0.02)
    return str(queue_time(environ)).encode()


def switch(environ, seconds):
    """Sleep as greenlets do, which lets others run."""
    import gevent

    gevent.sleep(float(seconds))
    return b"switched"


def opened(path):
    return path.open("rb"), path.stat().st_size


class Readable:
    """All that PEP 3333 asks of a file."""

    def __init__(self, size):
        self._inner = io.BytesIO(b"x" * size)
        self.read = self._inner.read


def pid(*_):
    return str(os.getpid()).encode()


FILES = {
    "readable": lambda size: (Readable(int(size)), size),
    "file": lambda *path: opened(Path("/", *path)),
}
DOES = {"sleep": sleep, "until": until, "switch": switch}
