"""How long a health check takes while gunicorn's workers are all taken.

40 clients keep 4 threads of an app asleep, 10 clients a sync worker, on stock and guarded workers
at once; checks go round the servers, so that a noisy machine is noisy for all. Then 20 clients have
4 threads compute: there the servers take turns, for the machine has few cores. A check is a new
connection and ``OPTIONS / HTTP/1.0``, as bare ``option httpchk`` sends it.

    python benchmarks/gunicorn_checks.py [--version FOLDER ...] [--json FILE]

``--version``: where another gunicorn is, by ``pip install --target FOLDER gunicorn==23.0.0``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from figures import machine
from twisted_checks import app, check, ratios, shown, started

__all__ = ["app"]  # what gunicorn serves

HERE = Path(__file__).parent

THREADS = 4
GUARDED = "wsgi_busyguard.adapters.gunicorn."
NO_BOUND = {"MAX_QUEUE": "900", "MAX_WAIT": "inf"}

SLEEPING, COMPUTING = "sleeps 1 s", "computes 0.1 s"
CLIENTS = {SLEEPING: 40, COMPUTING: 20}
TURN = 4.0

# Checks that wait do so side by side; more of them would be a crowd of their own.
PENDING = 12


class Kind(NamedTuple):
    """A way to start gunicorn."""

    name: str
    arguments: list[str]
    clients: int | None = None
    options: dict[str, str] | None = None


THREADED = ["--threads", str(THREADS), "-k"]
KINDS = [
    Kind("gthread", [*THREADED, "gthread"]),
    Kind("GuardedThreads, no bound", [*THREADED, GUARDED + "GuardedThreads"], options=NO_BOUND),
    Kind("GuardedThreads", [*THREADED, GUARDED + "GuardedThreads"], options={}),
    Kind("sync", ["-k", "sync"], 10),
    Kind("GuardedSync", ["-k", GUARDED + "GuardedSync"], 10, {}),
]


class Running:
    """A gunicorn and its crowd, each in a process of its own."""

    def __init__(self, app_name, kind, version):
        self.app, self.kind, self.version = app_name, kind.name, Path(version).name
        self.ports = {}
        self._server = self._started(kind, version)
        self._read(r"Listening at: http://\S+?:(\d+)", "app's port")
        if kind.options is not None:
            self._read(r"checks at http://\S+?:(\d+)", "check port")
        self._read(r"Booting worker()")
        clients = kind.clients or CLIENTS[app_name]
        path = "/sleep" if app_name == SLEEPING else "/cpu"
        self._crowd = started("--crowd", [self.ports["app's port"], path, clients])

    @property
    def stock(self):
        return "check port" not in self.ports

    def end(self):
        """End both."""
        self._crowd.kill()
        self._crowd.wait()
        self._crowd.stdout.close()
        self._server.terminate()
        try:
            self._server.wait(5)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._server.stderr.close()

    def _started(self, kind, version):
        path = [version, str(HERE.parent), os.environ.get("PYTHONPATH")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
        if kind.options is not None:
            said = {"CHECK": "127.0.0.1:0", **kind.options}
            env |= {f"BUSYGUARD_{name}": value for name, value in said.items()}
        command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0"]
        command += ["--chdir", str(HERE), "--graceful-timeout", "1", *kind.arguments]
        return subprocess.Popen(
            [*command, "gunicorn_checks:app"], stderr=subprocess.PIPE, text=True, env=env
        )

    def _read(self, pattern, what=None):
        for line in self._server.stderr:
            found = re.search(pattern, line)
            if found:
                if what:
                    self.ports[what] = int(found[1])
                return
        raise SystemExit(f"gunicorn ended before it said {pattern!r}")


async def checked(servers, seconds, results):
    """Check on these servers, in turns, for so long."""
    await asyncio.sleep(1)  # until every thread has work
    pending = {}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for server in servers:
            for where, port in server.ports.items():
                key = server.version, server.app, server.kind, where
                took = results.setdefault(key, [])
                if where == "check port" or "Threads" in server.kind:
                    took.append(await check(port))
                elif len(pending.setdefault(key, [])) < PENDING:
                    pending[key].append(asyncio.create_task(check(port)))
        await asyncio.sleep(0.02)
    for key, checks in pending.items():
        results[key] += await asyncio.gather(*checks)


async def measured(version):
    """Return how long each check took, by version, app, server and port."""
    results = {}
    servers = [Running(SLEEPING, kind, version) for kind in KINDS]
    await checked(servers, TURN, results)
    for server in servers:
        server.end()
    for kind in KINDS:
        if kind.clients is None:
            server = Running(COMPUTING, kind, version)
            await checked([server], TURN, results)
            server.end()
    return results


def report(results):
    """Print a table, and return its rows."""
    rows = []
    named = any(version for version, *_ in results)
    print(f"{'app':15} {'worker':25} {'asked at':10}     n      p50      p90      p99      max")
    for (version, app_name, kind, where), values in results.items():
        row = shown(values)
        rows.append({"version": version, "app": app_name, "worker": kind, "port": where, **row})
        figures = " ".join(f"{row[key]:8.1f}" for key in ("p50", "p90", "p99", "max"))
        print(
            f"{app_name:15} {kind:25} {where:10} {row['n']:5} {figures}",
            *([version] if named else []),
        )
    return rows


def stock_worker(name):
    version, app_name, kind, _ = name
    return version, app_name, "sync" if kind.lower().endswith("sync") else "gthread", "app's port"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", metavar="FOLDER", action="append", default=[])
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    began = time.perf_counter()
    results = {}
    for version in arguments.version or [""]:
        results |= asyncio.run(measured(version))
    rows = report(results)
    print(f"ms; {THREADS} threads, {time.perf_counter() - began:.0f} s in all")
    if arguments.json:
        about = {**machine(), "figures": ratios(results, stock_worker)}
        Path(arguments.json).write_text(json.dumps({**about, "ms": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
