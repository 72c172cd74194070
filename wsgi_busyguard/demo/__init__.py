"""``busyguard demo``: the story of 2013 on this machine, in three acts.

Nothing is imported here that needs an extra: the command line looks at this module to tell what
commands there are.
"""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .._support.usage_error import UsageError

if TYPE_CHECKING:
    import argparse

DESCRIPTION = (
    "Four HAProxies in front of two Twisted processes that serve a small Django site, and an"
    " outside service that becomes 20 times slower for some seconds; three times: as it was, with"
    " the remedy of 2013, and with the guard. Takes less than three minutes."
)
NEEDED = ("twisted.web", "django", "aiohttp", "matplotlib", "rich")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``busyguard demo``."""
    parser.description = DESCRIPTION
    parser.add_argument("--quick", action="store_true", help="shorter acts: 75 seconds in all")
    parser.add_argument(
        "--computes",
        action="store_true",
        help="instead, a site that computes, without the guard and with it: half a minute",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all that was seen to FILE")
    parser.add_argument(
        "--picture",
        metavar="FILE",
        type=Path,
        default=Path("busyguard-demo.png"),
        help="where to draw the picture (%(default)s)",
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the HAProxy configurations and the logs"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; return the exit status.

    :raises UsageError: if something is missing that it needs.
    """
    missing = [name.partition(".")[0] for name in NEEDED if not _installed(name)]
    if missing:
        raise UsageError(f"demo needs {', '.join(missing)}: pip install 'wsgi-busyguard[demo]'")
    for file in (arguments.picture, arguments.json):
        if file is not None and not os.access(file.absolute().parent, os.W_OK):
            raise UsageError(f"cannot write {str(file)!r}: no such directory, or it is not ours")
    from .balancers import MISSING, find_haproxy

    haproxy = "" if arguments.computes else find_haproxy()  # that one has no balancers
    if haproxy is None:
        raise UsageError(MISSING)
    try:
        from .play import play, play_computing

        return play_computing(arguments) if arguments.computes else play(haproxy, arguments)
    except KeyboardInterrupt:  # before the curtain or after it, when nothing has to be ended
        return 128 + signal.SIGINT


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even what it is a part of
        return False
