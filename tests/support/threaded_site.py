"""A guarded waitress or cheroot site for the tests: told its options in JSON, then serves.

A control port on threads of its own says what ran and lets go of threads that hang.
"""

from __future__ import annotations

import collections
import importlib.metadata
import json
import logging
import os
import socket
import socketserver
import sys
import threading
import time
import traceback

from hoarding import hoard

from wsgi_busyguard import Monitor, remaining, under_pressure
from wsgi_busyguard.checkport import AgentPort, CheckPort

options = json.loads(sys.argv[1])
ran = collections.Counter()
began = []
released = threading.Event()
transitions = []


def app(environ, start_response):
    path = environ["SCRIPT_NAME"] + environ["PATH_INFO"]
    ran[path] += 1
    began.append(path)
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
        "query": environ["QUERY_STRING"],
        "script": environ["SCRIPT_NAME"],
        "scheme": environ["wsgi.url_scheme"],
        "waited": environ.get("busyguard.waited"),
        "remaining": remaining(environ),
        "deadline": environ.get("busyguard.deadline", 0) - time.monotonic(),
        "monitor": repr(environ.get("busyguard.monitor")),
        "pressure": under_pressure(environ),
    }
    return plain(start_response, json.dumps(shown).encode())


def do_sleep(environ, start_response, seconds):
    time.sleep(float(seconds))
    return plain(start_response)


def do_hang(environ, start_response, *_):
    released.wait(60)
    return plain(start_response)


def do_hoard(environ, start_response, *parts):
    hoard("/" + "/".join(parts))
    return plain(start_response)


def do_cpu(environ, start_response, seconds):
    until = time.thread_time() + float(seconds)
    while time.thread_time() < until:
        sum(range(200))
    return plain(start_response)


def do_length(environ, start_response, *_):
    length = 0
    while chunk := environ["wsgi.input"].read(65536):
        length += len(chunk)
    return plain(start_response, str(length).encode())


def do_big(environ, start_response, size):
    return plain(start_response, b"x" * int(size))


def do_drip(environ, start_response, pieces):
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(int(pieces)):
        yield b"x" * 1000
        time.sleep(0.05)


def do_pieces(environ, start_response, count):
    """As many megabytes, one after the other."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(int(count)):
        yield b"x" * 1_000_000


def do_events(environ, start_response, seconds):
    """Server-sent events, of which the second one comes late."""
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    yield b"data: first\n\n"
    time.sleep(float(seconds))
    yield b"data: second\n\n"


def do_before(environ, start_response, *_):
    raise RuntimeError("before start_response")


def do_midway(environ, start_response, *_):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"some"
    raise RuntimeError("midway")


def refusal():
    """Return the refusal app that the options name."""
    name = options.pop("refusal", None)
    if name == "webob":
        from webob.exc import HTTPServiceUnavailable

        return HTTPServiceUnavailable("come back later")
    if name == "werkzeug":
        from werkzeug.exceptions import TooManyRequests

        return TooManyRequests("come back later")
    return {"raises": raising, "slow": slow, "odd header": odd_header}.get(name)


def raising(environ, start_response):
    raise RuntimeError("refusal")


def slow(environ, start_response):
    time.sleep(1)
    start_response("503 Later", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"slow"]


def odd_header(environ, start_response):
    start_response("503 Later", [("X-Odd", "\u20ac"), ("Content-Length", "3")])
    return [b"odd"]


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

    def on_began(self, _):
        return began

    def on_release(self, _):
        released.set()

    def on_transitions(self, _):
        return transitions

    def on_version(self, _):
        return importlib.metadata.version(name)

    def on_stock(self, _):
        """What the server itself says of its queue: queued, active, capacity."""
        return list(adapter.read()[:3])

    def on_threads(self, _):
        return sorted(thread.name for thread in threading.enumerate())

    def on_descriptors(self, _):
        return len(os.listdir("/proc/self/fd"))


def told(transition):
    transitions.append(
        [transition.state.value, threading.current_thread().name, transition.load.queued]
    )


def waitress_server(stock):
    from waitress import create_server

    from wsgi_busyguard.adapters.waitress import WaitressAdapter, guarded_server

    listener = socket.create_server(("127.0.0.1", 0))
    if stock:
        server = create_server(app, sockets=[listener], **options)
    else:
        if options.pop("moved", False):
            import wsgi_busyguard.adapters.waitress.server as module

            module.KNOWN[module.HTTPChannel] = ("a name of tomorrow",)
        server = guarded_server(
            app, sockets=[listener], refusal=refusal(), on_busy=told, on_free=told, **options
        )
    return server, WaitressAdapter(server), listener.getsockname()[1], server.run


def cheroot_server(stock):
    from cheroot.wsgi import Server

    from wsgi_busyguard.adapters.cheroot import CherootAdapter, guarded_server

    tls, adapter_of = options.pop("tls", None), options.pop("tls_by", "builtin")
    limit = options.pop("keep_alive_conn_limit", 10)
    if stock:
        options["numthreads"] = options.pop("threads")
        server = Server(("127.0.0.1", 0), app, request_queue_size=128, **options)
    else:
        server = guarded_server(
            app, ("127.0.0.1", 0), refusal=refusal(), on_busy=told, on_free=told, **options
        )
    server.keep_alive_conn_limit = limit
    if tls:
        from cheroot.server import get_ssl_adapter_class

        server.ssl_adapter = get_ssl_adapter_class(adapter_of)(tls, tls)
    server.prepare()
    return server, CherootAdapter(server), server.bind_addr[1], server.serve


def main():
    global name, adapter
    logging.basicConfig(format="%(name)s: %(message)s")
    name = options.pop("server")
    stock = options.pop("stock", False)
    server, adapter, port, run = globals()[f"{name}_server"](stock)
    control = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Control)
    control.daemon_threads = True
    threading.Thread(target=control.serve_forever, daemon=True).start()
    monitor = Monitor(adapter) if stock else server.guard.monitor
    ports = {
        "web": port,
        "check": CheckPort(monitor, "127.0.0.1:0").start().address[1],
        "agent": AgentPort(monitor, "127.0.0.1:0").start().address[1],
        "control": control.server_address[1],
    }
    print("ports:", json.dumps(ports), flush=True)
    run()
    print("ended", flush=True)


main()
