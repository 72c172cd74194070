"""Twice as many visitors as a server can serve: what its threads do gets out to people in time.

The visitors are those of ``benchmarks/overload.py``, in a process of their own. What is counted is
the time that requests were in the app, as the app itself says, of those whose answer came before
their visitor gave up; by the time that all threads had. So a machine on which everything takes
longer is no slower server here.
"""

from __future__ import annotations

import concurrent.futures
import json
import socket
import subprocess
import sys

import pytest
from support.processes import ROOT, Process, environment

pytestmark = [pytest.mark.alone, pytest.mark.slow]

THREADS, SERVICE = 4, 0.3
PATIENCE = 2.0
SKIP, SECONDS = 5.0, 6.0  # until the stock server's queue is far longer than anybody's patience

SITES = {
    "Twisted, stock": ("twisted", "stock"),
    "Twisted, guarded_site": ("twisted", "gate"),
    "waitress, BusyGuard(app)": ("waitress", "pick-up"),
}


def serve(started, server, guard):
    """Start a server and return its port."""
    listener = socket.socket()
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    with listener:
        fd = listener.fileno()
        options = {"client_timeout": PATIENCE}
        site = {"app": "long", "server": server, "guard": guard, "fd": fd, "options": options}
        site |= {"threads": THREADS, "slots": THREADS}
        program = ROOT / "benchmarks" / "crowded.py"
        started(Process, [sys.executable, program, json.dumps(site)], pass_fds=[fd])
        return listener.getsockname()[1]


def goodput(port):
    """Return how much of what the threads can do gets out to people in time."""
    plan = {"port": port, "rate": 2 * THREADS / SERVICE, "patience": PATIENCE}
    plan |= {"skip": SKIP, "seconds": SECONDS}
    said = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "crowd.py", json.dumps(plan)],
        env=environment(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    begin, end, worked = SKIP, SKIP + SECONDS, 0.0
    for at, status, took, work in json.loads(said.stdout)["attempts"]:
        if status == 200:  # those across the first and the last moment count in part
            worked += max(0.0, min(at + took, end) - max(at + took - work, begin))
    return worked / (THREADS * SECONDS)


def played(started):
    """Return the goodput of each server; all at once, for they do nothing but wait."""
    ports = {name: serve(started, *site) for name, site in SITES.items()}
    with concurrent.futures.ThreadPoolExecutor(len(ports)) as pool:
        return dict(zip(ports, pool.map(goodput, ports.values()), strict=True))


def test_at_twice_the_load_a_guarded_server_does_nine_tenths_of_its_work_for_people(started):
    """What else runs on a machine only ever takes away, so the best of three times counts."""
    best = dict.fromkeys(SITES, 0.0)
    for _ in range(3):
        found = played(started)
        assert found["Twisted, stock"] < 0.5, "nothing is measured: even this one is not crowded"
        best = {name: max(share, found[name]) for name, share in best.items()}
        missed = {name: share for name, share in best.items() if share < 0.9}
        if list(missed) == ["Twisted, stock"]:
            return
    pytest.fail(f"too little of their work is for people: {missed}")
