"""A crowd of clients in a process of its own: each asks again as soon as it has its answer.

``python crowd.py PORT PATH CLIENTS``; for as long as it is let.
"""

from __future__ import annotations

import asyncio
import sys

# Clients that were refused wait for so long; without that they would be a flood.
AFTER_REFUSAL = 0.2


async def client(port, path):
    ask = f"GET {path} HTTP/1.0\r\n\r\n".encode()
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(ask)
            answer = await reader.read(-1)
            writer.close()
        except OSError:
            answer = b""
        if answer[9:12] != b"200":
            await asyncio.sleep(AFTER_REFUSAL)


async def crowd(port, path, clients):
    await asyncio.gather(*(client(port, path) for _ in range(clients)))


if __name__ == "__main__":
    asyncio.run(crowd(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
