"""The site of benchmarks/outside.py: two quick views, and some that call an outside service.

``/front?0.08`` and ``/cart?0.08`` sleep for so long; ``/rates?0.08`` asks the first service, which
takes as long while it is well, ``/stock?0.08`` the second. If that fails they answer something
cheaper. ``KIND`` says what stands between a view and its service, ``PORTS`` where that is.
"""

from __future__ import annotations

import http.client
import os
import sys
import time

from wsgi_busyguard import BusyGuard
from wsgi_busyguard.bulkhead import Bulkhead
from wsgi_busyguard.deadlines import call_timeout

THREADS = 10

# What a careful operator says; a call that is well takes a tenth of it.
AT_MOST = 1.0

# What is called careful without a deadline.
CARELESS = 10.0

BULKHEAD, NUMBER, BREAKER, DEADLINE = "bulkhead", "bulkhead of 3", "pybreaker", "deadline"
BREAKER_DEADLINE, NOTHING, UNGUARDED = "pybreaker and deadline", "nothing", "no guard"

KIND = os.environ.get("KIND", BULKHEAD)
NAMES = ("rates", "stock")
PORTS = dict(zip(NAMES, map(int, os.environ.get("PORTS", "0 0").split()), strict=False))

bulkheads = {name: Bulkhead(name, at_most=3 if KIND == NUMBER else None) for name in NAMES}
breakers = {}
if KIND.startswith("pybreaker"):
    import pybreaker

    breakers = {name: pybreaker.CircuitBreaker(fail_max=3, reset_timeout=5) for name in NAMES}


def fetched(port: int, seconds: str, timeout: float) -> bytes:
    """Ask a service."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", f"/{seconds}")
        return connection.getresponse().read()
    finally:
        connection.close()


def asked(name: str, seconds: str) -> bytes:
    """Ask the service of this name, in the way that this site does."""
    port = PORTS[name]
    if KIND in {BULKHEAD, NUMBER}:
        with bulkheads[name] as one:
            return fetched(port, seconds, one.timeout(AT_MOST))
    limited = KIND in {DEADLINE, BREAKER_DEADLINE}
    timeout = call_timeout(AT_MOST) if limited else CARELESS
    if breakers:
        return breakers[name].call(fetched, port, seconds, timeout)
    return fetched(port, seconds, timeout)


def site(environ, start_response):
    """Answer ``live``, or ``fallback`` without the outside service."""
    name, seconds = environ["PATH_INFO"][1:], environ["QUERY_STRING"]
    body = b"live"
    if name in NAMES:
        try:
            asked(name, seconds)
        except Exception:
            body = b"fallback"
    else:
        time.sleep(float(seconds))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


application = site if KIND == UNGUARDED else BusyGuard(site)


def twisted() -> None:
    """Serve on Twisted, behind its guard or as it comes."""
    from twisted.internet import reactor
    from twisted.web.server import Site
    from twisted.web.wsgi import WSGIResource

    from wsgi_busyguard.adapters.twisted import guarded_site

    if KIND == UNGUARDED:
        reactor.suggestThreadPoolSize(THREADS)
        factory = Site(WSGIResource(reactor, reactor.getThreadPool(), site))
    else:
        factory = guarded_site(site, THREADS)
    port = reactor.listenTCP(0, factory, backlog=1024, interface="127.0.0.1")
    reactor.callWhenRunning(print, port.getHost().port, flush=True)
    reactor.run()


def waitress() -> None:
    """Serve on waitress as it comes, behind ``BusyGuard(app)`` or nothing."""
    from waitress import create_server

    server = create_server(application, listen="127.0.0.1:0", threads=THREADS, backlog=1024)
    print(server.effective_port, flush=True)
    server.run()


def gunicorn() -> None:
    """Serve on gunicorn's gthread, its guarded class or as it comes."""
    import socket

    with socket.socket() as chooses:
        chooses.bind(("127.0.0.1", 0))
        port = chooses.getsockname()[1]
    worker = "wsgi_busyguard.adapters.gunicorn.GuardedThreads"
    kind = "gthread" if KIND == UNGUARDED else worker
    print(port, flush=True)
    where = ["--bind", f"127.0.0.1:{port}", "--log-level", "warning", "--backlog", "1024"]
    command = ["-m", "gunicorn", "-k", kind, "--threads", str(THREADS), *where]
    os.environ["PYTHONPATH"] = os.path.dirname(__file__)
    os.execv(sys.executable, [sys.executable, *command, "outside_site:site"])


if __name__ == "__main__":
    {"twisted": twisted, "waitress": waitress, "gunicorn": gunicorn}[sys.argv[1]]()
