"""Listeners outside the worker pool: HTTP checks on one port, HAProxy's agent line on another.

A thread of their own attends to both, so they answer while every worker is stuck.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from .._support.listener import listening
from .._support.listening_sockets import note_ours
from .._support.request_head import Head, read_head
from .._support.wsgi_call import called, least_environ
from ..board.watcher import Watcher
from ..checks import LIVE, LONGEST_QUERY, Check, Checks
from ..counters import watched
from ..dashboard import Page
from ..haproxy import MOST_BALANCERS, MOST_OF_ADDRESS, Agent, NewBalancers
from ..metrics.prometheus import Collector, Exposition
from ..metrics.report import look
from ..monitor import Monitor
from ..policy import DAMPED, DAMPED_PATIENCE, known_policy, seconds
from ..responses import (
    Responses,
    json_answer,
    metrics_answer,
    not_for,
    not_found,
    not_here,
    not_http,
    page_answer,
    stream_head,
    too_many,
)
from .event_loop import Loop

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from ..counters import Watched
    from ..load_report import LoadReport
    from ..responses import Answer
    from .connection import Peer

# Seconds in which a peer of the check port has to send its request.
REQUEST_SECONDS = 5.0

# A browser's head with its cookies is a tenth of this; servers take 8 KiB and more.
LONGEST_HEAD = 8192

# Seconds that the agent waits for a balancer to say its name; most say none.
NAME_SECONDS = 0.02

LONGEST_NAME = 64

# Seconds for which the figures that were sent to one who watches are new enough for the next.
FRESH_SECONDS = 0.5


SomePort = TypeVar("SomePort", bound="Port")


class Port:
    """A place to listen at, and what is answered there; a loop attends to it.

    :param listen: where, as ``HOST:PORT``; port 0 has the kernel choose.
    :param patience: seconds in which a peer has to say what it wants.
    :param share: whether other processes of this user may listen there too.
    :raises OSError: if it cannot listen there.
    :ivar address: host and port that it listens at.
    :ivar every: called once a second with the monotonic time, whether anybody asks or not.
    """

    every: Callable[[float], None] | None = None
    loop: Loop | None = None

    def __init__(self, listen: str, patience: float, share: bool = False) -> None:
        self.listener = listening(listen, share, self._note)
        self.address: tuple[str, int] = self.listener.getsockname()[:2]
        self.patience = patience

    def _note(self, listener: _socket.socket) -> None:
        self.listener = listener
        note_ours(self)

    def heard(self, peer: Peer, late: bool) -> bytes | None:
        """Return the answer to what ``peer`` has sent so far.

        ``None``: wait for more, which is no use if it is ``late`` or has ended. Nothing: close.
        An answer may go on: see ``feed`` of the peer.
        """
        raise NotImplementedError

    def answered(self, peer: Peer) -> None:
        """Note that ``peer`` has been sent its answer."""

    def start(self: SomePort) -> SomePort:
        """Begin to answer, on a thread of its own, and return itself."""
        (self.loop or Loop(self)).start()
        return self

    def stop(self) -> None:
        """Stop listening; what shares its loop stops too."""
        if self.loop is None:
            self.listener.close()
        else:
            self.loop.stop()


class CheckPort(Port):
    """Answers checks in HTTP, ``OPTIONS`` of any path, and shows the figures.

    ``/readyz`` and ``/livez``; ``/load`` and ``/load?watch``, ``/metrics``; ``/``, a page for
    people. A ready check that is 200 although a new request would wait for a second or more has
    ``x-envoy-degraded``. Each answer ends its connection, so no check is lost to one that was
    about to be closed.

    :param monitor: knows the state: a :class:`~wsgi_busyguard.Monitor`, or whatever watches
        several processes.
    :param listen: where, as ``HOST:PORT``; port 0 has the kernel choose.
    :param ready: the policy of ready checks that name none.
    :param patience: seconds of delay that the damped policy bears.
    :param share: whether other processes of this user may listen there too, each asked in turn.
    :raises OSError: if it cannot listen there.
    :ivar address: host and port that it listens at.
    """

    def __init__(
        self,
        monitor: Watched,
        listen: str,
        ready: str = DAMPED,
        patience: float = DAMPED_PATIENCE,
        *,
        share: bool = False,
    ) -> None:
        self._app = CheckApp(monitor, ready, patience)
        super().__init__(listen, REQUEST_SECONDS, share)
        host, port = self.address
        self._app.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._here = {"SERVER_NAME": host, "SERVER_PORT": str(port)}
        for_garbage = Head("GET", "", "", {}, (1, 1), 0)
        self._no_request = self._called(not_http(400), for_garbage)
        self._endless = self._called(not_http(431), for_garbage)
        self._crowded = self._called(too_many("too many are watching"), for_garbage)
        self._stream_head = stream_head() + b"retry: 2000\n\n"
        self._feeds = {"/load": Feed(self._app.event), "/": Feed(self._app.page_event)}
        self.every = self._app.page.look

    def shows(self, agent: AgentPort) -> None:
        """Have the balancers be among the figures that ask that port."""
        self._app.shows(agent.agent)

    def heard(self, peer: Peer, late: bool) -> bytes | None:
        """Return the answer to a request, once its head is complete."""
        try:
            head = read_head(peer.received[:LONGEST_HEAD])
        except ValueError:
            return self._no_request
        if head is None:
            return None if len(peer.received) < LONGEST_HEAD else self._endless
        # Only where nothing more can come is it safe to close at once.
        length = int(head.headers.get("CONTENT_LENGTH") or 0)
        chunked = "HTTP_TRANSFER_ENCODING" in head.headers
        peer.lingers = chunked or len(peer.received) != head.size + length
        feed = self._feeds.get(head.path)
        if feed is not None and head.method == "GET" and _watches(head.query):
            return self._watched(peer, feed)
        return self._called(self._app, head)

    def _watched(self, peer: Peer, feed: Feed) -> bytes:
        if self.loop is not None and self.loop.full:
            return self._crowded
        peer.feed = feed
        return self._stream_head + feed()

    def _called(self, app: Any, head: Head) -> bytes:
        more = {**self._here, **head.headers, "SERVER_PROTOCOL": f"HTTP/1.{head.version[1]}"}
        environ = least_environ(head.method, head.path, head.query, more)
        status, headers, body = called(app, environ)
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
        lines += ["Connection: close", "", ""]
        return "\r\n".join(lines).encode("latin-1") + b"".join(body)


class Feed:
    """Says the same to all who watch at about the same time.

    :param tell: returns what there is to say now, in one line.
    """

    def __init__(self, tell: Callable[[], str]) -> None:
        self._tell = tell
        self._event = b""
        self._at = -FRESH_SECONDS

    def __call__(self) -> bytes:
        """Return a server-sent event."""
        now = time.monotonic()
        if now - self._at >= FRESH_SECONDS:
            self._event = f"data: {self._tell()}\n\n".encode()
            self._at = now
        return self._event


@runtime_checkable
class SeesProgress(Protocol):
    """What watches several processes."""

    def alive(self) -> bool:
        """Return whether any of them makes progress."""


class CheckApp:
    """The WSGI app of the check port; answers at once."""

    def __init__(
        self, monitor: Watched, ready: str = DAMPED, patience: float = DAMPED_PATIENCE
    ) -> None:
        self._monitor = watched(monitor)
        self.agent: Agent | None = None
        self.address: str | None = None
        self._ready = known_policy(ready)
        self._patience = seconds("patience", patience)
        self._alive = monitor.alive if isinstance(monitor, SeesProgress) else None
        self._checks = Checks(True, ("/readyz", "/healthz"), ("/livez",), ready)
        # Who reads this port reads the figures, so Envoy may know as well.
        self._responses = Responses(degraded=True)
        self.page = Page(monitor)
        self._nothing = not_found("here are /readyz, /livez, /load, /metrics, and / for people")
        self._reads = not_for("GET, HEAD, OPTIONS")
        self._missing = not_here("for metrics: pip install 'wsgi-busyguard[prometheus]'")
        self._exposed: Exposition | None
        try:  # now, for the thread that answers imports nothing
            self._exposed = Exposition(Collector(monitor, ready=ready, patience=patience))
        except ImportError:
            self._exposed = None

    def shows(self, agent: Agent) -> None:
        """Have the balancers be among the figures that ask ``agent``."""
        self.agent = agent
        if self._exposed is not None:
            self._exposed.collector.agent = agent

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer; a WSGI call."""
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        accept = environ.get("HTTP_ACCEPT")
        asked_path = "/" if method == "OPTIONS" else path
        if path == "/" and method in ("GET", "HEAD") and not _is_browser(accept):
            asked_path = "/readyz"  # many balancers ask for / unless they are told otherwise
        # Whoever reaches this port asks for the state, also if it came through a proxy.
        query = environ.get("QUERY_STRING", "")
        check = self._checks.match_request(method, asked_path, query, ())
        if check is not None:
            answer = self._to_check(check, accept)
        elif path == "/load":
            answer = json_answer(self.shown())
        elif path == "/metrics":
            answer = self._metrics(accept)
        elif path == "/":
            answer = self._paged(method)
        else:
            answer = self._nothing
        return answer(environ, start_response)

    def _to_check(self, check: Check, accept: str | None) -> Answer:
        policy = check.policy
        verdict = self._monitor.check(policy, self._patience) if policy else None
        alive = check.question is not LIVE or self._alive is None or self._alive()
        return self._responses.for_check(check, verdict, accept, alive)

    def shown(self) -> LoadReport:
        """Return what ``/load`` shows."""
        shown = look(self._monitor, self.agent, self._ready, self._patience)
        if self.address is not None:
            shown["port"] = self.address
        if self._alive is not None:
            shown["alive"] = self._alive()
        if isinstance(self._monitor, (Monitor, Watcher)) and self._monitor.stacks is not None:
            shown["stacks"] = self._monitor.stacks.look()
        return shown

    def event(self) -> str:
        """Return the same as JSON."""
        return json.dumps(self.shown())

    def page_event(self) -> str:
        """Return what is new for a page that is open."""
        return self.page.event(self.shown())

    def _paged(self, method: str) -> Answer:
        if method not in ("GET", "HEAD"):
            return self._reads
        return page_answer(self.page.headers, self.page.body(self.shown()))

    def _metrics(self, accept: str | None) -> Answer:
        return self._missing if self._exposed is None else metrics_answer(*self._exposed(accept))


def _is_browser(accept: str | None) -> bool:
    """Return whether a request names HTML: browsers do, balancers, probes and curl do not."""
    return accept is not None and "text/html" in accept


def _watches(query: str) -> bool:
    return "watch" in (part.partition("=")[0] for part in query[:LONGEST_QUERY].split("&"))


class AgentPort(Port):
    """Answers HAProxy's ``agent-check`` with ``up maxconn:N``.

    :param monitor: knows the load.
    :param listen: where, as ``HOST:PORT``; port 0 has the kernel choose.
    :param share: whether other processes of this user may listen there too, each asked in turn.
    :raises OSError: if it cannot listen there.
    :ivar address: host and port that it listens at.
    :ivar agent: knows the balancers that ask here.
    """

    def __init__(self, monitor: Watched, listen: str, *, share: bool = False) -> None:
        self.agent = Agent(monitor)
        self._named: dict[str, str] = {}  # who has lately sent its name from there
        self._new_balancers = NewBalancers()  # who is without a name goes by its address
        super().__init__(listen, NAME_SECONDS, share)

    def heard(self, peer: Peer, late: bool) -> bytes | None:
        """Return the line, once the balancer has sent its name or has had its time."""
        received = peer.received
        if not (late or peer.ended or b"\n" in received or len(received) >= LONGEST_NAME):
            return None
        name = _name(received)
        if not name:
            return self.agent.line_for(self._named.get(peer.host, peer.host))
        if name != self._named.get(peer.host) and len(self._named) >= MOST_BALANCERS:
            self._named.clear()
        self._named[peer.host] = name
        if self._new_balancers.asked_before(peer.host, name) or self.agent.knows(name):
            self.agent.note(name, peer.host)
            return self.agent.line_for(name)
        # All ask for the first time when the server has just started; each gets its share
        # beside the other newcomers, who take nothing from those who are known.
        return self.agent.line_for(name, self._new_balancers.count(MOST_OF_ADDRESS) - 1)

    def answered(self, peer: Peer) -> None:
        """Count a balancer without a name.

        Not one that hung up before the line: whoever only looks whether the port is open would
        take a share. A reset shows in that the line cannot be sent. Nor one whose name is late: so
        it is where another time a name came from there, or will.
        """
        host = peer.host
        if peer.ended or _name(peer.received) or self.agent.knows(self._named.get(host)):
            return
        if self._new_balancers.asked_before(host, host):
            self.agent.note(host, host)


def introduce(ports: Iterable[Port]) -> None:
    """Have the check port among these show the balancers that ask the agent port among them."""
    ports = tuple(ports)
    for check in ports:
        for agent in ports:
            if isinstance(check, CheckPort) and isinstance(agent, AgentPort):
                check.shows(agent)


def _name(received: bytes) -> str:
    first = received[:LONGEST_NAME].splitlines()
    return first[0].decode("ascii", "replace").strip() if first else ""
