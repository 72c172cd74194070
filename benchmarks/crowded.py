"""The servers and apps of overload.py, and for nobody else.

Run with a site in JSON this file is one server with one app, with or without a guard; it listens on
the file descriptor that it inherits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import socket
import sys
import time
from typing import Any, NamedTuple

BACKLOG = 4096
CONNECTIONS = 5000  # a server that takes no more of them in has no queue to be read
BLOCK = bytes(256 * 1024)


class App(NamedTuple):
    """An app: mean seconds of a request, requests a second that ten threads and 32 serve."""

    service: float
    ten: float
    most: float


# A request of "mixed" waits 50 ms, so ten threads serve 182, and one interpreter at most 200.
# Code that releases the interpreter's lock has two cores.
APPS = {
    "sleeps": App(0.1, 100, 320),
    "computes": App(0.02, 50, 50),
    "mixed": App(0.055, 181.8, 200),
    "free": App(0.02, 100, 100),
    "lightheavy": App(0.0145, 69, 69),
    "half": App(0.1, 50, 50),
    "long": App(0.3, 33.3, 107),
}

_dice = random.Random(2013)


def spin(seconds: float) -> None:
    """Compute with the interpreter's lock."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def hash_blocks(seconds: float) -> None:
    """Compute without the interpreter's lock."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.sha256(BLOCK)


def work(kind: str) -> None:
    """Do what one request of this app does."""
    if kind in ("sleeps", "long"):
        time.sleep(APPS[kind].service)
    elif kind == "computes":
        spin(0.02)
    elif kind == "free":
        hash_blocks(0.02)
    elif kind == "lightheavy":
        spin(0.1 if _dice.random() < 0.1 else 0.005)
    else:
        computes, waits = (0.005, 0.05) if kind == "mixed" else (0.02, 0.08)
        spin(computes / 2)
        time.sleep(waits)
        spin(computes / 2)


def make_app(kind: str) -> Any:
    """Return the app, which answers how many seconds it took.

    A check that reaches it costs it nothing, so that it is no load.
    """

    def app(environ: Any, start_response: Any) -> list[bytes]:
        began = time.monotonic()
        if environ["REQUEST_METHOD"] != "OPTIONS":
            work(kind)
        body = b"%.4f" % (time.monotonic() - began)
        length = str(len(body))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", length)])
        return [body]

    return app


def known(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that this version of the guard has."""
    from wsgi_busyguard.options import GuardOptions

    names = {field.name for field in dataclasses.fields(GuardOptions)}
    return {name: value for name, value in options.items() if name in names}


def wrapped(site: dict[str, Any]) -> Any:
    """Return the app, behind BusyGuard where the site says so."""
    from wsgi_busyguard import BusyGuard

    app, options = make_app(site["app"]), known(site["options"])
    if site["guard"] == "pick-up":
        return BusyGuard(app, **options)
    if site["guard"] == "slots":
        return BusyGuard(app, slots=site["slots"], **options)
    return app


def serve_twisted(site: dict[str, Any], listener: socket.socket) -> None:
    """Serve by Twisted: its own resource, or guarded_site."""
    from twisted.internet import reactor
    from twisted.python.threadpool import ThreadPool
    from twisted.web.server import Site
    from twisted.web.wsgi import WSGIResource

    from wsgi_busyguard.adapters.twisted import guarded_site

    if site["guard"] == "gate":
        factory = guarded_site(make_app(site["app"]), site["threads"], **known(site["options"]))
    else:
        pool = ThreadPool(site["threads"], site["threads"])
        factory = Site(WSGIResource(reactor, pool, wrapped(site)))
        reactor.callWhenRunning(pool.start)  # type: ignore[attr-defined]
    listener.setblocking(False)
    port = listener.fileno()
    reactor.adoptStreamPort(port, socket.AF_INET, factory)  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


def serve_waitress(site: dict[str, Any], listener: socket.socket) -> None:
    """Serve by waitress: its own server, or guarded_server."""
    import logging

    import waitress.server

    from wsgi_busyguard.adapters.waitress import guarded_server

    logging.getLogger("waitress").setLevel(logging.ERROR)
    common = {"sockets": [listener], "threads": site["threads"], "backlog": BACKLOG}
    if site["guard"] == "gate":
        server = guarded_server(make_app(site["app"]), **common, **known(site["options"]))
    else:
        server = waitress.server.create_server(
            wrapped(site), connection_limit=CONNECTIONS, asyncore_use_poll=True, **common
        )
    server.run()


def serve_gunicorn(site: dict[str, Any], listener: socket.socket) -> None:
    """Serve by gunicorn: gthread, or GuardedThreads."""
    kind = "gthread"
    if site["guard"] == "gate":
        kind = "wsgi_busyguard.adapters.gunicorn.GuardedThreads"
        for name, value in known(site["options"]).items():
            os.environ[f"BUSYGUARD_{name.upper()}"] = str(int(value) if value is True else value)
    os.environ["CROWDED_SITE"] = json.dumps(site)
    command = ["-m", "gunicorn", "-k", kind, "--threads", str(site["threads"])]
    command += ["-b", f"fd://{listener.fileno()}", "--backlog", str(BACKLOG)]
    command += ["--worker-connections", str(CONNECTIONS), "--log-level", "error"]
    command += ["--graceful-timeout", "1", "--chdir", os.path.dirname(__file__)]
    listener.set_inheritable(True)
    os.execv(sys.executable, [sys.executable, *command, "crowded:application"])


if "CROWDED_SITE" in os.environ:
    _site = json.loads(os.environ["CROWDED_SITE"])
    application = make_app(_site["app"]) if _site["guard"] == "gate" else wrapped(_site)


def main() -> None:
    """Serve until killed."""
    site = json.loads(sys.argv[1])
    listener = socket.socket(fileno=site["fd"])
    serve = {"twisted": serve_twisted, "waitress": serve_waitress, "gunicorn": serve_gunicorn}
    serve[site["server"]](site, listener)


if __name__ == "__main__":
    main()
