"""``busyguard serve --server waitress``: the guard stands in front of waitress's threads."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from ..._support.listener import bound
from ..usage_errors import opening, usage_errors
from .startup import announce, drain_at_signals, guard_options, installed, start_ports

if TYPE_CHECKING:
    import argparse

    from _typeshed.wsgi import WSGIApplication


def serve_waitress(app: WSGIApplication, arguments: argparse.Namespace) -> int:
    """Serve with waitress until SIGTERM or Ctrl-C."""
    with installed("waitress"):
        from ...adapters.waitress import guarded_server
    with ExitStack() as stack:
        with opening(arguments.listen):
            listener = stack.enter_context(bound(arguments.listen))
        with usage_errors():
            options = {"sockets": [listener], "ident": None, **guard_options(arguments)}
            server = guarded_server(app, threads=arguments.threads, **options)
        server.guard.shares = False  # the socket is from here
        where = start_ports(server.guard.monitor, arguments, stack)
        drain_at_signals(server.guard, arguments.grace)
        announce(arguments, listener.getsockname(), where)
        server.run()
    return 0
