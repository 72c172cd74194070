"""``busyguard check``: asks a server for its state; the exit code is for scripts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .._support.health_client import (
    CHECK_PORT,
    CHECK_VARIABLE,
    NO_ANSWER,
    NOT_NOW,
    TIMEOUT_SECONDS,
    ask,
    default_target,
)
from ..policy import seconds
from .usage_errors import usage_errors

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``busyguard check``."""
    parser.description = (
        "Ask a server for its state. Exits with 0 if it should get requests, 1 if it is too busy or"
        " draining, 2 if there is no answer."
    )
    parser.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        default=default_target(),
        help="http://host:port/readyz, or host:port of a check port; by default the one in"
        f" {CHECK_VARIABLE}, or {CHECK_PORT}",
    )
    wait = "seconds to wait for the answer (%(default)s)"
    parser.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, metavar="S", help=wait)
    docker = "exit with 1 instead of 2, which Docker's HEALTHCHECK reserves"
    parser.add_argument("--docker", action="store_true", help=docker)
    parser.add_argument("--quiet", action="store_true", help="print nothing; only exit")


def run(arguments: argparse.Namespace) -> int:
    """Ask once."""
    with usage_errors():
        seconds("timeout", arguments.timeout)
        result = ask(arguments.url, arguments.timeout)
    if not arguments.quiet:
        print(result.text, file=sys.stderr if result.code == NO_ANSWER else sys.stdout)
    return min(result.code, NOT_NOW) if arguments.docker else result.code
