"""Measures how soon a HAProxy does what a server's change of state asks for: push, agent, checks.

Two guarded servers with 32 threads, requests of 5 ms, 150 a second in turn (roundrobin), new
connections, one HAProxy. Others come past it and fill one server for a while. Counted is the time
from the change of state, as the monitor notes it, to the last new request at that server, the one
that ``maxconn 1`` allows included; and from the change back to the first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import farm

from wsgi_busyguard.haproxy import Server, Setting, configuration

THREADS, WORK, RATE = 32, 0.005, 150.0
OTHERS = THREADS + 40


class Row(NamedTuple):
    """A mechanism.

    :param wait: seconds that the others stay, and that are left before the next time.
    :param times: how often.
    :param edit: what differs from the printed configuration.
    """

    name: str
    wait: float
    times: int
    agent: str = ""
    check: str = ""
    push: bool = False


ROWS = [
    Row("push", 0.6, 150, push=True),
    Row("push, and agent every 200 ms", 0.6, 150, "200ms", push=True),
    Row("agent every 100 ms", 0.6, 40, "100ms"),
    Row("agent every 200 ms (printed)", 0.8, 25, "200ms"),
    Row("check, inter 500ms fall 1 rise 1", 1.5, 15, check="inter 500ms fall 1 rise 1"),
    Row("check, inter 2s fall 1 rise 1", 4.5, 6, check="inter 2s fall 1 rise 1"),
    Row("check, inter 2s fall 3 rise 2", 8.5, 5, check="inter 2s fall 3 rise 2"),
]


def text_of(row: Row, servers: list[farm.Server], bind: str, stats: str) -> str:
    """Return the printed configuration with this mechanism alone."""
    known = [Server(f"web{n}", f"127.0.0.1:{s.port}", s.agent) for n, s in enumerate(servers)]
    text = configuration(known, Setting(THREADS, 1, "lb1", bind, stats, ("nbthread 1",)))
    edits = {"balance leastconn": "balance roundrobin"}
    edits["inter 2s fall 3 rise 2"] = row.check or "inter 2s"  # and never 503, see below
    if row.agent:
        edits["agent-inter 200ms"] = f"agent-inter {row.agent}"
    else:
        edits["agent-check agent-inter 200ms"] = "no-agent-check"
    if row.check:  # as many as want to, or the limit would be what is measured
        edits[f"maxconn {THREADS} "] = "maxconn 100000 "
    for old, new in edits.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


async def play(row: Row, haproxy: str) -> tuple[list[float], list[float]]:
    """Return the seconds to the last new request, and back to the first."""
    options: dict[str, Any] = {"threads": THREADS, "max_queue": "inf", "max_wait": "inf"}
    options["ready"] = "exact" if row.check else "always"
    started: list[farm.Program] = []
    chance = random.Random(1)
    with tempfile.TemporaryDirectory(prefix="busyguard-") as folder:
        try:
            servers = [farm.Server(**options) for _ in range(2)]
            started += servers
            balancer = farm.Balancer(
                haproxy, Path(folder), 1, lambda *sockets: text_of(row, servers, *sockets)
            )
            started.append(balancer)
            if row.push:
                for n, server in enumerate(servers):
                    server.tell(push=[f"unix:{balancer.path}#app/web{n}"])
            visitors = asyncio.create_task(_steadily(balancer.port))
            await asyncio.sleep(1.0)
            server = servers[0]
            busy, free = [], []
            for _ in range(row.times):
                server.ask(report=True)
                server.tell(fill=OTHERS)
                await asyncio.sleep(row.wait)
                server.tell(release=True)
                await asyncio.sleep(row.wait * chance.uniform(1.0, 1.4))
                one = reaction(server.ask(report=True))
                busy.append(one[0])
                free.append(one[1])
            visitors.cancel()
            await asyncio.gather(visitors, return_exceptions=True)
            return busy, free
        finally:
            for program in started:
                program.end()


def reaction(report: Any) -> tuple[float, float]:
    """Return the seconds to the last new request and back to the first."""
    changes = {"busy": 0.0, "free": 0.0}
    for state, at in reversed(report["seen"]):
        changes[state] = at
    busy, free = changes["busy"], changes["free"]
    assert 0.0 < busy < free, report["seen"]
    between = [at for at in report["arrivals"] if busy <= at < free]
    after = [at for at in report["arrivals"] if at >= free]
    return max(between, default=busy) - busy, min(after, default=time.monotonic()) - free


async def _steadily(port: int) -> None:
    loop = asyncio.get_running_loop()
    begun, number = loop.time(), 0
    asking: set[asyncio.Task[None]] = set()
    try:
        while True:
            number += 1
            await asyncio.sleep(begun + number / RATE - loop.time())
            task = asyncio.create_task(farm._visit(port, 0.0, begun, WORK, 60.0, []))
            asking.add(task)
            task.add_done_callback(asking.discard)
    finally:
        for task in asking:
            task.cancel()


def _figures(seconds: list[float]) -> str:
    ordered = sorted(1000 * one for one in seconds)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.95, 0.99)]
    return "".join(f"{one:8.0f}" for one in (*at, ordered[-1]))


def main() -> None:
    """Play each row and print its distribution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="only those with this in their name")
    chosen = parser.parse_args()
    haproxy = farm.find_haproxy()
    heads = "".join(f"{word:>8}" for word in ("p50", "p95", "p99", "max"))
    print(f"{'ms':34}{'times':>6}  busy: last new request           free: first request")
    print(f"{'':34}{'':>6}{heads}   {heads}")
    for row in ROWS:
        if chosen.rows in row.name:
            busy, free = asyncio.run(play(row, haproxy))
            print(f"{row.name:34}{len(busy):6}{_figures(busy)}   {_figures(free)}", flush=True)
    said = os.popen(f"{haproxy} -v").readline().split(" 20")[0].strip()
    print(f"{said}; load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
