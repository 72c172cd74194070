"""``busyguard haproxy``: prints the configuration that measured best, or judges one there is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .._support.listener import address
from .._support.usage_error import UsageError
from ..haproxy import Server, Setting, configuration
from ..haproxy.lint import backends, mistakes

if TYPE_CHECKING:
    import argparse

DEFAULTS = Setting()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``busyguard haproxy``."""
    add = parser.add_argument
    add(
        "--server",
        action="append",
        default=[],
        metavar="NAME=HOST:PORT[,check=PORT][,agent=PORT]",
        help="a server, with its own ports for checks and agent if they differ; repeat for each",
    )
    add(
        "--agent-port",
        type=int,
        default=8082,
        metavar="PORT",
        help="where servers answer agent-check, if --server does not say (%(default)s)",
    )
    add("--check-port", type=int, metavar="PORT", help="where servers answer checks, if elsewhere")
    add(
        "--threads",
        type=int,
        default=DEFAULTS.threads,
        metavar="N",
        help="requests in the app at once, of one server (%(default)s)",
    )
    add(
        "--balancers",
        type=int,
        default=DEFAULTS.balancers,
        metavar="N",
        help="HAProxies in front of these servers (%(default)s)",
    )
    add("--name", default=DEFAULTS.name, help="of this HAProxy, another on each (%(default)s)")
    add("--bind", default=DEFAULTS.bind, metavar="ADDR", help="where clients come in (%(default)s)")
    add("--minimal", action="store_true", help="for servers without an agent port")
    add(
        "--check-config",
        metavar="FILE",
        help="name the known mistakes in a configuration; - is standard input",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print, and return 1 if there are mistakes to name, 2 if there is nothing to judge."""
    if arguments.check_config is not None:
        if arguments.server:
            raise UsageError("give --server or --check-config, not both")
        return _check(arguments.check_config)
    setting = Setting(arguments.threads, arguments.balancers, arguments.name, arguments.bind)
    try:
        servers = [_server(text, arguments) for text in arguments.server]
        print(configuration(servers, setting, minimal=arguments.minimal), end="")
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    return 0


def _server(text: str, arguments: argparse.Namespace) -> Server:
    first, *own = text.split(",")
    name, _, where = first.partition("=")
    if not where:
        raise ValueError(
            f"expected --server NAME=HOST:PORT[,check=PORT][,agent=PORT], not {text!r}"
        )
    address(where)
    ports = {"agent": arguments.agent_port, "check": arguments.check_port}
    for item in own:
        kind, _, port = item.partition("=")
        if kind not in ports:
            raise ValueError(f"expected check=PORT or agent=PORT after {first}, not {item!r}")
        ports[kind] = port
    return Server(name, where, _port(ports["agent"]), _port(ports["check"]))


def _port(port: str | int | None) -> int | None:
    try:
        number = None if port is None else int(port)
    except ValueError:
        number = 0
    if number is not None and not 1 <= number <= 65535:
        raise ValueError(f"expected a port from 1 to 65535, not {port}")
    return number


def _check(file: str) -> int:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(errors="replace")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    count = len(backends(text))
    if not count:
        raise UsageError(
            f"no backend in {file}: expected a server in mode http, to judge the way to"
        )
    found = mistakes(text)
    for finding in found:
        print(f"{file}:{finding.line}: {finding.text}")
    if not found:
        print(f"no mistake known in {count} backend{'' if count == 1 else 's'}")
    return 1 if found else 0
