"""Visitors who come whether or not they are served, for overload.py and nobody else.

Run with a plan in JSON this file is all visitors of one server, in a process of its own: what it
needs of the interpreter is not the server's. It prints in JSON what they saw, and by how much it
was late itself. Connections are kept and used again, as a balancer does; one that waits in vain
closes its own. ::

    python benchmarks/crowd.py '{"port": 8080, "rate": 200, "way": "poisson", "patience": 1}'
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import re
import resource
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

START_PATIENCE = 30.0
CHECK_PATIENCE = 20.0
MOST_CHECKS = 40  # outstanding at once; a server that answers none is not to be flooded by them
LEFT, BROKEN = 0, -1  # in place of a status

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Plan(NamedTuple):
    """What the visitors do.

    :ivar rate: of visitors a second.
    :ivar way: "poisson"; "batches" of ``size`` at once; "pages", one request and then ``size`` at
        once; "at once", ``size`` of them and then nobody until all have their answers.
    :ivar patience: seconds after which one gives up.
    :ivar tries: how often one comes, if it is refused or gives up.
    :ivar skip: seconds that are not counted, and ``seconds`` that are.
    :ivar calm: seconds before all this in which there is only one visitor.
    :ivar check_every: seconds from one check to the next.
    """

    port: int
    rate: float = 0.0
    way: str = "poisson"
    size: int = 1
    patience: float = 1.0
    tries: int = 2
    skip: float = 3.0
    seconds: float = 4.0
    calm: float = 1.0
    check_every: float = 0.05
    seed: int = 2013


class Attempt(NamedTuple):
    """When one came, in seconds of the run, what it got, and after how many seconds.

    :ivar work: for how many seconds the app says it had it.
    """

    at: float
    status: int
    took: float
    work: float = 0.0


class Answer(NamedTuple):
    """A status, or LEFT or BROKEN, and what the body says: seconds in the app, or nothing."""

    status: int
    work: float = 0.0


class Connection(asyncio.Protocol):
    """One connection; one request on it at a time."""

    def __init__(self, pool: list[Connection]) -> None:
        self._pool = pool
        self._said = b""
        self._answer: asyncio.Future[Answer] | None = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Note where to write."""
        self.transport = transport

    def ask(self, head: bytes) -> asyncio.Future[Answer]:
        """Send a request, and return what will be its answer."""
        self._said = b""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(head)
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Take in a piece of an answer."""
        self._said += data
        head, end, body = self._said.partition(b"\r\n\r\n")
        if not end or self._answer is None:
            return
        length = _LENGTH.search(head)
        if length is None or len(body) < int(length[1]):
            return
        answer, self._answer = self._answer, None
        if _CLOSES.search(head):
            self.transport.close()
        else:
            self._pool.append(self)
        if not answer.done():
            status = int(head[9:12])
            answer.set_result(Answer(status, float(body) if body[:1].isdigit() else 0.0))

    def connection_lost(self, _error: Exception | None) -> None:
        """Say so to whoever waits for an answer."""
        with contextlib.suppress(ValueError):
            self._pool.remove(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError(bool(self._said)))
        self._answer = None


class Visitors:
    """All who come to one server, and what they saw."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._dice = random.Random(plan.seed)
        self._pool: list[Connection] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._began = 0.0
        self.attempts: list[Attempt] = []
        self.checks: list[Attempt] = []
        self.calm: list[float] = []
        self.late: list[float] = []

    async def ask(self, patience: float, method: str = "GET", *, fresh: bool = False) -> Answer:
        """Return what one request gets."""
        head = f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        loop, connection, late = asyncio.get_running_loop(), None, False
        task = asyncio.current_task()

        def leave() -> None:
            nonlocal late
            late = True
            task.cancel()

        timer = loop.call_later(patience, leave)
        try:
            if self._pool and not fresh:
                connection = self._pool.pop()
                try:
                    return await connection.ask(head)
                except ConnectionResetError:  # closed by the server as it stood idle: once more
                    pass
            _, connection = await loop.create_connection(
                lambda: Connection([] if fresh else self._pool), "127.0.0.1", self._plan.port
            )
            return await connection.ask(head)
        except asyncio.CancelledError:
            if not late:
                raise
            return Answer(LEFT)
        except OSError:
            return Answer(BROKEN)
        finally:
            timer.cancel()
            if connection is not None and (late or fresh):
                connection.transport.abort()

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _visit(self) -> None:
        for left in reversed(range(self._plan.tries)):
            at = self._now()
            status, work = await self.ask(self._plan.patience)
            self.attempts.append(Attempt(at, status, self._now() - at, work))
            if status == 200:
                return
            if left:
                await asyncio.sleep(self._dice.uniform(0.1, 0.5))

    async def _check(self) -> None:
        at = self._now()
        try:
            status, _ = await self.ask(CHECK_PATIENCE, "OPTIONS", fresh=True)
        except asyncio.CancelledError:  # the end of the run: it has taken as long as this so far
            status = LEFT
        self.checks.append(Attempt(at, status, self._now() - at))

    async def _check_often(self) -> None:
        checks: set[asyncio.Task[Any]] = set()
        while True:
            if len(checks) < MOST_CHECKS:
                task = self._spawn(self._check())
                checks.add(task)
                task.add_done_callback(checks.discard)
            due = time.monotonic() + self._plan.check_every
            await asyncio.sleep(self._plan.check_every)
            self.late.append(time.monotonic() - due)

    def _arrivals(self) -> Iterator[float]:
        at, end = 0.0, self._plan.skip + self._plan.seconds
        while (at := at + self._dice.expovariate(self._plan.rate / self._plan.size)) < end:
            yield at

    async def _come(self) -> None:
        """Come at random, alone or in batches, however long the last ones take."""
        for at in self._arrivals():
            if (wait := at - self._now()) > 0:
                await asyncio.sleep(wait)
            self.late.append(self._now() - at)
            for _ in range(self._plan.size):
                self._spawn(self._visit())
        await asyncio.sleep(max(0.0, self._plan.skip + self._plan.seconds - self._now()))

    async def _take_turns(self) -> None:
        """Come together, and again when all have been served."""
        while self._now() < self._plan.skip + self._plan.seconds:
            if self._plan.way == "pages":
                await self._visit()
            await asyncio.gather(*(self._spawn(self._visit()) for _ in range(self._plan.size)))
            await asyncio.sleep(self._dice.uniform(0.05, 0.15))

    async def _first(self) -> None:
        """Wait until the server answers, and ask it one by one for a while."""
        until = time.monotonic() + START_PATIENCE
        while (await self.ask(START_PATIENCE / 6)).status != 200:
            if time.monotonic() > until:
                sys.exit("the server does not answer")
            await asyncio.sleep(0.02)
        until = time.monotonic() + self._plan.calm
        while time.monotonic() < until:
            began = time.monotonic()
            if (await self.ask(START_PATIENCE)).status == 200:
                self.calm.append(time.monotonic() - began)

    async def run(self) -> None:
        """Do all that the plan says."""
        await self._first()
        self._began = time.monotonic()
        checking = self._spawn(self._check_often())
        if self._plan.way in ("poisson", "batches"):
            await self._come()
        else:
            await self._take_turns()
        checking.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """Play the plan and print what was seen."""
    plan = Plan(**json.loads(sys.argv[1]))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(OSError):
        os.nice(-10)  # visitors are on other machines: the server does not take their processor
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)  # its own pauses are not the server's
    visitors = Visitors(plan)
    asyncio.run(visitors.run())
    seen = ("attempts", "checks", "calm", "late")
    json.dump({name: getattr(visitors, name) for name in seen}, sys.stdout)


if __name__ == "__main__":
    main()
