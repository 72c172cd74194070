"""A guarded app for any server; the environment says how it is guarded. Says where its checks are.

``GUARD`` is JSON, the keyword arguments of BusyGuard; ``null`` is no guard at all.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time

from wsgi_busyguard import BusyGuard
from wsgi_busyguard.checkport import CheckPort

logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stderr)


def app(environ, start_response):
    """Sleep for as long as the path says, /sleep/1.5, or until a file is there, /until/tmp/go.

    Show the stamps at /stamps.
    /pieces/N sends a piece as long as a socket's buffers N times, /drip/N a byte every 50 ms,
    /file/N a file of so many bytes.
    """
    _, what, *rest = environ["PATH_INFO"].split("/")
    body = b"done"
    if what == "sleep":
        time.sleep(float(rest[0]))
    if what == "until":
        while not os.path.exists("/" + "/".join(rest)):
            time.sleep(0.02)
    if what == "pieces":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (b"x" * 8_000_000 for _ in range(int(rest[0])))
    if what == "drip":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (time.sleep(0.05) or b"x" for _ in range(int(rest[0])))
    if what == "file":
        file = tempfile.TemporaryFile()  # noqa: SIM115 (the server closes it)
        file.truncate(int(rest[0]))
        start_response("200 OK", [("Content-Length", rest[0])])
        return environ["wsgi.file_wrapper"](file, 65536)
    if what == "stamps":
        names = ("busyguard.waited", "busyguard.deadline")
        body = json.dumps([environ[name] for name in names] + [time.monotonic()]).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def guarded(app):
    options = json.loads(os.environ["GUARD"])
    if options is None:
        return app
    if "slots" not in options and "client_timeout" not in options:
        options.setdefault("max_wait", 600)  # tests hold requests for longer than clients wait
    guard = BusyGuard(app, **options)
    check = CheckPort(guard.monitor, "127.0.0.1:0").start()
    # One write, for another worker says the same at this moment.
    print(f"check: {check.address[1]}\n", end="", flush=True)
    return guard


def port_is(number):
    print(f"port: {number}\n", end="", flush=True)


if os.environ.get("PATCH"):
    from gevent import monkey

    monkey.patch_all()

application = guarded(app)
