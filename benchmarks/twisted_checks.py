"""How long a health check takes while Twisted's threads are all taken.

200 clients keep the 10 threads of an app asleep, on three sites at once, each in a process of its
own; checks go round the sites, so that a noisy machine is noisy for all. Then 20 clients have the
threads compute: there the sites take turns, for the machine has few cores. A check is a new
connection and ``OPTIONS / HTTP/1.0``, as bare ``option httpchk`` sends it.

    python benchmarks/twisted_checks.py [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from figures import as_json, figure, machine

THREADS = 10

# A stock site's check waits behind 190 others for 19 s; nobody waits that long for a figure.
GIVE_UP = 25.0

SITES = {
    "stock WSGIResource, check in the app": {"stock": True},
    "guarded": {"max_queue": 1_000_000, "max_wait": 1e6},
    "guarded, max_queue=20": {"max_queue": 20},
}

REFUSED_PAUSE = 0.2

SLEEPING, COMPUTING = "sleeps 1 s", "computes 0.1 s"
ROUNDS, TURN = 2, 3.5


def serve(options):
    """Serve one site, and say where; in a process of its own."""
    from twisted.internet import reactor
    from twisted.python.threadpool import ThreadPool
    from twisted.web.server import Site
    from twisted.web.wsgi import WSGIResource

    from wsgi_busyguard.adapters.twisted import guarded_site
    from wsgi_busyguard.checkport import CheckPort

    ports = {}
    if options.pop("stock", False):
        pool = ThreadPool(THREADS, THREADS)
        site = Site(WSGIResource(reactor, pool, app))
        reactor.callWhenRunning(pool.start)
    else:
        site = guarded_site(app, THREADS, **options)
        ports["check port"] = CheckPort(site.guard.monitor, "127.0.0.1:0").start().address[1]
    ports["reactor"] = (
        reactor.listenTCP(0, site, backlog=1024, interface="127.0.0.1").getHost().port
    )
    reactor.callWhenRunning(print, json.dumps(ports), flush=True)
    reactor.run()


def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "OPTIONS":
        pass
    elif environ["PATH_INFO"] == "/sleep":
        time.sleep(1)
    else:
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            sum(range(200))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


async def ask(port, line):
    """Ask on a connection of its own, and return the answer when it is complete."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(line + b" HTTP/1.0\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        return head + await reader.readexactly(int(length[1]))
    finally:
        writer.close()


async def client(port, path):
    while True:
        try:
            answer = await ask(port, b"GET " + path.encode())
        except (OSError, asyncio.IncompleteReadError):
            answer = b""
        if b" 200 " not in answer[:20]:
            await asyncio.sleep(REFUSED_PAUSE)


async def crowd(port, path, clients):
    """Be so many clients; in a process of its own, until it is ended."""
    await asyncio.gather(*(client(port, path) for _ in range(clients)))


async def check(port):
    """Return the milliseconds that a check took; GIVE_UP's if it took longer."""
    began = time.perf_counter()
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(ask(port, b"OPTIONS /"), GIVE_UP)
    return (time.perf_counter() - began) * 1000


async def checked(sites, seconds, results):
    """Check on these sites, in turns, for so long."""
    await asyncio.sleep(1)  # until every thread has work
    pending = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for site in sites:
            for where, port in site.ports.items():
                took = results.setdefault((site.app, site.name, where), [])
                if "check port" in site.ports:
                    took.append(await check(port))
                elif len(pending) < 4 * seconds:  # they wait side by side
                    pending.append(asyncio.create_task(check(port)))
        await asyncio.sleep(0.02)
    for took in await asyncio.gather(*pending):
        results[sites[0].app, next(iter(SITES)), "reactor"].append(took)


class Running:
    """A site and its crowd, each in a process of its own."""

    def __init__(self, app, name):
        self.app, self.name = app, name
        self._server = started("--serve", SITES[name])
        self.ports = json.loads(self._server.stdout.readline())
        path, clients = ("/sleep", 200) if app == SLEEPING else ("/cpu", 20)
        self._crowd = started("--crowd", [self.ports["reactor"], path, clients])

    def end(self):
        """End both."""
        for process in (self._crowd, self._server):
            process.kill()
            process.wait()
            process.stdout.close()


async def measured():
    """Return how long each check took, by app, site and port."""
    results = {}
    sites = [Running(SLEEPING, name) for name in SITES]
    await checked(sites, TURN, results)
    for site in sites:
        site.end()
    for _ in range(ROUNDS):
        for name in SITES:
            site = Running(COMPUTING, name)
            await checked([site], TURN, results)
            site.end()
    return results


def shown(values):
    ordered = sorted(values)

    def percentile(percent):
        return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 1)

    return {
        "n": len(ordered),
        **{f"p{percent}": percentile(percent) for percent in (50, 90, 99)},
        "max": round(ordered[-1], 1),
    }


def ratios(results, stock):
    """Return what compare.py compares: each check by the median of a stock server's, of that app.

    :param results: milliseconds, by what was checked.
    :param stock: returns the name of the stock server's that one is compared with.
    """
    figures = {}
    for name, values in results.items():
        compared = stock(name)
        if compared != name and results.get(compared):
            median = statistics.median(results[compared])
            figures[", ".join(filter(None, name))] = figure(took / median for took in values)
    return as_json(figures)


def started(what, told):
    """Start this file again, to be something else."""
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, __file__, what, json.dumps(told)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def report(results):
    """Print a table, and return its rows."""
    rows = []
    print(f"{'app':15} {'site':37} {'asked at':10}     n       p50       p90       p99       max")
    for (app_name, name, where), values in sorted(results.items(), reverse=True):
        row = shown(values)
        rows.append({"app": app_name, "site": name, "port": where, **row})
        figures = " ".join(f"{row[key]:9.1f}" for key in ("p50", "p90", "p99", "max"))
        print(f"{app_name:15} {name:37} {where:10} {row['n']:5} {figures}")
    return rows


def stock_site(name):
    app_name, _, _ = name
    return app_name, next(iter(SITES)), "reactor"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--crowd", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(json.loads(arguments.serve))
    elif arguments.crowd:
        asyncio.run(crowd(*json.loads(arguments.crowd)))
    else:
        began = time.perf_counter()
        results = asyncio.run(measured())
        rows = report(results)
        print(f"ms; {THREADS} threads, {time.perf_counter() - began:.0f} s in all")
        if arguments.json:
            said = {"figures": ratios(results, stock_site), "ms": rows}
            Path(arguments.json).write_text(json.dumps({**machine(), **said}, indent=1) + "\n")


if __name__ == "__main__":
    main()
