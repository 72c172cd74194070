"""A crowd of clients in a process of its own: each asks again as soon as it has its answer.

``python crowd.py PORT PATH CLIENTS SECONDS``; prints the number of answers by status.
"""

from __future__ import annotations

import asyncio
import collections
import sys

# Clients that were refused wait for so long; without that they would be a flood.
AFTER_REFUSAL = 0.2


async def client(port, path, tally):
    ask = f"GET {path} HTTP/1.0\r\n\r\n".encode()
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(ask)
            answer = await reader.read(-1)
            writer.close()
        except OSError:
            answer = b""
        status = answer[9:12].decode() or "none"
        tally[status] += 1
        if status != "200":
            await asyncio.sleep(AFTER_REFUSAL)


async def crowd(port, path, clients, seconds):
    tally = collections.Counter()
    tasks = [asyncio.create_task(client(port, path, tally)) for _ in range(clients)]
    print("started", flush=True)
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print("tally:", dict(tally), flush=True)


if __name__ == "__main__":
    asyncio.run(crowd(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
