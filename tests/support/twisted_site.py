"""A guarded Twisted site for the tests: told its options in JSON, says its ports, then serves.

A control port on threads of its own says what ran and lets go of threads that hang.
"""

from __future__ import annotations

import collections
import gc
import json
import os
import socketserver
import sys
import threading
import time
import traceback

from hoarding import hoard
from twisted.internet import protocol, reactor
from twisted.internet.endpoints import serverFromString
from twisted.web import resource, wsgi
from twisted.web.server import Request
from zope.interface import implementer

from twisted import __version__
from wsgi_busyguard import remaining, under_pressure
from wsgi_busyguard.adapters.twisted import guarded_site
from wsgi_busyguard.checkport import AgentPort, CheckPort

options = json.loads(sys.argv[1])
ran = collections.Counter()
seen = []
released = threading.Event()
transitions = []


def app(environ, start_response):
    path = environ["SCRIPT_NAME"] + environ["PATH_INFO"]
    ran[path] += 1
    _, what, *rest = path.split("/")
    make = globals().get("do_" + what, do_echo)
    return make(environ, start_response, *rest)


def plain(start_response, body=b"done", **headers):
    fields = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    start_response("200 OK", [*fields, *headers.items()])
    return [body]


def do_echo(environ, start_response, *_):
    shown = {
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"],
        "script": environ["SCRIPT_NAME"],
        "waited": environ["busyguard.waited"],
        "remaining": remaining(environ),
        "deadline": environ["busyguard.deadline"] - time.monotonic(),
        "monitor": repr(environ["busyguard.monitor"]),
        "pressure": under_pressure(environ),
        "thread": threading.current_thread().name,
    }
    return plain(start_response, json.dumps(shown).encode())


def do_sleep(environ, start_response, seconds):
    time.sleep(float(seconds))
    return plain(start_response)


def do_hang(environ, start_response, *_):
    released.wait(60)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]  # no length: the client sees the end when Twisted has finished the request


def do_late(environ, start_response, *_):
    """Hang, then say how it went on arrival."""
    waited = environ["busyguard.waited"]
    left = remaining(environ)
    released.wait(60)
    return plain(start_response, json.dumps({"waited": waited, "remaining": left}).encode())


def do_hoard(environ, start_response, *parts):
    hoard("/" + "/".join(parts))
    return plain(start_response)


def do_cpu(environ, start_response, seconds):
    until = time.thread_time() + float(seconds)
    while time.thread_time() < until:
        sum(range(200))
    return plain(start_response)


def do_length(environ, start_response, *_):
    return plain(start_response, str(len(environ["wsgi.input"].read())).encode())


def do_big(environ, start_response, size):
    return plain(start_response, b"x" * int(size))


def do_drip(environ, start_response, pieces):
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(int(pieces)):
        yield b"x" * 1000
        time.sleep(0.05)


def do_before(environ, start_response, *_):
    raise RuntimeError("before start_response")


def do_after(environ, start_response, *_):
    start_response("200 OK", [("Content-Type", "text/plain")])
    raise RuntimeError("after start_response")


def do_midway(environ, start_response, *_):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"some"
    raise RuntimeError("midway")


class NoClose:
    def __iter__(self):
        return iter([b"no ", b"close"])


def do_noclose(environ, start_response, *_):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return NoClose()


class BadClose(NoClose):
    def close(self):
        raise RuntimeError("close")


def do_badclose(environ, start_response, *_):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return BadClose()


def refusal():
    """Return the refusal app that the options name."""
    name = options.pop("refusal", None)
    if name == "webob":
        from webob.exc import HTTPServiceUnavailable

        return HTTPServiceUnavailable("come back later")
    if name == "werkzeug":
        from werkzeug.exceptions import TooManyRequests

        return TooManyRequests("come back later")
    return {"raises": raising, "raises late": RaisingLate, "odd header": odd_header}.get(name)


def raising(environ, start_response):
    environ["wsgi.errors"].write("the refusal app says this\n")
    raise RuntimeError("refusal")


class RaisingLate:
    def __init__(self, environ, start_response):
        start_response("503 Later", [("Content-Type", "text/plain")])

    def __iter__(self):
        raise RuntimeError("refusal, late")


def odd_header(environ, start_response):
    start_response("503 Later", [("X-Odd", "\u20ac")])
    return [b"odd"]


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


class Control(socketserver.StreamRequestHandler):
    def handle(self):
        try:
            what = self.rfile.readline().decode().split()[1].strip("/")
            while self.rfile.readline().strip():
                pass
            name, _, value = what.partition("/")
            body = json.dumps(getattr(self, "on_" + name)(value)).encode()
        except Exception:
            traceback.print_exc()
            body = b"null"
        head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.wfile.write(head + body)

    def on_ran(self, _):
        return dict(ran)

    def on_release(self, _):
        released.set()

    def on_transitions(self, _):
        return transitions

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


def told(transition):
    name = threading.current_thread().name
    transitions.append([transition.state.value, name, transition.load.queued])


def main():
    global site
    root = options.pop("root", False)
    unix = options.pop("unix", None)
    stock = options.pop("stock", False)
    access_log = options.pop("log", None)
    slow = options.pop("sndbuf", None)
    http2 = options.pop("http2", None)
    site = guarded_site(app, refusal=refusal(), on_busy=told, on_free=told, **options)
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
    control = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Control)
    control.daemon_threads = True
    threading.Thread(target=control.serve_forever, daemon=True).start()
    monitor = site.guard.monitor
    ports = {
        "web": web.getHost().port,
        "check": CheckPort(monitor, "127.0.0.1:0").start().address[1],
        "agent": AgentPort(monitor, "127.0.0.1:0").start().address[1],
        "control": control.server_address[1],
        "unix": unix,
    }
    reactor.callWhenRunning(print, "ports:", json.dumps(ports), flush=True)
    reactor.run()
    print("reactor ended", flush=True)


main()
