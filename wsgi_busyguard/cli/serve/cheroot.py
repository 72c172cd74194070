"""``busyguard serve --server cheroot``: the guard stands in front of cheroot's threads."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from ..._support.listener import address, bound
from ..usage_errors import opening, usage_errors
from .startup import announce, drain_at_signals, guard_options, installed, start_ports

if TYPE_CHECKING:
    import argparse

    from _typeshed.wsgi import WSGIApplication


def serve_cheroot(app: WSGIApplication, arguments: argparse.Namespace) -> int:
    """Serve with cheroot until SIGTERM or Ctrl-C."""
    with installed("cheroot"):
        from ...adapters.cheroot import guarded_server
    with ExitStack() as stack:
        with usage_errors():
            place, options = address(arguments.listen), guard_options(arguments)
            server = guarded_server(app, place, threads=arguments.threads, **options)
        with opening(arguments.listen):
            bound(arguments.listen).close()  # cheroot's own message is long, without a number
            server.prepare()
        stack.callback(server.stop)
        where = start_ports(server.guard.monitor, arguments, stack)
        drain_at_signals(server.guard, arguments.grace)
        announce(arguments, server.bind_addr, where)
        server.serve()
    return 0
