"""What a scrape costs whoever answers it, and what senders cost the requests.

Run ``python benchmarks/metrics.py``. A scrape is of a board with so many processes, each of which
has counted something; CPU time of the thread that answers, and beside it the time that a client on
the same machine waits for ``/metrics`` and ``/load``.

A sender has a thread of its own, so what it costs is what it takes from the others: the CPU time of
the whole process for a request through the gate, with a sender to a carbon that reads and without,
in rounds that take turns. The sender sends every second, ten times as often as it does by default.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import threading
import time
import urllib.request
from contextlib import closing
from itertools import repeat
from typing import Any

from interleaved import PAGE, served

from wsgi_busyguard import Board, BusyGuard, Gate
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.board.watcher import Watcher
from wsgi_busyguard.checkport import CheckPort
from wsgi_busyguard.metrics.graphite import Graphite
from wsgi_busyguard.metrics.prometheus import Collector, Exposition
from wsgi_busyguard.metrics.report import look

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SIZES = (1, 16, 64)
ROUNDS = 15


def crowd(processes: int) -> tuple[Board, list[Publisher]]:
    """Return a board with so many rows, and those who hold them."""
    board, posters = Board(slots=processes), []
    for _ in repeat(None, processes):
        gate = Gate(8)
        posters.append(Publisher(board, gate))
        posters[-1].join()
        posters[-1].ready()
        for _ in range(20):
            gate.leave(gate.enter())
        gate.enter()
        posters[-1].beat()
    return board, posters


def cpu_ms(work: Any, times: int = 50) -> float:
    """Return the milliseconds of CPU that a call takes: the median."""
    took = []
    for _ in repeat(None, times):
        began = time.thread_time()
        work()
        took.append(time.thread_time() - began)
    return 1000 * statistics.median(took)


def waited_ms(port: int, path: str, times: int = 50) -> tuple[float, float]:
    """Return the milliseconds that a client waits: the median and the 95th of a hundred."""
    took = []
    for _ in repeat(None, times):
        began = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            answer.read()
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took), sorted(took)[int(len(took) * 0.95)]


def scrapes(processes: int) -> dict[str, float]:
    """Return what is to be known of a board with so many processes."""
    board, posters = crowd(processes)
    watcher = Watcher(board)
    exposed = Exposition(Collector(watcher))
    found = {
        "look": cpu_ms(lambda: look(watcher)),
        "text": cpu_ms(lambda: exposed(None)),
        "openmetrics": cpu_ms(lambda: exposed(OPENMETRICS)),
    }
    for publisher in posters:
        publisher.start()  # else nobody beats, and each would be looked for
    port = CheckPort(watcher, "127.0.0.1:0").start()
    try:
        for path in ("/metrics", "/load"):
            found[path], found[f"{path} p95"] = waited_ms(port.address[1], path)
    finally:
        port.stop()
        for publisher in posters:
            publisher.stop()
    return found


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer."""
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


def senders() -> tuple[float, float, float]:
    """Return the quartiles of what a request takes with a sender, by what it takes without."""
    guard = BusyGuard(hello, slots=8)
    run = served(guard, PAGE)
    with closing(socket.create_server(("127.0.0.1", 0))) as carbon:
        threading.Thread(target=_read, args=(carbon,), daemon=True).start()
        to = f"127.0.0.1:{carbon.getsockname()[1]}"
        ratios = []
        for _ in repeat(None, ROUNDS):
            took = {}
            for sends in random.sample([False, True], 2):
                sender = Graphite(guard.monitor, to, every=1.0).start() if sends else None
                took[sends] = _cpu(run)
                if sender is not None:
                    sender.stop()
            ratios.append(took[True] / took[False])
    low, middle, high = statistics.quantiles(ratios)
    return low, middle, high


def _cpu(run: Any) -> float:
    """Return the CPU time that a request takes the whole process, over more than two seconds."""
    began, until, count = time.process_time(), time.monotonic() + 2.2, 0
    while time.monotonic() < until:
        run(1000)
        count += 1000
    return (time.process_time() - began) / count


def _read(carbon: socket.socket) -> None:
    """Take whatever comes."""
    while True:
        try:
            connection = carbon.accept()[0]
        except OSError:
            return
        with connection:
            while connection.recv(65536):
                pass


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description="What do metrics cost?")
    parser.add_argument("--scrapes-only", action="store_true", help="leave out the senders")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    args = parser.parse_args()
    print("ms of CPU                                     ms a client waits, median and p95")
    print(f"{'processes':10}{'look':>8}{'text':>8}{'openmetrics':>13}{'/metrics':>18}{'/load':>18}")
    found = {processes: scrapes(processes) for processes in SIZES}
    for processes, f in found.items():
        waits = (f"{f[p]:.2f} {f[p + ' p95']:6.2f}" for p in ("/metrics", "/load"))
        print(
            f"{processes:<10}{f['look']:8.2f}{f['text']:8.2f}{f['openmetrics']:13.2f}",
            *(f"{wait:>17}" for wait in waits),
        )
    report: dict[str, Any] = {"scrapes": found}
    if not args.scrapes_only:
        low, middle, high = report["senders"] = senders()
        print(f"\na request with a sender, by one without: {middle:.3f} ({low:.3f} - {high:.3f})")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"cpus": os.cpu_count(), **report}, file, indent=2)


if __name__ == "__main__":
    main()
