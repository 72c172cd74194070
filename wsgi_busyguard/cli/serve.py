"""``busyguard serve``: a WSGI app behind the guard, on an embedded server or on Twisted."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from ..checkport import AgentPort, CheckPort, bound
from ..middleware import BusyGuard
from ..policy import CLIENT_TIMEOUT, DAMPED, PATIENCE, READY_POLICIES, limits, seconds, whole
from .mistake import Mistake

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from _typeshed.wsgi import WSGIApplication

    from ..monitor import Monitor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``busyguard serve``."""
    add = parser.add_argument
    add("app", metavar="MODULE:APP", help="the WSGI app, as mysite.wsgi:application")
    add("--server", choices=SERVERS, default="werkzeug", help="what takes the connections")
    add("--listen", metavar="ADDR", default="127.0.0.1:8080", help="where the app is served")
    add("--check", metavar="ADDR", help="where checks are answered, outside the worker pool")
    add("--agent", metavar="ADDR", help="where HAProxy's agent-check is answered")
    add("--threads", type=int, default=10, metavar="N", help="requests in the app at once")
    add("--max-queue", type=int, metavar="N", help="requests waiting; 4 a thread if not given")
    add("--max-wait", type=float, metavar="S", help="seconds; 20%% of the client timeout if not")
    add("--client-timeout", type=float, default=CLIENT_TIMEOUT, metavar="S", help="seconds")
    add("--ready", choices=READY_POLICIES, default=DAMPED, help="what ready checks follow")
    add("--patience", type=float, default=PATIENCE, metavar="S", help="seconds damped bears")
    add("--grace", type=float, default=30.0, metavar="S", help="seconds to finish at SIGTERM")


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    with said_in_one_line():
        whole("threads", arguments.threads, least=1)
        seconds("client_timeout", arguments.client_timeout)
        seconds("patience", arguments.patience)
        seconds("grace", arguments.grace)
        limits(arguments.threads, arguments.max_queue, arguments.max_wait)
    return SERVERS[arguments.server](import_app(arguments.app), arguments)


@contextmanager
def said_in_one_line() -> Iterator[None]:
    """Turn what arguments can be blamed for into a mistake."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise Mistake(str(error)) from error


def import_app(spec: str) -> WSGIApplication:
    """Return the app that ``MODULE:APP`` names; the folder it is called in is searched first."""
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise Mistake(f"expected MODULE:APP, as mysite.wsgi:application, not {spec!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise Mistake(f"no module {error.name!r} here or among what is installed") from error
        raise Mistake(f"{module_name} needs a module that is missing: {error.name}") from error
    except Exception as error:
        raise Mistake(f"importing {module_name} raised {type(error).__name__}: {error}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise Mistake(f"{module_name} has no {name!r}") from error
    if not callable(found):
        raise Mistake(f"{spec} is no WSGI app: a {type(found).__name__} cannot be called")
    return found  # type: ignore[no-any-return]


def serve_werkzeug(app: WSGIApplication, arguments: argparse.Namespace) -> int:
    """Serve with Werkzeug's threaded server: a thread a connection, and the guard as the queue."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        timeout = 60

        def log(self, type: str, message: str, *args: Any) -> None:
            """Write nothing: a line a request is what an overloaded server needs least."""

    guard = BusyGuard(app, slots=arguments.threads, **_guarding(arguments))
    with ExitStack() as stack:
        with opening(arguments.listen):
            listener = stack.enter_context(bound(arguments.listen))
        host, port = listener.getsockname()[:2]
        server = make_server(
            host, port, guard, threaded=True, request_handler=Handler, fd=listener.fileno()
        )
        stack.callback(server.server_close)
        _start_ports(guard.monitor, arguments, stack)
        told = threading.Event()
        threading.Thread(
            target=_drained,
            args=(told, guard.monitor, arguments.grace, server.shutdown),
            daemon=True,
        ).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: _stop(told))
        _say(arguments, host, port)
        server.serve_forever()
    return 0


def serve_twisted(app: WSGIApplication, arguments: argparse.Namespace) -> int:
    """Serve with Twisted: the guard stands in front of the reactor's thread pool."""
    try:
        from twisted.internet import reactor as twisted_reactor
        from twisted.internet.error import CannotListenError

        from ..adapters.twisted import guarded_site
    except ImportError as error:
        raise Mistake("Twisted is missing: pip install 'wsgi-busyguard[twisted]'") from error
    from ..checkport import address

    reactor: Any = twisted_reactor
    with ExitStack() as stack:
        with said_in_one_line():
            host, port = address(arguments.listen)
            site = guarded_site(
                app, arguments.threads, grace=arguments.grace, **_guarding(arguments)
            )
        try:
            listening = reactor.listenTCP(port, site, interface=host, backlog=1024)
        except CannotListenError as error:
            with opening(arguments.listen):
                raise error.socketError from None
        _start_ports(site.guard.monitor, arguments, stack)
        _say(arguments, host, listening.getHost().port)
        reactor.run()
    return 0


SERVERS = {"werkzeug": serve_werkzeug, "twisted": serve_twisted}


def _guarding(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("max_queue", "max_wait", "client_timeout", "ready", "patience")
    return {name: getattr(arguments, name) for name in names}


@contextmanager
def opening(listen: str) -> Iterator[None]:
    """Turn what may go wrong in listening at ``listen`` into a mistake."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise Mistake(f"cannot listen at {listen}: {why}") from error
    except ValueError as error:
        raise Mistake(str(error)) from error


def _start_ports(monitor: Monitor, arguments: argparse.Namespace, stack: ExitStack) -> None:
    """Start the check port and the agent port, where they are asked for."""
    ports: list[CheckPort | AgentPort] = []
    if arguments.check is not None:
        with opening(arguments.check):
            ports.append(CheckPort(monitor, arguments.check, arguments.ready, arguments.patience))
    if arguments.agent is not None:
        with opening(arguments.agent):
            ports.append(AgentPort(monitor, arguments.agent))
    for port in ports:
        port.start()
        stack.callback(port.stop)


def _stop(told: threading.Event) -> None:
    """Begin to drain; at the second signal, go at once. Called in a signal handler."""
    if told.is_set():
        os._exit(1)
    told.set()


def _drained(told: threading.Event, monitor: Monitor, grace: float, shutdown: Any) -> None:
    """Wait to be told to stop, then for those inside, and shut the server down."""
    told.wait()
    gate: Any = monitor.adapter
    monitor.drain()
    gate.drain()
    until = time.monotonic() + grace
    while not gate.empty and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.1)  # the last bodies are being written
    shutdown()


def _say(arguments: argparse.Namespace, host: str, port: int) -> None:
    known = limits(
        arguments.threads, arguments.max_queue, arguments.max_wait, arguments.client_timeout
    )
    print(
        f"serving {arguments.app} at http://{host}:{port} with {arguments.server}: "
        f"{known.slots} at once, {known.max_queue} waiting for at most {known.max_wait:g} s",
        flush=True,
    )
