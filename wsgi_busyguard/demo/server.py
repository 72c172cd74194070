"""One of the servers: Twisted, the Django site, and what the act puts between them.

A process of its own. It says its ports, then its figures ten times a second.
"""

from __future__ import annotations

import argparse
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet import reactor as _reactor
from twisted.python.threadpool import ThreadPool
from twisted.web.resource import Resource
from twisted.web.server import Request, Site
from twisted.web.wsgi import WSGIResource

from ..adapters.twisted import BusyThreadPool, TwistedAdapter, guarded_site
from ..checkport.ports import AgentPort, CheckPort, introduce
from . import site
from .child import obey, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication

    from ..load import Load
    from ..monitor import Monitor

SAMPLE = 0.02  # seconds between two looks at the queue
SAY = 0.1  # seconds between two lines; each tells the longest queue since the last

reactor: Any = _reactor


class ActServer(NamedTuple):
    """What an act makes of the site."""

    site: Site
    read: Callable[[], Load | None]
    ports: dict[str, int]


class CheckOffThePool(Resource):
    """The remedy of 2013: the check is answered from the pool's state, not in the pool."""

    isLeaf = True

    def __init__(self, resource: WSGIResource, monitor: Monitor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._resource = resource
        self._monitor = monitor

    def render(self, request: Request) -> Any:
        """Answer a check in the reactor's thread; pass on the rest."""
        if request.method != b"OPTIONS" or request.path != b"/":
            return self._resource.render(request)
        verdict = self._monitor.check("exact")
        request.setResponseCode(200 if verdict.ready else 503)
        return verdict.word.encode()


def act_one(app: WSGIApplication, threads: int, client_timeout: float) -> ActServer:
    """Serve as it was: everything goes through a pool whose queue has no bound."""
    pool = ThreadPool(threads, threads)
    reactor.callWhenRunning(pool.start)
    return ActServer(Site(WSGIResource(reactor, pool, app)), TwistedAdapter(pool).read, {})


def act_two(app: WSGIApplication, threads: int, client_timeout: float) -> ActServer:
    """Serve with the remedy of 2013: a pool that knows when it is busy; still no bound."""
    pool = BusyThreadPool(threads, threads, "demo")
    reactor.callWhenRunning(pool.start)
    resource = CheckOffThePool(WSGIResource(reactor, pool, app), pool.monitor)
    return ActServer(Site(resource), pool.monitor.adapter.read, {})


def act_three(app: WSGIApplication, threads: int, client_timeout: float) -> ActServer:
    """Serve with the guard as it is shipped."""
    guarded = guarded_site(app, threads=threads, client_timeout=client_timeout)
    monitor: Monitor = guarded.guard.monitor
    check, agent = CheckPort(monitor, "127.0.0.1:0"), AgentPort(monitor, "127.0.0.1:0")
    introduce([check, agent])
    check.start()
    agent.start()
    ports = {"check": check.address[1], "agent": agent.address[1]}
    return ActServer(guarded, monitor.adapter.read, ports)


ACTS = {"one": act_one, "two": act_two, "three": act_three}


def main() -> None:
    """Serve until the pipe closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--act", choices=ACTS, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--client-timeout", type=float, required=True)
    parser.add_argument("--outside", type=int, required=True)
    options = parser.parse_args()
    app = site.build(options.outside, options.client_timeout, options.act == "three")
    server = ACTS[options.act](app, options.threads, options.client_timeout)
    port = reactor.listenTCP(0, server.site, 1024, "127.0.0.1")
    obey(lambda line: None)
    say(web=port.getHost().port, **server.ports)
    reporting = threading.Thread(target=_report, args=(server.read,), daemon=True)
    reactor.callWhenRunning(reporting.start)
    reactor.run()


def _report(read: Callable[[], Load | None]) -> None:
    """Say the figures again and again, each act with the same ruler."""
    longest, told = 0, 0.0
    while True:
        load = read()
        now = time.monotonic()
        longest = max(longest, load.queued if load else 0)
        if now - told >= SAY:
            active, spent = load.active if load else 0, site.spent_on_nobody
            say(at=now, queued=longest, active=active, pages=site.rendered, spent=spent)
            longest, told = 0, now
        time.sleep(SAMPLE)


if __name__ == "__main__":
    main()
