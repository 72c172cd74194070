"""A guarded Twisted site for the tests: told its options in JSON, says its ports, then serves."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time

import front_app
from front_app import app, heard
from twisted.internet import protocol, reactor
from twisted.internet.endpoints import serverFromString
from twisted.web import http, resource, wsgi
from twisted.web.server import Request
from zope.interface import implementer

from twisted import __version__
from wsgi_busyguard.adapters.twisted import guarded_site
from wsgi_busyguard.checkport import AgentPort, CheckPort

options = json.loads(sys.argv[1])
parsed = [0]  # lengths of the fields that Twisted has parsed in its reactor thread


def parse_qs(data, *arguments, really=http.parse_qs, **named):
    parsed.append(len(data))
    return really(data, *arguments, **named)


http.parse_qs = parse_qs


def refusal():
    return front_app.refusal(options.pop("refusal", None))


@implementer(resource.IResource)
class Root:
    """A root that is no leaf, as sites have it that serve files beside a WSGI app."""

    isLeaf = False  # noqa: N815

    def __init__(self, leaf):
        self.leaf = leaf

    def getChildWithDefault(self, name, request):  # noqa: N802
        request.prepath.pop()
        request.postpath.insert(0, name)
        return self.leaf

    def putChild(self, path, child):  # noqa: N802
        raise NotImplementedError

    def render(self, request):
        return self.leaf.render(request)


class Control(front_app.Control):
    def on_pool(self, _):
        statistics = site.guard._pool._team.statistics()
        return [statistics.busyWorkerCount, statistics.backloggedWorkCount]

    def on_block(self, seconds):
        reactor.callFromThread(time.sleep, float(seconds))

    def on_unthreadable(self, _):
        """From now on no thread can be started, and the pool has none left."""
        pool = site.guard._pool
        done = threading.Event()

        def undo():
            pool.threadFactory = no_thread
            pool.min = 0
            pool._team.shrink(pool.max)
            done.set()

        reactor.callFromThread(undo)
        done.wait(5)

    def on_joined(self, _):
        reactor.callFromThread(setattr, site.guard._pool, "joined", True)

    def on_collected(self, _):
        """Let go of garbage, and from now on only of what nothing refers to."""
        gc.collect()
        gc.disable()

    def on_requests(self, _):
        return sum(isinstance(thing, Request) for thing in gc.get_objects())

    def on_periods(self, _):
        """Of each balancer, the seconds in which it asks the agent."""
        return {balancer["name"]: balancer["period"] for balancer in agent.agent.balancers()}

    def on_parsed(self, _):
        return max(parsed)

    def on_version(self, _):
        return __version__

    def on_workers(self, _):
        return site.guard._pool.workers


class Chosen(protocol.Factory):
    """The site, with connections that say of themselves that HTTP/2 was chosen, as TLS would."""

    def __init__(self, site):
        self.wrappedFactory = site
        self.doStart, self.doStop = site.doStart, site.doStop

    def buildProtocol(self, address):  # noqa: N802
        built = self.wrappedFactory.buildProtocol(address)
        connect = built.makeConnection

        def make(transport):
            transport.negotiatedProtocol = b"h2"
            connect(transport)

        built.makeConnection = make
        return built


def no_thread(*_, **__):
    raise RuntimeError("can't start new thread")


def main():
    global site, agent
    root = options.pop("root", False)
    unix = options.pop("unix", None)
    stock = options.pop("stock", False)
    access_log = options.pop("log", None)
    slow = options.pop("sndbuf", None)
    http2 = options.pop("http2", None)
    site = guarded_site(app, refusal=refusal(), on_busy=heard, on_free=heard, **options)
    if root:
        site.resource = Root(site.guard)
    if stock:
        site.resource = wsgi.WSGIResource(reactor, site.guard._pool, app)
    if access_log:
        site.logPath = os.fsencode(access_log)
    if isinstance(http2, str):
        address = f"ssl:0:interface=127.0.0.1:backlog=1024:privateKey={http2}:certKey={http2}"
        made = []
        serverFromString(reactor, address).listen(site).addCallback(made.append)
        web = made[0]
    else:
        factory = Chosen(site) if http2 else site
        web = reactor.listenTCP(0, factory, interface="127.0.0.1", backlog=1024)
    if slow:
        web.socket.setsockopt(__import__("socket").SOL_SOCKET, 7, slow)
    if unix:
        reactor.listenUNIX(unix, site)
    monitor = site.guard.monitor
    agent = AgentPort(monitor, "127.0.0.1:0").start()
    ports = {
        "web": web.getHost().port,
        "check": CheckPort(monitor, "127.0.0.1:0").start().address[1],
        "agent": agent.address[1],
        "control": front_app.control(Control),
        "unix": unix,
    }
    reactor.callWhenRunning(print, "ports:", json.dumps(ports), flush=True)
    reactor.run()
    print("reactor ended", flush=True)


main()
