"""Serves anywhere_app.py with a server of any kind: ``anywhere_site.py NAME THREADS``.

As each server comes, but for the length of the kernel's queue: 40 clients at once are more than
most let wait there, and who is not let in tries again after a second.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socketserver
import sys

if sys.argv[1].endswith("greenlets"):
    os.environ["PATCH"] = "1"

from anywhere_app import application, port_is

BACKLOG = 128


def waitress(threads):
    from waitress import create_server

    server = create_server(application, listen="127.0.0.1:0", threads=threads)
    port_is(server.effective_port)
    server.run()


def cheroot(threads):
    from cheroot.wsgi import Server

    server = Server(("127.0.0.1", 0), application, threads, request_queue_size=BACKLOG)
    server.prepare()
    port_is(server.bind_addr[1])
    server.serve()


def paste(threads):
    from paste.httpserver import serve

    server = serve(
        *(application, "127.0.0.1", "0"),
        start_loop=False,
        use_threadpool=True,
        threadpool_workers=threads,
        request_queue_size=BACKLOG,
    )
    port_is(server.server_address[1])
    server.serve_forever()


def wsgiref(threads):
    from wsgiref.simple_server import WSGIServer, make_server

    kinds = (WSGIServer,) if threads == 1 else (socketserver.ThreadingMixIn, WSGIServer)
    kind = type("Server", kinds, {"request_queue_size": BACKLOG, "daemon_threads": True})
    server = make_server("127.0.0.1", 0, application, kind)
    port_is(server.server_port)
    server.serve_forever()


def werkzeug(threads):
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, application, threaded=threads > 1)
    port_is(server.server_port)
    server.serve_forever()


def django(threads):
    import django
    from django.conf import settings
    from django.core.management import call_command
    from django.core.management.commands import runserver
    from django.core.servers import basehttp

    settings.configure(DEBUG=True, WSGI_APPLICATION="anywhere_app.application")
    django.setup()

    class Server(basehttp.WSGIServer):
        request_queue_size = BACKLOG

        def server_activate(self):
            super().server_activate()
            port_is(self.server_port)

    runserver.Command.server_cls = Server
    runserver.Command.check_migrations = lambda self: None  # there is no database
    call_command("runserver", "127.0.0.1:0", use_reloader=False, skip_checks=True)


def pywsgi_greenlets(threads):
    from gevent.pywsgi import WSGIServer

    spawn = "default" if threads == 0 else threads
    server = WSGIServer(("127.0.0.1", 0), application, backlog=BACKLOG, spawn=spawn, log=None)
    server.start()
    port_is(server.server_port)
    server.serve_forever()


pywsgi_unpatched = pywsgi_greenlets


def twisted(threads):
    from twisted.internet import reactor
    from twisted.python.threadpool import ThreadPool
    from twisted.web.server import Site
    from twisted.web.wsgi import WSGIResource

    pool = ThreadPool(threads, threads)
    pool.start()
    reactor.addSystemEventTrigger("after", "shutdown", pool.stop)
    site = Site(WSGIResource(reactor, pool, application))
    port_is(reactor.listenTCP(0, site, BACKLOG, "127.0.0.1").getHost().port)
    reactor.run()


def a2wsgi(threads):
    import a2wsgi
    import uvicorn

    listener = uvicorn.Config(None, host="127.0.0.1", port=0).bind_socket()
    port_is(listener.getsockname()[1])
    app = a2wsgi.WSGIMiddleware(application, workers=threads)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])


def asgiref(threads):
    import uvicorn
    from asgiref.wsgi import WsgiToAsgi

    listener = uvicorn.Config(None, host="127.0.0.1", port=0).bind_socket()
    port_is(listener.getsockname()[1])
    app = WsgiToAsgi(application)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])


def tornado(threads):
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_sockets
    from tornado.wsgi import WSGIContainer

    async def serve():
        # Without an executor it calls the app in its loop.
        pool = {"executor": ThreadPoolExecutor(threads)} if threads else {}
        server = HTTPServer(WSGIContainer(application, **pool))
        [listener] = bind_sockets(0, "127.0.0.1", backlog=BACKLOG)
        server.add_socket(listener)
        port_is(listener.getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(serve())


def bjoern(_):
    import bjoern

    listener = bjoern.listen(application, "127.0.0.1", 0, listen_backlog=BACKLOG)
    port_is(listener.getsockname()[1])
    # Of SIGTERM it dies at once, of SIGINT when it has answered.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with contextlib.suppress(KeyboardInterrupt):
        bjoern.run()


globals()[sys.argv[1]](int(sys.argv[2]))
