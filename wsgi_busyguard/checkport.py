"""Listeners outside the worker pool: HTTP checks on one port, HAProxy's agent line on another.

Each has threads of its own, so it answers while every worker is stuck.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from .answers import Answers, figures, json_answer, not_found
from .checks import Ask, Checks
from .haproxy import Agent
from .policy import DAMPED, PATIENCE, Verdict, known_policy, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from .monitor import Monitor

logger = logging.getLogger("wsgi_busyguard")

# Seconds that a silent client may keep a thread of the check port.
SILENCE = 5.0

# Seconds that the agent waits for a balancer to say its name; most say none.
NAME_WITHIN = 0.02

# Seconds that the agent waits for a peer to read the line and close. A socket closed with
# something unread in it resets the connection, and the line could be lost.
LINGER = 1.0

LONGEST_NAME = 64
MOST_PEERS = 256


def address(text: str) -> tuple[str, int]:
    """Return the host and port that ``text`` names.

    ``HOST:PORT``, ``[IPV6]:PORT``, ``:PORT`` and ``PORT`` (both 127.0.0.1), and Twisted's
    ``tcp:PORT`` and ``tcp:PORT:interface=HOST``.

    :raises ValueError: if it names none.
    """
    if text.startswith("tcp:"):
        port, _, host = text[4:].partition(":interface=")
        host = host.replace("\\", "")
    else:
        host, _, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            port = ""  # an IPv6 address without its brackets: its last part is no port
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"expected HOST:PORT, with a port from 0 to 65535, not {text!r}")
    return host or "127.0.0.1", int(port)


class CheckPort:
    """Answers checks in HTTP: ``/readyz``, ``/livez``, ``OPTIONS`` of any path, and ``/load``.

    :param monitor: knows the state.
    :param listen: where, as ``HOST:PORT``; port 0 has the kernel choose.
    :param ready: the policy of ready checks that name none.
    :param patience: seconds of delay that the damped policy bears.
    :raises OSError: if it cannot listen there.
    :ivar address: host and port that it listens at.
    """

    def __init__(
        self, monitor: Monitor, listen: str, ready: str = DAMPED, patience: float = PATIENCE
    ) -> None:
        from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

        class Handler(WSGIRequestHandler):
            timeout = SILENCE

            def log(self, type: str, message: str, *args: Any) -> None:
                logger.debug("check port: %r", message % args if args else message)

        class Server(ThreadedWSGIServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Say little of what a peer did; Werkzeug would print a traceback."""
                logger.debug("check port: gave up on %r", client_address, exc_info=True)

        app = CheckApp(monitor, ready, patience)
        self._listener = bound(listen)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        host, port = self.address
        self._server = Server(host, port, app, Handler, fd=self._listener.fileno())
        # It looks ten times a second whether it has to stop.
        serve = partial(self._server.serve_forever, 0.1)
        self._thread = threading.Thread(target=serve, name="busyguard-check", daemon=True)

    def start(self) -> CheckPort:
        """Begin to answer, on threads of its own, and return itself."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop listening."""
        if self._thread.is_alive():  # else it would wait for an end that never comes
            self._server.shutdown()
            self._thread.join()  # it closes the socket too, and may be in the middle of that
        self._server.server_close()
        self._listener.close()


class CheckApp:
    """The WSGI app of the check port."""

    def __init__(self, monitor: Monitor, ready: str = DAMPED, patience: float = PATIENCE) -> None:
        self._monitor = monitor
        self._ready = known_policy(ready)
        self._patience = seconds("patience", patience)
        self._checks = Checks(True, ("/readyz", "/healthz"), ("/livez",))
        self._answers = Answers()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer; a WSGI call."""
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        asked_path = "/" if method == "OPTIONS" else path
        # Whoever reaches this port asks for the state, also if it came through a proxy.
        ask = self._checks.asked(method, asked_path, environ.get("QUERY_STRING", ""), ())
        if ask is not None:
            answer = self._answers.to(ask, environ.get("HTTP_ACCEPT"), self._check)
        elif path == "/load":
            answer = json_answer(self._load())
        else:
            answer = not_found("here are /readyz, /livez and /load")
        return answer(environ, start_response)

    def _check(self, ask: Ask) -> Verdict:
        return self._monitor.check(ask.ready or self._ready, self._patience)

    def _load(self) -> dict[str, Any]:
        verdict = self._monitor.check(self._ready, self._patience)
        load = verdict.load
        return {
            "version": 1,
            "state": verdict.word,
            "ready": verdict.ready,
            **figures(load),
            "idle": load.idle,
            "waited": load.waited,
            "service": load.service,
            "lag": load.lag,
        }


class AgentPort:
    """Answers HAProxy's ``agent-check`` with ``up maxconn:N``.

    One thread for all peers, none of which can hold up another.

    :param monitor: knows the load.
    :param listen: where, as ``HOST:PORT``; port 0 has the kernel choose.
    :raises OSError: if it cannot listen there.
    :ivar address: host and port that it listens at.
    """

    def __init__(self, monitor: Monitor, listen: str) -> None:
        self._agent = Agent(monitor)
        self._listener = bound(listen)
        self._listener.setblocking(False)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._peers: dict[socket.socket, _Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._stopper, self._stopped = socket.socketpair()
        self._selector.register(self._stopped, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="busyguard-agent", daemon=True)

    def start(self) -> AgentPort:
        """Begin to answer, on a thread of its own, and return itself."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop listening."""
        self._stopper.close()
        if self._thread.is_alive():
            self._thread.join()
        for connection in [*self._peers, self._listener, self._stopped]:
            connection.close()
        self._selector.close()

    def _serve(self) -> None:
        while True:
            now = time.monotonic()
            deadline = min((peer.deadline for peer in self._peers.values()), default=now + 60)
            for key, _ in self._selector.select(max(0.0, deadline - now)):
                if key.fileobj is self._stopped:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._attend(self._read, key.fileobj)
            now = time.monotonic()
            for peer in [peer for peer in self._peers.values() if peer.deadline <= now]:
                self._attend(self._late, peer.connection)

    def _attend(self, to: Callable[[_Peer], None], connection: Any) -> None:
        """See to one peer; whatever goes wrong is the end of that one alone."""
        try:
            peer = self._peers.get(connection)
            if peer is not None:  # else it had to make room for another one just now
                to(peer)
        except OSError:
            self._forget(connection)
        except Exception:
            logger.exception("agent port: gave up on one peer")
            self._forget(connection)

    def _accept(self) -> None:
        try:
            connection, peer_address = self._listener.accept()
        except OSError:
            # It has gone, or no file descriptor is left: then asking again at once is no use.
            time.sleep(NAME_WITHIN)
            return
        connection.setblocking(False)
        if len(self._peers) >= MOST_PEERS:
            self._forget(next(iter(self._peers)))
        name = str(peer_address[0]) if peer_address else "unix"
        self._peers[connection] = _Peer(connection, name, time.monotonic() + NAME_WITHIN)
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, peer: _Peer) -> None:
        data = peer.connection.recv(1024)
        if peer.answered or not data:
            if not data:
                if not peer.answered:
                    self._answer(peer)
                self._forget(peer.connection)
            return
        peer.said += data
        if b"\n" in peer.said or len(peer.said) >= LONGEST_NAME:
            self._answer(peer)

    def _late(self, peer: _Peer) -> None:
        if peer.answered:
            self._forget(peer.connection)
        else:
            self._answer(peer)

    def _answer(self, peer: _Peer) -> None:
        first = peer.said.splitlines()[0] if peer.said.splitlines() else b""
        name = first[:LONGEST_NAME].decode("ascii", "replace").strip()
        peer.answered = True
        peer.deadline = time.monotonic() + LINGER
        peer.connection.send(self._agent.line(name or peer.name))
        peer.connection.shutdown(socket.SHUT_WR)

    def _forget(self, connection: Any) -> None:
        peer = self._peers.pop(connection, None)
        if peer is not None:
            self._selector.unregister(connection)
            connection.close()


class _Peer:
    """One connection to the agent port."""

    __slots__ = ("answered", "connection", "deadline", "name", "said")

    def __init__(self, connection: socket.socket, name: str, deadline: float) -> None:
        self.connection = connection
        self.name = name
        self.deadline = deadline
        self.said = b""
        self.answered = False


def bound(listen: str) -> socket.socket:
    """Return a socket that listens at ``listen``."""
    host, port = address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=256)
