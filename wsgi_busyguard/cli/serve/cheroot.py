"""``busyguard serve --server cheroot``: the guard stands in front of cheroot's threads."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from ..._support.listener import address, bound
from ..._support.usage_error import UsageError
from ..usage_errors import opening, usage_errors
from .startup import announce, at_signals, guard_options, leave_at_next_signal, start_ports

if TYPE_CHECKING:
    import argparse

    from _typeshed.wsgi import WSGIApplication


def serve_cheroot(app: WSGIApplication, arguments: argparse.Namespace) -> int:
    """Serve with cheroot until SIGTERM or Ctrl-C."""
    try:
        from ...adapters.cheroot import guarded_server
    except ImportError as error:
        raise UsageError("cheroot is missing: pip install 'wsgi-busyguard[cheroot]'") from error
    with ExitStack() as stack:
        with usage_errors():
            given = guard_options(arguments)
            place = address(arguments.listen)
            server = guarded_server(app, place, threads=arguments.threads, **given)
        with opening(arguments.listen):
            bound(arguments.listen).close()  # cheroot's own message is long, without a number
            server.prepare()
        stack.callback(server.stop)
        host, port = server.bind_addr
        where = start_ports(server.guard.monitor, arguments, stack)

        def stop(*_: object) -> None:
            server.guard.drain(arguments.grace)
            leave_at_next_signal()

        at_signals(stop)  # before the line: whoever reads that it serves may end it at once
        announce(arguments, host, port, where)
        server.serve()
    return 0
