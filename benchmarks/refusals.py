"""What a refused request costs a server, where it is accepted and by the server's own way.

Each guarded server has one thread that hangs and one request that waits, and the overload stands.
One client asks, each time by a new connection, and what counts is the processor time of the server
for each answer. The server's own way is what it goes where ``refusal`` is given: an app that says
what the plain refusal says. The two take turns of half a second.

    python benchmarks/refusals.py [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from figures import as_json, figure, machine

from wsgi_busyguard.policy import Reason
from wsgi_busyguard.responses import Responses

TURN_SECONDS = 0.5
HANG_SECONDS = 600
LIMITS = {"max_queue": 1, "max_wait": 60.0, "client_timeout": 1.0}
SERVERS = ("twisted", "waitress", "cheroot")
REQUEST = (
    b"GET /shop/item/1234?colour=red HTTP/1.1\r\nHost: shop.example\r\nAccept: */*\r\n"
    b"Accept-Encoding: gzip, deflate\r\nUser-Agent: benchmark\r\n\r\n"
)
PLAIN = Responses().refused(Reason.QUEUE_FULL)


def app(environ, start_response):
    """Hang."""
    time.sleep(HANG_SECONDS)
    start_response("200 OK", [("Content-Length", "0")])
    return []


def refusal(environ, start_response):
    """Say what the plain refusal says."""
    return PLAIN(environ, start_response)


def serve(server: str, way: str) -> None:
    """Serve the app with one thread, and print the port."""
    options = {**LIMITS, "refusal": refusal if way == "own" else None}
    if server == "twisted":
        from twisted.internet import reactor

        from wsgi_busyguard.adapters.twisted import guarded_site

        site = guarded_site(app, 1, **options)
        port = reactor.listenTCP(0, site, backlog=1024, interface="127.0.0.1")
        print(port.getHost().port, flush=True)
        reactor.run()
    elif server == "waitress":
        from wsgi_busyguard.adapters.waitress import guarded_server

        made = guarded_server(app, threads=1, host="127.0.0.1", port=0, **options)
        print(made.effective_port, flush=True)
        made.run()
    else:
        from wsgi_busyguard.adapters.cheroot import guarded_server

        made = guarded_server(app, ("127.0.0.1", 0), threads=1, **options)
        made.prepare()
        print(made.bind_addr[1], flush=True)
        made.serve()


class Guarded:
    """A guarded server in a process of its own, in an overload."""

    def __init__(self, server: str, way: str) -> None:
        command = [sys.executable, __file__, "--serve", server, way]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._port = int(self._process.stdout.readline())
        self._crowd()
        time.sleep(LIMITS["client_timeout"] * 1.2)
        self._crowd()

    def _crowd(self) -> None:
        for _ in range(4):
            threading.Thread(target=self.ask, daemon=True).start()
        time.sleep(0.5)

    def ask(self) -> bytes:
        """Ask, by a new connection, and return what comes back: nothing when the server ends."""
        where = ("127.0.0.1", self._port)
        with suppress(ConnectionResetError), socket.create_connection(where, HANG_SECONDS) as sock:
            sock.sendall(REQUEST)
            return sock.recv(4096)
        return b""

    def cost(self) -> float:
        """Return the seconds of the processor for each refusal in one turn."""
        before, count, ends = self._busy(), 0, time.monotonic() + TURN_SECONDS
        while time.monotonic() < ends:
            if b" 503 " not in self.ask()[:20]:
                raise SystemExit(f"no refusal from {self._process.args[-2:]}")
            count += 1
        return (self._busy() - before) / count

    def _busy(self) -> float:
        """Return the seconds of the processor that the server has had (proc(5))."""
        _, _, stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")
        return sum(map(int, stat.split()[11:13])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def measured(server: str, rounds: int) -> tuple[list[float], list[float]]:
    """Return what a refusal costs where it is accepted, and by the server's own way."""
    sites = [Guarded(server, way) for way in ("accepted", "own")]
    try:
        turns = [[site.cost() for site in sites] for _ in range(rounds)]
    finally:
        for site in sites:
            site.stop()
    return [turn[0] for turn in turns], [turn[1] for turn in turns]


def main() -> None:
    """Print a line for each server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(*chosen.serve)
        return
    figures = {}
    print(f"{'':10}{'accepted':>12}{'own way':>12}{'ratio':>8}")
    for server in SERVERS:
        accepted, own = measured(server, chosen.rounds)
        ratios = [a / b for a, b in zip(accepted, own, strict=True)]
        figures[f"{server}: a refusal where it is accepted / by the server's own way"] = figure(
            ratios
        )
        micros = [statistics.median(each) * 1e6 for each in (accepted, own)]
        print(f"{server:10}{micros[0]:9.0f} us{micros[1]:9.0f} us{statistics.median(ratios):8.2f}")
    if chosen.json:
        chosen.json.write_text(json.dumps({**machine(), "figures": as_json(figures)}, indent=1))


if __name__ == "__main__":
    main()
