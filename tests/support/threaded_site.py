"""A guarded waitress or cheroot site for the tests: told its options in JSON, then serves."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import socket
import sys

import front_app
from front_app import app, heard

from wsgi_busyguard import Monitor
from wsgi_busyguard.checkport import AgentPort, CheckPort

options = json.loads(sys.argv[1])


def refusal():
    return front_app.refusal(options.pop("refusal", None))


class Control(front_app.Control):
    def on_version(self, _):
        return importlib.metadata.version(name)

    def on_stock(self, _):
        """What the server itself says of its queue: queued, active, capacity."""
        return list(adapter.read()[:3])


def waitress_server(stock):
    from waitress import create_server

    from wsgi_busyguard.adapters.waitress import WaitressAdapter, guarded_server

    listener = socket.create_server(("127.0.0.1", 0))
    if stock:
        server = create_server(app, sockets=[listener], **options)
    else:
        if options.pop("moved", False):
            import wsgi_busyguard.adapters.waitress.server as module

            module.KNOWN_NAMES[module.HTTPChannel] = ("a name of tomorrow",)
        server = guarded_server(
            app, sockets=[listener], refusal=refusal(), on_busy=heard, on_free=heard, **options
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
            app, ("127.0.0.1", 0), refusal=refusal(), on_busy=heard, on_free=heard, **options
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
    monitor = Monitor(adapter) if stock else server.guard.monitor
    ports = {
        "web": port,
        "check": CheckPort(monitor, "127.0.0.1:0").start().address[1],
        "agent": AgentPort(monitor, "127.0.0.1:0").start().address[1],
        "control": front_app.control(Control),
    }
    print("ports:", json.dumps(ports), flush=True)
    run()
    print("ended", flush=True)


main()
