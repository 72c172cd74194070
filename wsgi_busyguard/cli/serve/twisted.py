"""``busyguard serve --server twisted``: the guard stands in front of the reactor's threads."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..._support.listener import address
from ..usage_errors import opening, usage_errors
from .startup import announce, guard_options, installed, leave_at_next_signal, start_ports

if TYPE_CHECKING:
    import argparse

    from _typeshed.wsgi import WSGIApplication


def serve_twisted(app: WSGIApplication, arguments: argparse.Namespace) -> int:
    """Serve with Twisted: the guard stands in front of the reactor's thread pool."""
    with installed("Twisted"):
        from twisted.internet import reactor as twisted_reactor
        from twisted.internet.error import CannotListenError

        from ...adapters.twisted import guarded_site
    reactor: Any = twisted_reactor
    _log_warnings()
    with ExitStack() as stack:
        host, port = address(arguments.listen)
        with usage_errors():
            options = guard_options(arguments)
            site = guarded_site(app, arguments.threads, grace=arguments.grace, **options)
        site.quiet = True
        try:
            listening = reactor.listenTCP(port, site, interface=host, backlog=1024)
        except CannotListenError as error:
            with opening(arguments.listen):
                raise error.socketError from None
        where = start_ports(site.guard.monitor, arguments, stack)
        reactor.addSystemEventTrigger("before", "shutdown", leave_at_next_signal)
        # Not before SIGTERM is the reactor's: whoever reads that it serves may end it at once.
        at = host, listening.getHost().port
        reactor.callWhenRunning(announce, arguments, at, where)
        reactor.run()
    return 0


def _log_warnings() -> None:
    """Have Twisted write warnings and worse to standard error.

    It keeps the last 65 536 lines in memory for as long as nobody says where they go.
    """
    from twisted import logger

    known: Any = logger  # its observers are typed as what they are not
    level = known.LogLevelFilterPredicate(known.LogLevel.warn)
    observer = known.FilteringLogObserver(known.textFileLogObserver(sys.stderr), [level])
    known.globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
