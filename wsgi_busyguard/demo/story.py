"""The story: three acts of one play, each on a stage of its own."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from . import balancers, load, probe
from .acts import ACTS, Act
from .configurations import BALANCERS, Address
from .figures import Record, Timeline
from .stage import ActProcesses, Broken, Child, beside

if TYPE_CHECKING:
    from pathlib import Path

    from .narration import Narration

SERVERS = 2
THREADS = 8  # of each server
OUTSIDE = 0.12  # seconds that the outside service takes
PAGE = 0.008  # seconds that the home page takes beside that, about
SLOWER = 20  # times, in the blip
LOAD = 0.7  # of what the servers can do
PATIENCE = 4.0  # seconds after which a visitor gives up
RATE = LOAD * SERVERS * THREADS / (OUTSIDE + PAGE)  # visits a second

FULL = Timeline(before=8, blip=10, after=22)
QUICK = Timeline(before=3, blip=6, after=9)
TICK = 0.25  # seconds between two looks
WARM_UP = 20.0  # seconds that the first pages may take


async def tell(
    haproxy: str, timeline: Timeline, directory: Path, narration: Narration
) -> list[Record]:
    """Play the acts, one after the other, and return what was seen of each.

    :param haproxy: the path of the program.
    :param directory: where each act's configurations and logs go.
    """
    records = []
    for act in ACTS:
        narration.curtain(act)
        place = directory / f"act-{act.name}"
        place.mkdir()
        async with ActProcesses(place) as stage:
            records.append(await _play(act, stage, haproxy, timeline, narration))
        narration.applause(act, records[-1])
    return records


async def _play(
    act: Act, stage: ActProcesses, haproxy: str, timeline: Timeline, narration: Narration
) -> Record:
    outside = await stage.python("outside", "outside", "--seconds", OUTSIDE)
    servers = await asyncio.gather(
        *(_server(act, stage, number, outside) for number in range(1, SERVERS + 1))
    )
    addresses = [Address(one.hello["web"], one.hello.get("agent")) for one in servers]
    # The servers first, and alone: a process that is still importing Django is busy, and HAProxy
    # takes a server out at once if the first check of all fails.
    direct = [f"http://127.0.0.1:{one.web}/" for one in addresses]
    await beside(load.warm_up(direct * THREADS), _look(stage, WARM_UP))
    farm = await balancers.start(stage, haproxy, act.name, addresses, THREADS)
    await beside(load.warm_up([one.url for one in farm]), _look(stage, WARM_UP))
    record = Record(timeline, PATIENCE)
    begun = asyncio.get_running_loop().time()
    crowd = load.Crowd([one.url for one in farm], PATIENCE, record.visits)
    await beside(
        crowd.come(load.arrivals(RATE, timeline.end), begun),
        probe.watch_checks([address.web for address in addresses], begun, record),
        probe.watch_balancers(farm, begun, record),
        *(probe.watch_queue(one, n, begun, record) for n, one in enumerate(servers)),
        _weather(outside, timeline, begun, narration),
        _look(stage, math.inf),
        _comment(record, begun, narration),
    )
    return record


async def _server(act: Act, stage: ActProcesses, number: int, outside: Child) -> Child:
    return await stage.python(
        f"web{number}",
        "server",
        *("--act", act.name),
        *("--threads", THREADS),
        *("--client-timeout", PATIENCE),
        *("--outside", outside.hello["port"]),
    )


async def _weather(outside: Child, timeline: Timeline, begun: float, narration: Narration) -> None:
    loop = asyncio.get_running_loop()
    narration.scene("before")
    await asyncio.sleep(begun + timeline.before - loop.time())
    outside.tell(str(SLOWER))
    narration.scene("blip")
    await asyncio.sleep(begun + timeline.well_again - loop.time())
    outside.tell("1")
    narration.scene("after")
    await asyncio.sleep(begun + timeline.end - loop.time())
    narration.scene("end")


async def _comment(record: Record, begun: float, narration: Narration) -> None:
    loop = asyncio.get_running_loop()
    while True:
        narration.moment(loop.time() - begun, record)
        await asyncio.sleep(TICK)


async def _look(stage: ActProcesses, seconds: float) -> None:
    """Notice a process that ends, until cancelled; and that this takes longer than ``seconds``."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while loop.time() - begun < seconds:
        stage.look()
        await asyncio.sleep(TICK)
    raise Broken(f"no page came in {seconds:.0f} s; run it with --keep and look at the logs")


def scenes() -> dict[str, str]:
    """Return the words for what happens in an act."""
    well, ill = OUTSIDE + PAGE, OUTSIDE * SLOWER + PAGE
    return {
        "before": f"all is well: a page takes {well:.2f} s",
        "blip": f"the outside service is {SLOWER} x slower now: a page takes {ill:.1f} s",
        "after": "the outside service is well again: now see how long the site takes to be",
        "end": "nobody comes any more; the last ones wait",
    }


def possible_in_blip() -> float:
    """Return the share of the visits that the servers can serve while the service is slow."""
    return SERVERS * THREADS / (OUTSIDE * SLOWER + PAGE) / RATE


def figures() -> dict[str, float]:
    """Return the figures that all acts have in common."""
    return {
        "servers": SERVERS,
        "threads": THREADS,
        "balancers": BALANCERS,
        "visits_per_second": round(RATE, 1),
        "load": LOAD,
        "outside": OUTSIDE,
        "slower": SLOWER,
        "patience": PATIENCE,
        "possible_in_blip": round(possible_in_blip(), 3),
    }
