"""``busyguard demo --computes``: a site that computes its pages, without the guard and with it.

Ten threads of one interpreter compute no more than one thread does. So twice as many visitors as it
can serve are refused or served at once with the guard, and without it all come too late, the health
checks among them. Run as a module this is the site, in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table

from . import load, probe, report
from .child import obey, say
from .figures import Record, Timeline
from .stage import ActProcesses, beside

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import Any

    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from rich.console import Console

    from .stage import Child

THREADS = 10
PAGE = 0.02  # seconds of computing in a page
LOAD = 2.0  # times what the site can do
PATIENCE = 1.0  # seconds after which a visitor gives up
FULL = Timeline(before=3, blip=0, after=6)  # what is counted comes after "before"
QUICK = Timeline(before=1, blip=0, after=2)
SITES = {"without the guard": (), "with the guard": ("--guarded",)}

INTRODUCTION = (
    f"A Twisted process with {THREADS} threads computes its pages, {PAGE * 1000:.0f} ms each."
    f" {LOAD / PAGE:.0f} visitors come a second, where it can serve {1 / PAGE:.0f}; each waits"
    f" {PATIENCE:.0f} s and presses reload once.\n"
)


class Outcome(NamedTuple):
    """What visitors and balancers saw of one of the sites.

    :ivar pages: that came a second, to somebody who was still there.
    :ivar slowest_check: in seconds, or what it has waited so far.
    """

    site: str
    pages: float
    slowest_check: float
    checks_unanswered: int


async def tell(timeline: Timeline, directory: Path, console: Console) -> list[Outcome]:
    """Let the visitors come to each of the sites, one after the other."""
    outcomes = []
    for name, arguments in SITES.items():
        console.print(f"  {name}: {timeline.end:.0f} seconds", highlight=False)
        place = directory / name.replace(" ", "-")
        place.mkdir()
        async with ActProcesses(place) as stage:
            site = await stage.python("web", "computing", *arguments)
            outcomes.append(await _play(name, site, timeline))
    return outcomes


async def _play(name: str, site: Child, timeline: Timeline) -> Outcome:
    port = site.hello["web"]
    url = f"http://127.0.0.1:{port}/"
    await load.warm_up([url])
    record = Record(timeline, PATIENCE)
    begun = asyncio.get_running_loop().time()
    crowd = load.Crowd([url], PATIENCE, record.visits)
    await beside(
        crowd.come(load.arrivals(LOAD / PAGE, timeline.end), begun),
        probe.watch_checks([port], begun, record),
    )
    return outcome(name, record)


def outcome(name: str, record: Record) -> Outcome:
    """Return the figures of what was seen."""
    start, end = record.timeline.before, record.timeline.end
    came = [visit.arrived + visit.took for visit in record.visits if visit.took is not None]
    return Outcome(
        name,
        pages=sum(start <= at < end for at in came) / (end - start),
        slowest_check=max((check.took for check in record.checks), default=0.0),
        checks_unanswered=sum(not check.answered for check in record.checks),
    )


def table(outcomes: list[Outcome]) -> Table:
    """Return the figures side by side."""
    told = Table(title="A site that computes", title_justify="left")
    told.add_column()
    for one in outcomes:
        told.add_column(one.site, justify="right")
    told.add_row("pages that came in time", *(f"{one.pages * PAGE:.0%}" for one in outcomes))
    told.add_row("slowest health check", *map(_slowest, outcomes))
    return told


def _slowest(one: Outcome) -> str:
    return ("> " if one.checks_unanswered else "") + report.seconds(one.slowest_check)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Compute a page; it is the same one every time."""
    if environ["REQUEST_METHOD"] != "OPTIONS":  # without the guard this is the check
        end = time.thread_time() + PAGE
        while time.thread_time() < end:
            pass
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"42"]


def main() -> None:
    """Serve until the pipe closes."""
    from twisted.internet import reactor as global_reactor
    from twisted.python.threadpool import ThreadPool
    from twisted.web.server import Site
    from twisted.web.wsgi import WSGIResource

    from ..adapters.twisted import guarded_site

    reactor: Any = global_reactor
    parser = argparse.ArgumentParser()
    parser.add_argument("--guarded", action="store_true")
    if parser.parse_args().guarded:
        site: Site = guarded_site(app, THREADS, client_timeout=PATIENCE)
    else:
        pool = ThreadPool(THREADS, THREADS)
        reactor.callWhenRunning(pool.start)
        site = Site(WSGIResource(reactor, pool, app))
    port = reactor.listenTCP(0, site, 1024, "127.0.0.1")
    obey(lambda line: None)
    say(web=port.getHost().port)
    reactor.run()


if __name__ == "__main__":
    main()
