"""``busyguard serve --server gunicorn``: gunicorn's own application, set by our arguments."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..._support.listener import address, bound
from ..._support.usage_error import Mistake
from ...middleware import BusyGuard
from ..mistakes import opening

if TYPE_CHECKING:
    import argparse

    from _typeshed.wsgi import WSGIApplication

# The arguments that gunicorn's guarded workers read from BUSYGUARD_*.
OPTIONS = (
    "check",
    "agent",
    "board",
    "max_queue",
    "max_wait",
    "client_timeout",
    "progress_timeout",
    "ready",
    "patience",
)

# What each worker accepts beyond what it serves and what waits, most of it kept alive.
CONNECTIONS = 1000


def serve_gunicorn(app: WSGIApplication, arguments: argparse.Namespace) -> int:
    """Serve with gunicorn's threaded workers, as many processes as ``WEB_CONCURRENCY`` says.

    Does not return: gunicorn's master ends the process.
    """
    try:
        from gunicorn.app.base import BaseApplication

        from ...adapters.gunicorn import GuardedThreads
    except ImportError as error:
        raise Mistake("gunicorn is missing: pip install 'wsgi-busyguard[gunicorn]'") from error

    if arguments.expose_load:  # the workers answer the checks; this finds them, and reports
        app = BusyGuard(app, expose_load=True, check_root=False, ready_paths=(), live_paths=())
    settings = {"worker_class": GuardedThreads, **_settings(arguments)}

    class Served(BaseApplication):
        """The app, and gunicorn's settings from the arguments."""

        def load_config(self) -> None:
            """Set what the arguments say; all else is as gunicorn has it."""
            for name, value in settings.items():
                if name in self.cfg.settings:
                    self.cfg.set(name, value)

        def load(self) -> WSGIApplication:
            """Return the app."""
            return app

    for name in OPTIONS:
        value = getattr(arguments, name, None)
        if value is not None:
            os.environ[f"BUSYGUARD_{name.upper()}"] = str(value)
    if arguments.push:
        os.environ["BUSYGUARD_PUSH"] = ",".join(arguments.push)
    with opening(arguments.listen):  # gunicorn would try for 5 s, with a line for each time
        bound(arguments.listen).close()
    Served().run()
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    host, port = address(arguments.listen)  # gunicorn reads some of them otherwise
    queue = 4 * arguments.threads if arguments.max_queue is None else arguments.max_queue
    return {
        "bind": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "threads": arguments.threads,
        "worker_connections": CONNECTIONS + arguments.threads + queue,
        "graceful_timeout": max(1, round(arguments.grace)),
        "proc_name": arguments.app,
        "loglevel": "warning",
        "when_ready": lambda server: _announce(arguments, server),
        "control_socket_disable": True,  # from 25.1 on; nobody asked for it
    }


def _announce(arguments: argparse.Namespace, server: Any) -> None:
    from ...adapters.gunicorn.master import the_host

    host, _ = the_host(server.cfg, server.log)
    where = ", ".join(str(listener) for listener in server.LISTENERS)
    print(
        f"serving {arguments.app} at {where} with gunicorn: {server.num_workers} x"
        f" {arguments.threads} at once",
        *(f"{what}://{host}:{port}" for what, (host, port) in host.where.items()),
        sep="\n",
        flush=True,
    )
