"""What visitors of other views see while an outside service hangs.

    python benchmarks/outside.py [twisted|gunicorn|waitress ...] [--two] [--quick] [--json FILE]
    python benchmarks/outside.py --ways

One site on each server, ten threads, 0.7 x load: two quick views, 60 requests a second of 0.1 s on
average (exponential), and one that calls a local service, 10 a second. The service hangs 5 s a call
for 30 s. All kinds of protection run side by side, each in a process of its own, and get the very
same requests: what arrives when, and how long it takes. One of them has a service that stays well:
the unloaded one. A request is served if it has its answer within 5 s. ``--two``: another view, of
10 a second, calls another service, and both hang. ``--quick``: for 8 s, and only with nothing and
with a bulkhead. ``plot.py`` draws the picture of what ``--json`` has written.

``--ways``: the proxy between site and service plays all that can happen, 6 s of each, to a server
with and without the guard.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import outside_site as kinds
from figures import LESS, MORE, as_json, figure, machine
from outside_service import LATE, WAYS, WELL

if TYPE_CHECKING:
    from collections.abc import Collection

HERE = Path(__file__).parent

SERVERS = ("twisted", "gunicorn", "waitress")
PATIENCE = 5.0
SERVICE = 0.1

# Those that stand side by side; the first gets a service that is well.
UNLOADED = "bulkhead, all well"
COMPARED = (
    UNLOADED,
    kinds.NOTHING,
    kinds.DEADLINE,
    kinds.BREAKER,
    kinds.BREAKER_DEADLINE,
    kinds.BULKHEAD,
)
WAY_SECONDS = 6


class Play(NamedTuple):
    """How many seconds a service is well, hangs, and is well again; what stands side by side."""

    warm: int = 5
    outage: int = 30
    after: int = 3
    kinds: tuple[str, ...] = COMPARED

    @property
    def seconds(self) -> int:
        """How long it takes."""
        return self.warm + self.outage + self.after

    @property
    def outage_seconds(self) -> range:
        """The seconds in which the service hangs."""
        return range(self.warm, self.warm + self.outage)


QUICK = Play(2, 8, 1, (UNLOADED, kinds.NOTHING, kinds.BULKHEAD))


class Request(NamedTuple):
    """One that arrives ``at`` seconds after the beginning."""

    at: float
    view: str
    seconds: float


class Seen(NamedTuple):
    """What a visitor saw: the answer, or ``""``, after so many seconds."""

    request: Request
    answer: str
    took: float


def arrivals(rates: dict[str, float], seconds: float, seed: int) -> list[Request]:
    """Return the requests of a run."""
    rng, found = random.Random(seed), []
    for view, rate in rates.items():
        at = rng.expovariate(rate)
        while at < seconds:
            found.append(Request(at, view, rng.expovariate(1 / SERVICE)))
            at += rng.expovariate(rate)
    return sorted(found)


async def visit(port: int, request: Request, begin: float) -> Seen:
    """Ask for a page when it is time, and wait for it as long as a visitor does."""
    await asyncio.sleep(begin + request.at - time.monotonic())
    since = begin + request.at
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                line = (
                    f"GET /{request.view}?{request.seconds:.4f} HTTP/1.0\r\nHost: localhost\r\n\r\n"
                )
                writer.write(line.encode())
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
        answer = body.decode() if head.split()[1] == b"200" else ""
    except (OSError, TimeoutError, IndexError):
        answer = ""
    return Seen(request, answer, time.monotonic() - since)


class Stage:
    """Services and sites, each a process."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def begin(self, script: str, *args: str, **environ: str) -> subprocess.Popen[str]:
        """Start one, which says in a line where it listens."""
        command = [sys.executable, str(HERE / script), *args]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        env = {**os.environ, "PYTHONPATH": str(HERE.parent), **environ}
        process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, **pipes)
        self._processes.append(process)
        return process

    def service(self) -> tuple[subprocess.Popen[str], str]:
        """Start two outside services; return what takes orders, and their ports."""
        process = self.begin("outside_service.py", "2")
        ports = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        return process, " ".join(map(str, ports))

    def site(self, server: str, kind: str, ports: str) -> int:
        """Start a site; return its port when it answers."""
        process = self.begin("outside_site.py", server, KIND=kind, PORTS=ports)
        port = int(process.stdout.readline())  # type: ignore[union-attr]
        asyncio.run(_until_it_answers(port))
        return port


async def _until_it_answers(port: int) -> None:
    for _ in range(100):
        if (await visit(port, Request(0.0, "front", 0.0), time.monotonic())).answer:
            return
        await asyncio.sleep(0.1)
    raise RuntimeError("a site does not answer")


def become(service: subprocess.Popen[str], way: str) -> None:
    """Have a service be so from now on."""
    print(way, file=service.stdin, flush=True)
    service.stdout.readline()  # type: ignore[union-attr]


async def played(
    ports: list[int], requests: list[Request], changes: list[tuple[float, Any, str]]
) -> list[list[Seen]]:
    """Send the requests to each port, and have services change meanwhile."""
    begin = time.monotonic() + 0.5

    async def change(at: float, service: Any, way: str) -> None:
        await asyncio.sleep(begin + at - time.monotonic())
        become(service, way)

    turns = [change(*one) for one in changes]
    visits = [asyncio.gather(*(visit(port, one, begin) for one in requests)) for port in ports]
    return (await asyncio.gather(*visits, *turns))[: len(ports)]  # type: ignore[return-value]


def compare(server: str, play: Play, two: bool = False) -> dict[str, list[Seen]]:
    """Let a service hang, and see what each kind of protection is worth."""
    rates = {"front": 25.0 if two else 30.0, "cart": 25.0 if two else 30.0, "rates": 10.0}
    if two:
        rates["stock"] = 10.0
    with Stage() as stage:
        _, well_ports = stage.service()
        hangs, ports = stage.service()
        sites = [stage.site(server, kinds.BULKHEAD, well_ports)]
        sites += [stage.site(server, kind, ports) for kind in play.kinds[1:]]
        changes = [(play.warm, hangs, LATE), (play.warm + play.outage, hangs, WELL)]
        requests = arrivals(rates, play.seconds, seed=2013)
        seen = asyncio.run(played(sites, requests, changes))
        return dict(zip(play.kinds, seen, strict=True))


def quick(seen: list[Seen], since: float, until: float) -> list[Seen]:
    """Return what visitors of the quick views saw who came then."""
    return between(seen, {"front", "cart"}, since, until)


def between(seen: list[Seen], views: Collection[str], since: float, until: float) -> list[Seen]:
    """Return what visitors of some views saw who came then."""
    return [s for s in seen if s.request.view in views and since <= s.request.at < until]


def served(seen: list[Seen]) -> float:
    """Return the part that got an answer, in percent."""
    return 100 * sum(bool(one.answer) for one in seen) / len(seen) if seen else 100.0


def percentile(seen: list[Seen], part: float) -> float:
    """Return how long those took who were served, in milliseconds."""
    took = sorted(one.took for one in seen if one.answer)
    return 1000 * took[min(len(took) - 1, int(part * len(took)))] if took else float("nan")


def summary(seen: list[Seen], play: Play) -> dict[str, float]:
    """Return what is told of one kind of protection, of the outage."""
    since, until = play.warm, play.warm + play.outage
    there = quick(seen, since, until)
    each = [quick(seen, second, second + 1) for second in play.outage_seconds]
    calling = between(seen, kinds.NAMES, since, until)
    return {
        "quick": served(there),
        "worst second": min(map(served, each)),
        "first 5 s": served(quick(seen, since, since + 5)),
        "p50": percentile(there, 0.5),
        "p99": percentile(there, 0.99),
        "calling": served(calling),
        "calling p50": percentile(calling, 0.5),
    }


def table(found: dict[str, list[Seen]], play: Play) -> tuple[list[str], dict[str, Any]]:
    """Return the lines of a table, and the figures."""
    rows = {kind: summary(seen, play) for kind, seen in found.items()}
    unloaded = rows[UNLOADED]["p99"]
    heads = ("quick", "worst second", "first 5 s", "p50", "p99", "calling", "calling p50")
    lines = [f"{'':24}" + "".join(f"{head:>14}" for head in (*heads, "p99 ratio"))]
    for kind, row in rows.items():
        row["p99 ratio"] = row["p99"] / unloaded
        cells = [f"{row[head]:.1f}{' ms' if head[-1].isdigit() else ' %'}" for head in heads]
        lines.append(
            f"{kind:24}" + "".join(f"{cell:>14}" for cell in [*cells, f"{row['p99 ratio']:.2f}"])
        )
    ours = rows[kinds.BULKHEAD]
    bounds = [("worst second", 99.0, 1), ("calling", 99.0, 1), ("p99 ratio", 1.3, -1)]
    for name, bound, sign in bounds:
        met = "met" if sign * ours[name] >= sign * bound else "MISSED"
        lines.append(
            f"  {name}: {ours[name]:.2f}, must be {'>=' if sign > 0 else '<='} {bound}  {met}"
        )
    return lines, rows


def ratios(server: str, found: dict[str, list[Seen]], play: Play) -> dict[str, Any]:
    """Return what compare.py compares: the shares and the medians of each second of the outage."""
    figures = {}
    calm = percentile(quick(found[UNLOADED], play.warm, play.warm + play.outage), 0.5)
    for kind, seen in found.items():
        each = [quick(seen, second, second + 1) for second in play.outage_seconds]
        calls = [between(seen, kinds.NAMES, s, s + 1) for s in play.outage_seconds]
        took = [percentile(there, 0.5) / calm for there in each if any(s.answer for s in there)]
        name = f"{server}, {kind}"
        figures[f"{name}: quick views served"] = figure((served(s) / 100 for s in each), MORE)
        figures[f"{name}: calling views served"] = figure((served(s) / 100 for s in calls), MORE)
        figures[f"{name}: p50 / all well"] = figure(took, LESS)
    return as_json(figures)


def by_second(found: dict[str, list[Seen]], play: Play) -> dict[str, Any]:
    """Return what part of the quick views was served in each second, for the picture."""
    return {
        "hangs": [play.warm, play.warm + play.outage],
        "served": {
            kind: [served(quick(seen, second, second + 1)) for second in range(play.seconds)]
            for kind, seen in found.items()
        },
    }


def ways(server: str) -> list[str]:
    """Return a table of what visitors of the other views saw, for each way of failing."""
    rates = {"front": 30.0, "cart": 30.0, "rates": 10.0}
    heads = f"{'the service':52}{'without the guard':>34}{'with it':>34}"
    lines = [heads, f"{'':52}" + f"{'quick':>11}{'p99':>11}{'calling':>12}" * 2]
    for number, (way, says) in enumerate(WAYS.items()):
        with Stage() as stage:
            service, ports = stage.service()
            sites = [stage.site(server, kind, ports) for kind in (kinds.UNGUARDED, kinds.BULKHEAD)]
            requests = arrivals(rates, 1 + WAY_SECONDS, seed=number)
            seen = asyncio.run(played(sites, requests, [(1.0, service, way)]))
        cells = ""
        for each in seen:
            there = quick(each, 1, 1 + WAY_SECONDS)
            calling = [one for one in each if one.request.view == "rates" and one.request.at >= 1]
            cells += (
                f"{served(there):9.1f} %{percentile(there, 0.99):8.0f} ms{served(calling):10.1f} %"
            )
        lines.append(f"{says:52}{cells}")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("servers", nargs="*", default=[])
    parser.add_argument("--two", action="store_true")
    parser.add_argument("--ways", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    said = parser.parse_args()
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    if said.ways:
        print("\n".join(ways((said.servers or ["twisted"])[0])))
        return
    play = QUICK if said.quick else Play()
    report: dict[str, Any] = {**about, "figures": {}, "seconds": {}, "told": {}}
    for server in said.servers or SERVERS:
        found = compare(server, play, said.two)
        lines, report["told"][server] = table(found, play)
        report["figures"] |= ratios(server, found, play)
        report["seconds"][server] = by_second(found, play)
        what = "two services hang" if said.two else "one service hangs"
        print(f"\n{server}, {what} {play.outage} s\n" + "\n".join(lines), flush=True)
    if said.json:
        said.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
