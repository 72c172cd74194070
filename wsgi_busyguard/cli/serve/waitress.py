"""``busyguard serve --server waitress``: the guard stands in front of waitress's threads."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from ..._support.listener import bound
from ..._support.usage_error import UsageError
from ..usage_errors import opening, usage_errors
from .startup import announce, at_signals, guard_options, leave_at_next_signal, start_ports

if TYPE_CHECKING:
    import argparse

    from _typeshed.wsgi import WSGIApplication


def serve_waitress(app: WSGIApplication, arguments: argparse.Namespace) -> int:
    """Serve with waitress until SIGTERM or Ctrl-C."""
    try:
        from ...adapters.waitress import guarded_server
    except ImportError as error:
        raise UsageError("waitress is missing: pip install 'wsgi-busyguard[waitress]'") from error
    with ExitStack() as stack:
        with opening(arguments.listen):
            listener = stack.enter_context(bound(arguments.listen))
        host, port = listener.getsockname()[:2]
        with usage_errors():
            given = guard_options(arguments)
            server = guarded_server(
                app, threads=arguments.threads, sockets=[listener], ident=None, **given
            )
        server.guard.shares = False  # the socket is from here
        where = start_ports(server.guard.monitor, arguments, stack)

        def stop(*_: object) -> None:
            server.guard.drain(arguments.grace)
            leave_at_next_signal()

        at_signals(stop)
        announce(arguments, host, port, where)
        server.run()
    return 0
