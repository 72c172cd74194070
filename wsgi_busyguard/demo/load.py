"""The visitors: they come whether the site is well or not, and each has only so much patience."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from typing import TYPE_CHECKING

import aiohttp

from .figures import PageVisit

if TYPE_CHECKING:
    from collections.abc import Sequence

SEED = 2013

# With each try comes the moment at which it was made, on the clock that all processes of a machine
# share, so that the site can count what it does for those who have left. Only act three could use
# it, and does not: the guard has its own way to know.
ARRIVED = "X-Arrived"

# Seconds that somebody who is told "busy, try again" looks at it before he presses reload. One
# who gave up waiting presses at once. Nobody does it twice.
PAUSE = 1.0


def arrivals(rate: float, seconds: float) -> list[float]:
    """Return when visitors arrive: a Poisson process, the same in every act."""
    luck = random.Random(SEED)
    times = itertools.accumulate(luck.expovariate(rate) for _ in itertools.count())
    return list(itertools.takewhile(lambda at: at < seconds, times))


async def warm_up(urls: Sequence[str]) -> None:
    """Visit each, all at once, until every one has answered."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        await asyncio.gather(*(_well(session, url) for url in urls))


async def _well(session: aiohttp.ClientSession, url: str) -> None:
    while True:
        try:
            async with session.get(url) as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05)


class Crowd:
    """Everybody who visits in an act.

    :param urls: the balancers', taken in turn.
    :param patience: seconds that somebody waits for a page.
    :param visits: gets one entry for each visitor as he arrives.
    """

    def __init__(self, urls: Sequence[str], patience: float, visits: list[PageVisit]) -> None:
        self._urls = itertools.cycle(urls)
        self._patience = patience
        self._visits = visits
        self._inside: dict[asyncio.Task[None], float] = {}

    async def come(self, times: Sequence[float], begun: float) -> None:
        """Arrive at these times after ``begun``; return when the last one's patience is over."""
        loop = asyncio.get_running_loop()
        # A connection for each try: visitors do not share theirs.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=self._patience)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            try:
                for at in times:
                    await asyncio.sleep(begun + at - loop.time())
                    visit = PageVisit(at)
                    self._visits.append(visit)
                    task = asyncio.create_task(self._visit(session, visit, begun + at))
                    self._inside[task] = at
                    task.add_done_callback(self._inside.pop)
                await self._wait_for_the_last(begun)
            finally:
                for task in self._inside:
                    task.cancel()
                await asyncio.gather(*self._inside, return_exceptions=True)

    async def _wait_for_the_last(self, begun: float) -> None:
        loop = asyncio.get_running_loop()
        while any(begun + at + self._patience > loop.time() for at in self._inside.values()):
            await asyncio.sleep(0.05)

    async def _visit(
        self, session: aiohttp.ClientSession, visit: PageVisit, arrived: float
    ) -> None:
        loop = asyncio.get_running_loop()
        url = next(self._urls)
        for last_try in (False, True):
            try:
                came = {ARRIVED: f"{time.monotonic():.6f}"}
                async with session.get(url, headers=came) as response:
                    await response.read()
                    if response.status == 200:
                        visit.took = loop.time() - arrived
                        return
            except asyncio.TimeoutError:
                continue
            except aiohttp.ClientError:
                pass
            if not last_try:
                await asyncio.sleep(PAUSE)
