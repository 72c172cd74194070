"""The check port and the agent port of a command, and the lines that say where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..checkport.ports import AgentPort, CheckPort, introduce
from .usage_errors import opening

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..checkport.ports import Port
    from ..counters import Watched
    from ..options import GuardOptions


def ports_of(monitor: Watched, options: GuardOptions) -> dict[str, Port]:
    """Return the ports that are asked for, not yet started, by what is printed of them."""
    ports: dict[str, Port] = {}
    if options.check is not None:
        with opening(options.check):
            port = CheckPort(monitor, options.check, options.ready, options.patience)
            ports["checks at http"] = port
    if options.agent is not None:
        with opening(options.agent):
            ports["agent at tcp"] = AgentPort(monitor, options.agent)
    introduce(ports.values())
    return ports


def say_where(first: str, where: Mapping[str, tuple[str, int]]) -> None:
    """Print a line, and one for each port."""
    lines = [f"{what}://{host}:{port}" for what, (host, port) in where.items()]
    print(first, *lines, sep="\n", flush=True)
