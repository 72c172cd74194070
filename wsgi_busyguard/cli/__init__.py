"""The command ``busyguard``: reads its arguments and hands over. Each subcommand is a module."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from typing import TYPE_CHECKING

from .. import __version__, demo
from .._support.spelling import nearest_argument
from .._support.usage_error import UsageError
from . import agent, check, drain, haproxy, top
from .serve import command as serve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

COMMANDS = {
    "serve": (serve, "serve a WSGI app behind the guard"),
    "agent": (agent, "answer checks for all processes on a board, from a process of its own"),
    "top": (top, "show servers live in the terminal"),
    "check": (check, "ask a server for its state; the exit code is for scripts and HEALTHCHECK"),
    "drain": (drain, "let every check say draining before a stop, while requests are served"),
    "haproxy": (haproxy, "print the best configuration for HAProxy, or name mistakes in yours"),
    "demo": (demo, "play an outage on this machine, without the guard and with it"),
}


DOCS = "https://wsgi-busyguard.readthedocs.io/"

EXAMPLES = {
    "serve": "busyguard serve mysite.wsgi:application --threads 8 --check 127.0.0.1:8081",
    "agent": "busyguard agent --board /run/shop.board --check 127.0.0.1:8081",
    "top": "busyguard top web1:8081 web2:8081",
    "check": "busyguard check http://127.0.0.1:8080/readyz",
    "drain": "busyguard drain --board /run/shop.board",
    "haproxy": "busyguard haproxy --server web1=10.0.0.11:8080 --server web2=10.0.0.12:8080",
    "demo": "busyguard demo",
}


class Help(argparse.HelpFormatter):
    """Fills each line by itself, and breaks none at a hyphen: commands and addresses stay whole."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = textwrap.TextWrapper(
            width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        ).fill
        return "\n".join(fill(line) for line in text.splitlines())


class Parser(argparse.ArgumentParser):
    """A parser that tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with 2."""
        self.exit(2, f"busyguard: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 2 for a mistake in what it was given."""
    parser = Parser(
        prog="busyguard",
        description="Health checks that tell the truth, queues that stay short.",
        epilog=f"busyguard COMMAND --help shows an example of each.\nDocumentation: {DOCS}",
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"busyguard {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, help_) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=help_,
            description=f"{help_[0].upper()}{help_[1:]}.",
            epilog=f"Example: {EXAMPLES[name]}\nDocumentation: {DOCS}",
            formatter_class=Help,
            allow_abbrev=False,  # else a later option could take its meaning from a shortened one
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, command=command)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:  # said with the command's own help, which the parser of all would not name
        near = nearest_argument(unknown[0], re.findall(r"--[\w-]+", parsed.command.format_usage()))
        meant = f" (is {near} meant?)" if near and unknown[0].startswith("--") else ""
        parsed.command.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
    try:
        return int(parsed.run(parsed))
    except UsageError as error:
        print("busyguard:", *str(error).split(), file=sys.stderr)
        return 2
