"""Watches an act: how long a health check takes, how long the queues are.

Asks for checks as the balancers do, so in act one they wait in the pool like theirs; but it waits
for the answer, however long it takes, where a balancer gives up after 2 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from typing import TYPE_CHECKING

from .figures import AskedCheck, BalancersSeen, QueuePeak, Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .balancers import HaproxyProcess
    from .stage import Child

# Seconds between two checks, of one server and then the other: one a second for each of two. The
# four balancers together ask twice as often, so this is no load to speak of.
EVERY = 0.5

PROBE_AGENT = "busyguard-demo"
CHECK = f"OPTIONS / HTTP/1.0\r\nUser-Agent: {PROBE_AGENT}\r\n\r\n".encode()


async def watch_checks(ports: Sequence[int], begun: float, record: Record) -> None:
    """Ask for checks while visitors come, and wait for the answers until cancelled."""
    loop = asyncio.get_running_loop()
    asking: set[asyncio.Task[None]] = set()
    try:
        for n, port in zip(range(math.ceil(record.timeline.end / EVERY)), itertools.cycle(ports)):
            await asyncio.sleep(begun + n * EVERY - loop.time())
            check = AskedCheck(loop.time() - begun, 0.0)
            record.checks.append(check)
            task = asyncio.create_task(_ask(port, check, begun))
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.gather(*asking)
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def _ask(port: int, check: AskedCheck, begun: float) -> None:
    loop = asyncio.get_running_loop()
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHECK)
        check.answered = bool(await reader.readline())
    except OSError:
        pass
    finally:
        check.took = loop.time() - begun - check.asked
        if writer is not None:
            writer.close()


async def watch_queue(child: Child, number: int, begun: float, record: Record) -> None:
    """Write down what a server says of itself until cancelled."""
    before: dict[str, int] = {}
    spent_before = 0.0
    async for line in child.lines():
        pages: dict[str, int] = line["pages"]
        if line["at"] >= begun:
            record.queues.append(QueuePeak(line["at"] - begun, number, line["queued"]))
            for who, count in pages.items():
                more = count - before.get(who, 0)
                record.pages[who] = record.pages.get(who, 0) + more
            record.spent_on_nobody += line["spent"] - spent_before
        before, spent_before = pages, line["spent"]


async def watch_balancers(
    balancers: Sequence[HaproxyProcess], begun: float, record: Record
) -> None:
    """Write down how the balancers see it until cancelled."""
    loop = asyncio.get_running_loop()
    for n in itertools.count():
        await asyncio.sleep(begun + n * EVERY - loop.time())
        seen = []
        for balancer in balancers:
            with contextlib.suppress(OSError):
                seen.append(await balancer.see())
        record.balances.append(
            BalancersSeen(
                loop.time() - begun,
                waiting=sum(one.waiting for one in seen),
                up=sum(one.up for one in seen),
                of=sum(one.of for one in seen),
            )
        )
        record.times_down = sum(one.times_down for one in seen)
