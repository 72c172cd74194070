"""``busyguard serve --server gunicorn``: gunicorn's own application, set by our arguments."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..._support.listener import address, bound
from ...options import OPTIONS
from ...policy import loose_limits
from ..ports import say_where
from ..usage_errors import opening
from .startup import installed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from _typeshed.wsgi import WSGIApplication

# What each worker accepts beyond what it serves and what waits, most of it kept alive.
WORKER_CONNECTIONS = 1000


def serve_gunicorn(app: WSGIApplication, arguments: argparse.Namespace) -> int:
    """Serve with gunicorn's threaded workers, as many processes as ``WEB_CONCURRENCY`` says.

    Does not return: gunicorn's master ends the process.
    """
    with installed("gunicorn"):
        from gunicorn.app.base import BaseApplication

        from ...adapters.gunicorn import GuardedThreads

    settings = {"worker_class": GuardedThreads, **_settings(arguments)}

    class Served(BaseApplication):
        def load_config(self) -> None:
            for name, value in settings.items():
                if name in self.cfg.settings:
                    self.cfg.set(name, value)

        def load(self) -> WSGIApplication:
            return app

    os.environ.update(variables(vars(arguments)))
    with opening(arguments.listen):  # gunicorn would try for 5 s, with a line for each time
        bound(arguments.listen).close()
    Served().run()
    return 0


def variables(texts: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment by which the workers hear of the arguments that were given."""
    given = {option.variable: texts.get(option.name) for option in OPTIONS.values()}
    return {
        name: text if isinstance(text, str) else ",".join(text)
        for name, text in given.items()
        if text is not None
    }


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    host, port = address(arguments.listen)  # gunicorn reads some of them otherwise
    queue = loose_limits(arguments.threads, arguments.options.max_queue).max_queue
    return {
        "bind": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "threads": arguments.threads,
        "worker_connections": WORKER_CONNECTIONS + arguments.threads + queue,
        "graceful_timeout": max(1, round(arguments.grace)),
        "default_proc_name": arguments.app,
        "loglevel": "warning",
        "when_ready": lambda server: _announce(arguments, server),
        "control_socket_disable": True,  # from 25.1 on; nobody asked for it
    }


def _announce(arguments: argparse.Namespace, server: Any) -> None:
    from ...adapters.gunicorn.master import the_host

    host, _ = the_host(server.cfg, server.log)
    where = ", ".join(str(listener) for listener in server.LISTENERS)
    many = f"{server.num_workers} x {arguments.threads} at once"
    say_where(f"serving {arguments.app} at {where} with gunicorn: {many}", host.where)
