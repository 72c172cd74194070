"""The outside service of benchmarks/outside.py, and the way to it. A process of its own.

The service answers ``GET /0.08`` after 0.08 s; on the way the answer can come to harm, all that the
operator of 2013 meant to try with Vaurien. A line on stdin says which from now on.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys

HANG = 5.0

# The first packet of a connection is sent again after a second if it was lost (RFC 6298).
STALL, EVERY = 1.0, 3

BODY = b"1 SEK is 0.09 EUR today"
ANSWER = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY)

WELL, LATE = "well", "late"
SILENT, SLOW, REFUSING, CLOSING = "silent", "slow", "refusing", "closing"
GARBAGE, STALLING = "garbage", "stalling"
WAYS = {
    LATE: f"answers after {HANG:.0f} s",
    SLOW: "answers a byte every half second",
    SILENT: "takes the connection and says nothing",
    REFUSING: "refuses the connection",
    CLOSING: "closes in the middle of the answer",
    GARBAGE: "answers with 64 random bytes",
    STALLING: f"loses a packet of every {EVERY}rd answer, which is {STALL:.0f} s late",
}


class Service:
    """One outside service at one port.

    :ivar way: what comes between it and those who call.
    """

    def __init__(self) -> None:
        self.way = WELL
        self.port = 0
        self._server: asyncio.Server | None = None
        self._answers = 0

    async def listen(self) -> None:
        """Take connections, at the same port as ever."""
        if self._server is None:
            self._server = await asyncio.start_server(
                self._meet, "127.0.0.1", self.port, backlog=512
            )
            self.port = self._server.sockets[0].getsockname()[1]

    async def become(self, way: str) -> None:
        """Have the way be another from now on; answers that are on it stay as they are."""
        self.way = way
        if way == REFUSING and self._server is not None:
            self._server.close()
            self._server = None
        elif way != REFUSING:
            await self.listen()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await self._answer(float(head.split()[1].strip(b"/")), writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # it has hung up
        finally:
            writer.close()

    async def _answer(self, seconds: float, writer: asyncio.StreamWriter) -> None:
        way, whole = self.way, ANSWER + BODY
        self._answers += 1
        if way == LATE:
            seconds = HANG
        elif way == SILENT:
            seconds = 3600.0
        elif way == STALLING and not self._answers % EVERY:
            seconds += STALL
        await asyncio.sleep(seconds)
        if way == SLOW:
            for at in range(len(whole)):
                writer.write(whole[at : at + 1])
                await writer.drain()
                await asyncio.sleep(0.5)
        elif way == CLOSING:
            writer.write(whole[:-10])
        elif way == GARBAGE:
            writer.write(random.Random(self._answers).randbytes(64))
        else:
            writer.write(whole)


async def main(how_many: int) -> None:
    """Serve until the pipe closes; a line ``WAY`` is for all, ``N WAY`` for one."""
    services = [Service() for _ in range(how_many)]
    for service in services:
        await service.listen()
    print(json.dumps([service.port for service in services]), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        which, _, way = line.strip().rpartition(" ")
        for service in services if not which else [services[int(which)]]:
            await service.become(way)
        print("done", flush=True)
    os._exit(0)  # those who hang are not waited for


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
