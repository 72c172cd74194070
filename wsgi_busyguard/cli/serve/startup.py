"""What all servers of ``busyguard serve`` do when they start: options, ports, signals, the line."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from ...haproxy import Push
from ...load import DISABLE
from ...policy import limits
from ..ports import ports_of, say_where

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from contextlib import ExitStack

    from ...monitor import Monitor
    from ...options import GuardOptions


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


def leave_at_next_signal() -> None:
    """Have the next SIGTERM or Ctrl-C end the process at once. In the main thread."""
    at_signals(lambda *_: os._exit(1))


def announce(
    arguments: argparse.Namespace, host: str, port: int, where: dict[str, tuple[str, int]]
) -> None:
    """Print what is served, and where."""
    bounds = arguments.options.some("max_queue", "max_wait", "client_timeout")
    known = limits(arguments.threads, **bounds)
    waits = f"in an overload {known.max_queue} waiting for at most {known.max_wait:g} s"
    if arguments.options.disabled:
        waits = f"the guard only answers checks, disabled by {DISABLE}"
    served = f"serving {arguments.app} at http://{host}:{port} with {arguments.server}"
    say_where(f"{served}: {known.slots} at once, {waits}", where)
