"""Real WebSockets (flask-sock): the app takes the socket, and closes it when it likes."""

from __future__ import annotations

import json
import re
import threading

import pytest
from support.client import Line, ask, check, eventually, figures, request, together
from support.gunicorns import Gunicorn
from support.processes import HERE, Process, environment
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    RejectConnection,
    Request,
    TextMessage,
)

from servers.test_serve import COMMAND

APP = "websocket_app:app"


class Werkzeug(Process):
    """``busyguard serve --server werkzeug``."""

    def __init__(self, threads):
        ports = ["--listen=127.0.0.1:0", "--check=127.0.0.1:0"]
        bounds = [f"--threads={threads}", "--max-queue=0"]
        super().__init__(
            [*COMMAND, "serve", APP, "--server=werkzeug", *ports, *bounds],
            cwd=HERE,
            env=environment(),
        )
        try:
            self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", self.line("serving "))[1])
            self.check = int(self.line("checks at http://127.0.0.1:"))
        except BaseException:
            self.reap()
            raise

    @property
    def load(self):
        return figures(self.check)


# Whoever asks twice must not be taken for gone in between: by default that is after 2 s.
KEPT = ("--keep-alive", "30")


def guarded_threads(threads):
    return Gunicorn("--threads", str(threads), *KEPT, app=APP, max_queue=0)


def guarded_gevent(threads):
    return Gunicorn(kind="GuardedGevent", app=APP, slots=threads, max_queue=0)


def middleware(kind):
    """gunicorn's own worker and the guard as a middleware, with room for those it refuses."""

    def start(threads):
        guard = json.dumps({"slots": threads, "max_queue": 0})
        options = ["--threads", str(threads + 3), *KEPT] if kind == "gthread" else []
        server = Gunicorn(*options, kind=kind, app=APP, ports=False, env=environment(GUARD=guard))
        server.check = int(server.line("check: "))
        return server

    return start


SERVERS = {
    "GuardedThreads": guarded_threads,
    "GuardedGevent": guarded_gevent,
    "gthread": middleware("gthread"),
    "gevent": middleware("gevent"),
    "werkzeug": Werkzeug,
}


@pytest.fixture(params=SERVERS)
def serve(request):
    """Starts the app on one server or the other, with so many slots and no queue."""
    servers = []

    def start(threads):
        servers.append(SERVERS[request.param](threads))
        return servers[-1]

    yield start
    for server in servers:
        server.reap()
        assert "Traceback" not in server.output, server.output


class WebSocket(Line):
    """The client's end of a WebSocket.

    :ivar status: of the answer to the upgrade.
    """

    def __init__(self, port, path):
        super().__init__(port)
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._came = []
        self.send(self._protocol.send(Request(host="localhost", target=path)))
        answer = self._event()
        self.status = answer.status_code if isinstance(answer, RejectConnection) else 101
        assert isinstance(answer, (RejectConnection, AcceptConnection))

    def _event(self):
        while not self._came:
            self._protocol.receive_data(self.socket.recv(4096) or None)
            self._came.extend(self._protocol.events())
        return self._came.pop(0)

    def says(self, text):
        self.send(self._protocol.send(TextMessage(data=text)))

    def hears(self):
        """Return what comes next; ``None`` when the server closes."""
        event = self._event()
        return event.data if isinstance(event, TextMessage) else None

    def echoes(self, text):
        self.says(text)
        return self.hears()

    def ends(self):
        """Close it, as a browser does: say so, and wait until the server has closed."""
        self.send(self._protocol.send(CloseConnection(code=1000)))
        while self.socket.recv(4096):
            pass
        self.close()


@pytest.fixture
def opened():
    """Opens WebSockets, and lets go of them when the test is over."""
    sockets = []

    def open_one(server, path="/echo"):
        sockets.append(WebSocket(server.port, path))
        return sockets[-1]

    yield open_one
    for ws in sockets:
        ws.close()


def asked_twice(server):
    """Return what two requests heard, on one connection where the server keeps it."""
    with Line(server.port) as line:
        line.send(request(path="/page"))
        first = line.answer()
        if first.headers.get("connection", "").lower() == "close" or first.version == "HTTP/1.0":
            return [first.text, ask(server.port, path="/page").text]
        line.send(request(path="/page"))
        return [first.text, line.answer().text]


def test_bystanders_of_websockets_lose_nothing(serve, opened):
    """The number of a socket that the app has closed is the next connection's at once."""
    server = serve(8)
    for round_ in range(6):
        ws = opened(server)
        assert (ws.status, ws.echoes(f"round {round_}")) == (101, f"round {round_}")
        assert asked_twice(server) == ["page", "page"]
        ws.ends()
        assert asked_twice(server) == ["page", "page"]
        ws = opened(server, "/bye")
        assert [ws.hears(), ws.hears()] == ["bye", None]  # the server closes, and lingers
        assert asked_twice(server) == ["page", "page"]
        ws.close()
        assert asked_twice(server) == ["page", "page"]
    eventually(lambda: server.load["active"] == 0)


def test_many_bystanders_at_once_lose_nothing(serve, opened):
    server = serve(16)
    heard, stop = [], threading.Event()

    def ask_on():
        while not stop.is_set():
            heard.append(asked_twice(server))

    threads = [threading.Thread(target=ask_on, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            opened(server, "/bye").close()  # while the server is at it
            ws = opened(server)
            assert ws.echoes("heard") == "heard"
            ws.ends()
        eventually(lambda: len(heard) > 20)
    finally:
        stop.set()
    together(threads)
    assert [texts for texts in heard if texts != ["page", "page"]] == []
    eventually(lambda: server.load["active"] == 0)


def test_a_websocket_holds_a_slot_and_beyond_those_an_upgrade_is_refused(serve, opened):
    server = serve(2)
    held = [opened(server) for _ in range(2)]
    eventually(lambda: server.load["active"] == 2)
    assert opened(server).status == 503
    assert check(server.port).text in ("free", "busy")
    assert held[0].echoes("still here") == "still here"
    held[1].ends()
    eventually(lambda: server.load["active"] == 1)
    assert opened(server).echoes("there is room again") == "there is room again"


def test_a_stop_waits_for_a_websocket(serve, opened):
    server = serve(2)
    ws = opened(server)
    assert ws.echoes("before") == "before"
    server.signal()
    assert ws.echoes("while it stops") == "while it stops"
    ws.ends()
    assert server.ended() == 0
