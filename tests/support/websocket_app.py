"""A Flask app with WebSockets, for every server that lets an app have its socket."""

from __future__ import annotations

import contextlib
import json
import os

from flask import Flask
from flask_sock import Sock

from wsgi_busyguard import BusyGuard
from wsgi_busyguard.checkport import CheckPort

app = Flask(__name__)
sock = Sock(app)


@app.route("/page")
def page():
    return "page"


@sock.route("/echo")
def echo(ws):
    while True:
        ws.send(ws.receive())


@sock.route("/bye")
def bye(ws):
    """Say one word; then the server closes."""
    with contextlib.suppress(OSError):  # nobody is there any more
        ws.send("bye")


if "GUARD" in os.environ:  # behind the middleware, on a server that has no guard of its own
    app = BusyGuard(app, **json.loads(os.environ["GUARD"]))
    check = CheckPort(app.monitor, "127.0.0.1:0").start()
    print(f"check: {check.address[1]}\n", end="", flush=True)
