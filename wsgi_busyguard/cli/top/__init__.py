"""``busyguard top``: how hosts are, live in the terminal; a line a host a second elsewhere."""

from __future__ import annotations

import os
import signal
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..._support.health_client import (
    CHECK_PORT,
    CHECK_VARIABLE,
    NO_ANSWER,
    TIMEOUT_SECONDS,
    default_target,
)
from ..._support.usage_error import UsageError
from ...policy import seconds
from ..usage_errors import usage_errors
from .hosts import HostWatch
from .plain_lines import tell

if TYPE_CHECKING:
    import argparse
    from types import FrameType

DESCRIPTION = (
    "Show the figures of one check port or of several, live. Keys: s sorts by the next column, t"
    " shows the lines of code that the requests of one host are in (show_stacks), q quits. If"
    " the output is not a terminal, print a line for each host once a second. Exits with 0 if all"
    " should get requests, 1 if one is too busy or draining, 2 if one gives no"
    " answer; by the last answers."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``busyguard top``."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "hosts",
        nargs="*",
        metavar="ADDR",
        help="host:port of a check port, or a port of this machine; by default the one in"
        f" {CHECK_VARIABLE}, or {CHECK_PORT}",
    )
    parser.add_argument("--once", action="store_true", help="print one line for each host")
    wait = "seconds to connect, and seconds for the whole answer (%(default)s)"
    parser.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, metavar="S", help=wait)


def run(arguments: argparse.Namespace) -> int:
    """Look until told to end, and return what the last looks amount to."""
    with usage_errors():
        seconds("timeout", arguments.timeout)
        targets = list(dict.fromkeys(arguments.hosts or [default_target()]))
        hosts = [HostWatch(target, arguments.timeout) for target in targets]
    live = not arguments.once and _is_terminal()
    if live and find_spec("rich") is None:
        raise UsageError(
            "the live view needs rich: pip install 'wsgi-busyguard[top]', or give --once, which"
            " needs nothing"
        )
    before = signal.signal(signal.SIGTERM, _end)
    try:
        _show(hosts, live, arguments.once)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # whoever read this has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        signal.signal(signal.SIGTERM, before)
        for host in hosts:
            host.stop()
    return max((host.seen.code for host in hosts), default=NO_ANSWER)


def _show(hosts: list[HostWatch], live: bool, once: bool) -> None:
    if live:
        from .screen import show

        show(hosts)
    else:
        tell(hosts, once)


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _end(number: int, frame: FrameType | None) -> None:
    """End as by Ctrl-C: a terminal has to be given back as it was."""
    raise KeyboardInterrupt
