"""What all servers of ``busyguard serve`` do when they start: options, ports, signals, the line."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..._support.usage_error import UsageError
from ...haproxy import Push
from ...load import DISABLE
from ...policy import limits
from ..ports import ports_of, say_where

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import ExitStack

    from ...adapters.front.threaded import ThreadedFront
    from ...monitor import Monitor
    from ...options import GuardOptions


@contextmanager
def installed(server: str) -> Iterator[None]:
    """Turn a server that cannot be imported into a mistake."""
    try:
        yield
    except ImportError as error:
        extra = server.lower()
        raise UsageError(f"{server} is missing: pip install 'wsgi-busyguard[{extra}]'") from error


def guard_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was given of a guard's options; the ports, and who is pushed to, are ours."""
    ours = ("check", "agent", "push")
    return {name: value for name, value in arguments.given.items() if name not in ours}


def start_ports(
    monitor: Monitor, arguments: argparse.Namespace, stack: ExitStack
) -> dict[str, tuple[str, int]]:
    """Start the check port and the agent port, where asked for; return where they are."""
    options: GuardOptions = arguments.options
    monitor.app = arguments.app
    ports = ports_of(monitor, options)
    for started in ports.values():
        started.start()
        stack.callback(started.stop)
    if options.push:
        stack.callback(Push(monitor, options.push).start().stop)
    return {what: started.address for what, started in ports.items()}


def at_signals(handler: Callable[..., object]) -> None:
    """Have SIGTERM and Ctrl-C call ``handler``."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def drain_at_signals(guard: ThreadedFront, grace: float) -> None:
    """Have SIGTERM and Ctrl-C drain a guard, and the second of them end the process.

    Before the line: whoever reads that it serves may end it at once.
    """

    def stop(*_: object) -> None:
        guard.drain(grace)
        leave_at_next_signal()

    at_signals(stop)


def leave_at_next_signal() -> None:
    """Have the next SIGTERM or Ctrl-C end the process at once. In the main thread."""
    at_signals(lambda *_: os._exit(1))


def announce(
    arguments: argparse.Namespace, at: Sequence[Any], where: dict[str, tuple[str, int]]
) -> None:
    """Print what is served, and where.

    :param at: host and port, and for IPv6 more.
    """
    host, port = at[:2]
    bounds = arguments.options.some("max_queue", "max_wait", "client_timeout")
    known = limits(arguments.threads, **bounds)
    waits = f"in an overload {known.max_queue} waiting for at most {known.max_wait:g} s"
    if arguments.options.disabled:
        waits = f"the guard only answers checks, disabled by {DISABLE}"
    served = f"serving {arguments.app} at http://{host}:{port} with {arguments.server}"
    say_where(f"{served}: {known.slots} at once, {waits}", where)
