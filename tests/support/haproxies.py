"""Real HAProxies with the printed configuration, the servers behind them, and visitors."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import itertools
import json
import os
import re
import socket
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from support.client import PATIENCE, eventually, figures
from support.processes import HERE, Process
from wsgi_busyguard.demo.balancers import find_haproxy
from wsgi_busyguard.haproxy import Server, Setting, configuration
from wsgi_busyguard.haproxy.agent import DEFAULT_PERIOD_SECONDS

# CI may name another one, to test with its version.
HAPROXY = os.environ.get("HAPROXY") or find_haproxy()


class FleetSite(Process):
    """The site of fleet_site.py, with the given options."""

    def __init__(self, **options):
        command = [sys.executable, HERE / "fleet_site.py", json.dumps(options)]
        super().__init__(command, server="twisted")
        self.ports = None

    def wait(self):
        self.ports = json.loads(self.line("ports: "))
        self.port, self.agent = self.ports["web"], self.ports["agent"]

    def tell(self, **order):
        """Have it do something; returns what it has to report."""
        with socket.create_connection(("127.0.0.1", self.ports["control"]), PATIENCE) as line:
            line.sendall(json.dumps(order).encode() + b"\n")
            return json.loads(line.makefile().readline())

    @property
    def load(self):
        return figures(self.ports["check"])


class Balancer(Process):
    """A HAProxy; the socket it takes visitors on is kept, so that it can be started again."""

    def __init__(self, folder, number, text, *, listener=None, more=()):
        assert HAPROXY, "no HAProxy: in CI that is a failure"
        self.folder, self.number, self.text = folder, number, text
        self.admin = str(folder / f"{number}.sock")
        self.listener = listener or socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        file = Path(folder / f"{number}.cfg")
        file.write_text(text(f"fd@{self.listener.fileno()}", f"{self.admin} level admin"))
        command = [HAPROXY, "-db", "-f", file, *more]
        super().__init__(command, pass_fds=[self.listener.fileno()])

    def again(self, *more):
        """Start another one in its place."""
        return Balancer(self.folder, self.number, self.text, listener=self.listener, more=more)

    def reap(self):
        super().reap()
        self.listener.close()

    def tell(self, command):
        """Say a command to the Runtime API and return the answer."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(PATIENCE)
            admin.connect(self.admin)
            admin.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: admin.recv(65536), b"")).decode()

    def rows(self, backend="app"):
        """What it says of the servers of a backend, by name."""
        lines = self.tell("show stat").removeprefix("# ").splitlines()
        rows = [row for row in csv.DictReader(lines) if row["pxname"] == backend]
        return {row["svname"]: row for row in rows if row["svname"] not in ("BACKEND", "FRONTEND")}

    def answers(self):
        """Whether the Runtime API is there."""
        assert self.popen.poll() is None, self.output
        with contextlib.suppress(OSError):
            return self.rows()

    def statuses(self):
        return [row["status"] for row in self.rows().values()]

    def maxconns(self):
        return [int(row["slim"] or 0) for row in self.rows().values()]


class Answer(NamedTuple):
    """When it was asked for, which one it was, what came and after how long."""

    at: float
    status: int
    took: float


class Visitors:
    """Ask at a steady rate, of each balancer in turn, whatever comes back; on a thread.

    :param one_by_one: whether each waits until the one before has been answered.
    """

    def __init__(self, ports, rate, seconds, patience=15.0, one_by_one=False):
        self.answers = []
        self._one_by_one = one_by_one
        self._asking = (list(ports), rate, seconds, patience)
        self._began = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._come()), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        """Let no more come, and wait for those who are there."""
        self._end.set()
        self._thread.join(PATIENCE + 10)
        assert not self._thread.is_alive(), "visitors are stuck"

    @property
    def now(self):
        """Seconds since the first."""
        import time

        return time.monotonic() - self._began

    def good(self, begin=0.0, end=1e9, within=1.5):
        """Of those who asked then, the share that was served in time."""
        asked = [answer for answer in self.answers if begin <= answer.at < end]
        served = [a for a in asked if a.status == 200 and a.took <= within]
        return len(served) / max(1, len(asked))

    def lost(self, begin=0.0, end=1e9):
        """Those who were not served."""
        return [a for a in self.answers if begin <= a.at < end and a.status != 200]

    def came(self, count):
        """Wait until so many more have been answered."""
        count += len(self.answers)
        eventually(lambda: len(self.answers) >= count)

    async def _come(self):
        ports, rate, work, patience = self._asking
        loop = asyncio.get_running_loop()
        self._began = begun = loop.time()
        asking = set()
        for number, port in enumerate(itertools.cycle(ports)):
            await asyncio.sleep(begun + number / rate - loop.time())
            if self._end.is_set():
                break
            task = asyncio.create_task(self._ask(port, begun, work, patience))
            asking.add(task)
            task.add_done_callback(asking.discard)
            if self._one_by_one:
                await asyncio.wait([task])
        await asyncio.gather(*asking)

    async def _ask(self, port, begun, work, patience):
        loop = asyncio.get_running_loop()
        at = loop.time()
        try:
            status = await asyncio.wait_for(self._status(port, work), patience)
        except (OSError, ValueError, IndexError, asyncio.TimeoutError):
            status = 0
        self.answers.append(Answer(at - begun, status, loop.time() - at))

    @staticmethod
    async def _status(port, work):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET /{work} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            status = int((await reader.readline()).split()[1])
            await reader.read()
            return status
        finally:
            writer.close()


ROOMY = {"max_queue": 100, "max_wait": 10, "client_timeout": 25}
ROOMY_TIMEOUTS = re.compile(r"(timeout (?:queue|connect)) \d+m?s")


class Fleet:
    """Some servers, and some HAProxies in front of them with the printed configuration.

    :param roomy: for tests that ask who is lost, and not who is refused: people may wait in it for
        longer than a machine pauses that is busy elsewhere.
    """

    def __init__(
        self, started, folder, *, servers=3, balancers=4, threads=8, push=False, roomy=False
    ):
        self.threads = threads
        room = ROOMY if roomy else {"max_queue": 16, "max_wait": 0.5}
        options = {"threads": threads, **room}
        self.sites = [started(FleetSite, **options) for _ in range(servers)]
        for site in self.sites:
            site.wait()
        known = [
            Server(f"web{n}", f"127.0.0.1:{site.port}", site.agent)
            for n, site in enumerate(self.sites, 1)
        ]

        def text(number):
            def written(bind, stats):
                name, more = f"lb{number}", ("nbthread 1",)
                printed = configuration(known, Setting(threads, balancers, name, bind, stats, more))
                return ROOMY_TIMEOUTS.sub(r"\1 10s", printed) if roomy else printed

            return written

        numbers = range(1, balancers + 1)
        self.balancers = [started(Balancer, folder, number, text(number)) for number in numbers]
        self.ports = [balancer.port for balancer in self.balancers]
        for balancer in self.balancers:
            eventually(balancer.answers)
        if push:
            self.push()
        eventually(self.all_up)
        each = -(-threads // balancers)
        eventually(lambda: all(b.maxconns() == [each] * servers for b in self.balancers))

    def shared(self):
        """Wait until each agent knows all balancers; before, each has more than its share.

        HAProxy takes the time of a check, 2 s, until it has asked each server for the first time.
        """
        each = -(-self.threads // len(self.balancers))
        known = len(self.balancers)
        eventually(lambda: all(shown["balancers"] == known for shown in self.tell()))
        eventually(lambda: {n for b in self.balancers for n in b.maxconns()} == {each})
        self.tell(forget=True)
        return self

    def push(self):
        for number, site in enumerate(self.sites, 1):
            site.tell(push=[f"unix:{b.admin}#app/web{number}" for b in self.balancers])

    def all_up(self):
        return all(s.startswith("UP") for b in self.balancers for s in b.statuses())

    def all_down(self):
        return all(s.startswith("DOWN") for b in self.balancers for s in b.statuses())

    def tell(self, **order):
        return [site.tell(**order) for site in self.sites]

    def periods(self, name):
        """In how many seconds this balancer asks each agent, as far as that knows it."""
        return [shown["periods"].get(name, DEFAULT_PERIOD_SECONDS) for shown in self.tell()]

    def longest(self):
        """The longest queue that was in each server."""
        return [site.tell()["longest"] for site in self.sites if site.popen.poll() is None]

    def rendered(self):
        """The checks that came to the app."""
        alive = [site for site in self.sites if site.popen.poll() is None]
        return [path for site in alive for path in site.tell()["rendered"]]
