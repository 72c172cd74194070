"""How much of its capacity a server gets out to people when too many come.

Twisted, and an app that sleeps 0.1 s on 10 threads, so 100 requests a second; or one that computes
for 0.05 s on 2 threads, so 20. Clients come at 0.7, 2, 5 and 10 times that (open loop, Poisson, one
seed), give up after 1 s and try once more. A stock WSGIResource beside a guarded site, each in a
process of its own, one after the other at each load. Goodput is what came back as 200 within a
client's second, in per cent of the capacity.

    python benchmarks/overload.py [--app sleeps|computes] [--seconds 8] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CLIENT_TIMEOUT = 1.0
LOADS = (0.7, 2, 5, 10)
SITES = ("stock", "guarded")


class Kind(NamedTuple):
    """An app: its threads, seconds of service, requests a second, and the goodput wanted."""

    app: Callable[..., Iterable[bytes]]
    threads: int
    service: float
    capacity: float
    wanted: dict[float, float]


class Seen(NamedTuple):
    """What came of one site at one load."""

    site: str
    load: float
    goodput: float
    median: float | None
    p99: float | None
    refused: int


def sleeps(environ, start_response):
    """Wait for somebody else, as most apps do."""
    time.sleep(KINDS["sleeps"].service)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"slept"]


def computes(environ, start_response):
    """Keep the interpreter to itself."""
    end = time.thread_time() + KINDS["computes"].service
    while time.thread_time() < end:
        pass
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "8")])
    return [b"computed"]


KINDS = {
    "sleeps": Kind(sleeps, 10, 0.1, 100.0, {2: 97.0, 5: 95.0, 10: 90.0}),
    # Threads that compute take turns, so two serve no more than one does.
    "computes": Kind(computes, 2, 0.05, 20.0, {2: 95.0, 5: 90.0, 10: 85.0}),
}


def serve(site, kind):
    """Serve the app and print the port; in a process of its own."""
    from twisted.internet import reactor
    from twisted.python.threadpool import ThreadPool
    from twisted.web.server import Site
    from twisted.web.wsgi import WSGIResource

    from wsgi_busyguard.adapters.twisted import guarded_site

    if site == "guarded":
        factory = guarded_site(kind.app, kind.threads, client_timeout=CLIENT_TIMEOUT, grace=1.0)
    else:
        pool = ThreadPool(kind.threads, kind.threads)
        factory = Site(WSGIResource(reactor, pool, kind.app))
        reactor.callWhenRunning(pool.start)
    port = reactor.listenTCP(0, factory, backlog=4096, interface="127.0.0.1")
    print(port.getHost().port, flush=True)
    reactor.run()


async def crowd(url, rate, seconds):
    """Send ``rate`` clients a second; return good answers a second, their times, and refusals."""
    dice = random.Random(2013)
    times, refused, clients = [], 0, set()

    async def client(session):
        nonlocal refused
        for _ in range(2):
            began = time.monotonic()
            try:
                async with session.get(url) as answer:
                    await answer.read()
                    if answer.status == 200:
                        times.append(time.monotonic() - began)
                        return
                    refused += 1
            except (asyncio.TimeoutError, aiohttp.ClientError):
                pass
            await asyncio.sleep(dice.uniform(0.1, 0.5))

    timeout = aiohttp.ClientTimeout(total=CLIENT_TIMEOUT)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = at = time.monotonic()
        while at < began + seconds:
            at += dice.expovariate(rate)
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            task = asyncio.create_task(client(session))
            clients.add(task)
            task.add_done_callback(clients.discard)
        answered = len(times) / (time.monotonic() - began)
        await asyncio.gather(*clients)
    return answered, times, refused


def measure(site, name, load, seconds):
    """Return what is seen of one site at one load."""
    command = [sys.executable, __file__, "--serve", site, "--app", name]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/"
        capacity = KINDS[name].capacity
        answered, times, refused = asyncio.run(crowd(url, capacity * load, seconds))
    finally:
        server.kill()  # a stock pool does not end while a thread is in the app
        server.wait()
        server.stdout.close()
    p99 = statistics.quantiles(times, n=100)[98] if len(times) > 99 else None
    goodput = answered / capacity * 100
    return Seen(site, load, goodput, statistics.median(times) if times else None, p99, refused)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--app", choices=KINDS, default="sleeps")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load on each site")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--serve", choices=SITES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, KINDS[options.app])
        return
    print(f"{'load':>6}  {'site':8}  {'goodput':>8}  {'median':>8}  {'p99':>8}  {'refused':>8}")
    seen = []
    for load in LOADS:
        for site in SITES:
            row = measure(site, options.app, load, options.seconds)
            seen.append(row._asdict())
            wanted = KINDS[options.app].wanted.get(load) if site == "guarded" else None
            word = "" if wanted is None else "  met" if row.goodput >= wanted else "  MISSED"
            print(
                f"{load:>5} x  {site:8}  {row.goodput:>6.1f} %  {_ms(row.median)}  {_ms(row.p99)}"
                f"  {row.refused:>8}{word}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(seen, indent=1))


def _ms(seconds):
    return f"{'none':>8}" if seconds is None else f"{seconds * 1000:>5.0f} ms"


if __name__ == "__main__":
    main()
