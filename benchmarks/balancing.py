"""Plays refusals, checks, agent, push and retry against each other, with real HAProxies.

Three guarded servers with four threads each (work of 0.1 s on the average, so 120 requests a
second together) get 100 a second by way of two HAProxies, or of as many as told. In the first
scenario one server is four times slower for ten seconds, in the second all are ten times slower; in
the third one is a hundred times slower for twenty, at 60 a second, which the others can serve. What
counts is how many are answered within a second. The same visitors come to each row, so rows are
compared seed by seed. Those that come close to the best are played again, with other visitors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import farm

from wsgi_busyguard.haproxy import Server, Setting, configuration

if TYPE_CHECKING:
    from collections.abc import Iterable

    Key = tuple[str, str, int]

THREADS, MEAN, RATE = 4, 0.1, 100.0
GIVES_UP = 10.0

# Rows that come so close to the best of a scenario, in per cent, are played with more visitors.
CLOSE = 1.0

# A run in which the machine itself was later than this, in 2 of 100 looks, is played again.
LATE, ATTEMPTS = 0.03, 4
GATE = {"max_queue": 16, "max_wait": 0.5}
NO_GATE = {"max_queue": "inf", "max_wait": "inf"}
STOPPING = "http-check expect ! status 503 error-status L7OKC\n    http-check expect status 200-399"


class Row(NamedTuple):
    """A combination.

    :param check: the policy that the checks follow; no check if empty.
    :param stopping: whether a 503 means "no new requests" at once, not a failed check.
    :param printed: the configuration is the one that ``busyguard haproxy`` prints, with
        ``edit`` made in it.
    """

    name: str
    check: str = "damped"
    gate: bool = True
    balance: str = "leastconn"
    retry: bool = True
    maxconn: bool = False
    agent: bool = False
    push: bool = False
    stopping: bool = False
    printed: bool = False
    edit: tuple[tuple[str, str], ...] = ()
    balancers: int = 2


OURS = {"maxconn": True, "agent": True, "printed": True}
TO_STOPPING = (("option httpchk", f"option httpchk\n    {STOPPING}\n   "),)
SOONER = (("fall 3 rise 2", "fastinter 500ms downinter 1s fall 3 rise 1"),)
ROWS = [
    Row("nothing", "", False, "roundrobin", False),
    Row("exact check, no gate", "exact", False, "roundrobin", False),
    Row("damped check, no gate", "damped", False, "roundrobin", False),
    Row("exact check, gate, one retry", "exact", balance="roundrobin"),
    Row("gate", "", balance="roundrobin", retry=False),
    Row("damped, gate", balance="roundrobin", retry=False),
    Row("gate, one retry", "", balance="roundrobin"),
    Row("gate, one retry, leastconn", ""),
    Row("damped, gate, one retry", balance="roundrobin"),
    Row("damped, gate, one retry, leastconn"),
    Row("damped = stopping, gate, one retry", balance="roundrobin", stopping=True),
    Row("static maxconn, gate, one retry", "", maxconn=True),
    Row("agent, gate", "", balance="roundrobin", retry=False, maxconn=True, agent=True),
    Row("agent, gate, one retry", "", balance="roundrobin", maxconn=True, agent=True),
    Row("agent, gate, one retry, damped", balance="roundrobin", maxconn=True, agent=True),
    Row("push alone, gate, one retry, damped", maxconn=True, push=True),
    Row("PRINTED", **OURS),
    Row("PRINTED, sooner", **OURS, edit=SOONER),
    Row("PRINTED, damped = stopping", **OURS, edit=TO_STOPPING),
    Row("PRINTED, roundrobin", **OURS, edit=(("balance leastconn", "balance roundrobin"),)),
    Row("PRINTED, queue 500 ms", **OURS, edit=(("queue 700ms", "queue 500ms"),)),
    Row("PRINTED with push", **OURS, push=True),
    Row("PRINTED, 4 balancers", **OURS, balancers=4),
    Row("PRINTED with push, 4 balancers", **OURS, push=True, balancers=4),
]

OUR_ROW = next(row for row in ROWS if row.name == "PRINTED")


class Scenario(NamedTuple):
    """What goes wrong: these servers are slower by ``factor`` from ``begin`` to ``end``.

    :param rate: requests a second.
    """

    name: str
    slow: tuple[int, ...]
    factor: float
    rate: float = RATE
    begin: float = 4.0
    end: float = 14.0
    seconds: float = 22.0


SCENARIOS = [
    Scenario("one slow", (2,), 4.0),
    Scenario("blip", (0, 1, 2), 10.0),
    Scenario("one stuck", (2,), 100.0, 60.0, end=24.0, seconds=32.0),
]


class Outcome(NamedTuple):
    """Per cent answered 200 within a second, of all, while it is slow and after."""

    whole: float
    during: float
    after: float
    p99: float
    longest: int
    down: int
    late: float


def text_of(row: Row, servers: list[farm.Server], number: int, bind: str, stats: str) -> str:
    """Return the configuration of one balancer."""
    known = [Server(f"web{n}", f"127.0.0.1:{s.port}", s.agent) for n, s in enumerate(servers)]
    setting = Setting(THREADS, row.balancers, f"lb{number}", bind, stats, ("nbthread 1",))
    text = configuration(known, setting) if row.printed else _own(row, known, setting)
    for old, new in row.edit:
        assert old in text, old
        text = text.replace(old, new)
    return text


def _own(row: Row, servers: list[Server], setting: Setting) -> str:
    each = f"maxconn {-(-THREADS // row.balancers)}" if row.maxconn else ""
    agent = f'agent-check agent-inter 200ms agent-send "{setting.name}\\n"' if row.agent else ""
    lines = [
        *("global", f"stats socket {setting.stats}", "nbthread 1", "defaults", "mode http"),
        *("option forwardfor", "timeout connect 1s", "timeout client 30s", "timeout server 30s"),
        *("timeout queue 700ms", f"retries {int(row.retry)}", "option redispatch 1"),
        *(["retry-on 503 conn-failure"] if row.retry else []),
        *("frontend web", f"bind {setting.bind}", "default_backend app", "backend app"),
        f"balance {row.balance}",
        *(["option httpchk", "default-server check inter 2s fall 3 rise 2"] if row.check else []),
        *(STOPPING.split("\n") if row.stopping else []),
        f"default-server weight 100 {each} {agent}",
    ]
    for server in servers:
        port = f"agent-port {server.agent}" if row.agent else ""
        lines.append(f"server {server.name} {server.where} {port}")
    return "\n".join(lines) + "\n"


def run(row: Row, scenario: Scenario, seed: int, haproxy: str) -> Outcome:
    """Play a scenario until the machine was quiet in it; return the quietest."""
    outcomes: list[Outcome] = []
    while len(outcomes) < ATTEMPTS and (not outcomes or outcomes[-1].late > LATE):
        outcomes.append(_run_once(row, scenario, seed, haproxy))
    return min(outcomes, key=lambda outcome: outcome.late)


def _run_once(row: Row, scenario: Scenario, seed: int, haproxy: str) -> Outcome:
    gate = GATE if row.gate else NO_GATE
    options = {"threads": THREADS, "ready": row.check or "damped", "client_timeout": 2.5, **gate}
    started: list[farm.Program] = []
    with tempfile.TemporaryDirectory(prefix="busyguard-") as folder:
        try:
            servers = []
            for _ in range(3):
                servers.append(farm.Server(**options))
                started.append(servers[-1])
            balancers = []
            for number in range(row.balancers):
                text = _texts(row, servers, number)
                balancers.append(farm.Balancer(haproxy, Path(folder), number, text))
                started.append(balancers[-1])
            until = time.monotonic() + farm.PATIENCE
            while not all(balancer.up() for balancer in balancers):
                assert time.monotonic() < until, "the servers do not come up"
                time.sleep(0.05)
            if row.push:
                for n, server in enumerate(servers):
                    server.tell(push=[f"unix:{b.path}#app/web{n}" for b in balancers])
            return asyncio.run(_play(scenario, seed, servers, balancers))
        finally:
            for program in started:
                program.end()


def _texts(row: Row, servers: list[farm.Server], number: int) -> Any:
    return lambda bind, stats: text_of(row, servers, number, bind, stats)


async def _play(
    scenario: Scenario, seed: int, servers: list[farm.Server], balancers: list[farm.Balancer]
) -> Outcome:
    ports = [balancer.port for balancer in balancers]
    late = asyncio.create_task(farm.lateness())
    coming = asyncio.create_task(
        farm.visit(ports, scenario.rate, scenario.seconds, seed, mean=MEAN, patience=GIVES_UP)
    )
    for at, factor in ((scenario.begin, scenario.factor), (scenario.end - scenario.begin, 1.0)):
        await asyncio.sleep(at)
        for number in scenario.slow:
            servers[number].tell(factor=factor)
    answers = await coming
    late.cancel()
    windows = [(0.0, 1e9), (scenario.begin, scenario.end), (scenario.end, 1e9)]
    served = sorted(answer.took for answer in answers if answer.status == 200)
    return Outcome(
        *(_good([a for a in answers if low <= a.at < high]) for low, high in windows),
        p99=1000 * served[int(len(served) * 0.99)] if served else 0.0,
        longest=max(server.ask(report=True)["longest"] for server in servers),
        down=sum(int(r["chkdown"] or 0) for balancer in balancers for r in balancer.rows()),
        late=await late,
    )


def _good(answers: list[farm.Answer]) -> float:
    good = sum(answer.status == 200 and answer.took <= 1.0 for answer in answers)
    return 100 * good / max(1, len(answers))


def main() -> None:
    """Play all, some at a time, and print two tables for each scenario."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="for each row (%(default)s)")
    parser.add_argument("--more", type=int, default=5, help="for those close (%(default)s)")
    parser.add_argument("--parallel", type=int, default=4, help="runs at a time (%(default)s)")
    parser.add_argument("--rows", default="", help="only those in whose name this pattern is")
    parser.add_argument("--scenario", default="", help="only those with this in their name")
    parser.add_argument("--balancers", type=int, help="in front of each row, and not its own")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    haproxy = farm.find_haproxy()
    rows = [row for row in ROWS if re.search(chosen.rows, row.name)]
    if chosen.balancers:
        rows = [row._replace(balancers=chosen.balancers) for row in rows]
    scenarios = [scenario for scenario in SCENARIOS if chosen.scenario in scenario.name]
    begun = time.monotonic()
    outcomes: dict[Key, Outcome] = {}
    with ThreadPoolExecutor(chosen.parallel) as pool:
        # Seed by seed, so that what else the machine does is no single row's misfortune.
        seeds = range(1, chosen.seeds + 1)
        _play_all(pool, haproxy, product(seeds, scenarios, rows), outcomes)
        best = {scenario: _close(scenario, rows, seeds, outcomes) for scenario in scenarios}
        more = range(1 + chosen.seeds, 1 + chosen.seeds + chosen.more)
        again = [(seed, sc, row) for seed in more for sc in scenarios for row in best[sc]]
        _play_all(pool, haproxy, again, outcomes)
    for scenario in scenarios:
        _print(scenario, rows, chosen.seeds, outcomes)
        if chosen.more and any(row.name == OUR_ROW.name for row in best[scenario]):
            _print_close(scenario, best[scenario], chosen.seeds + chosen.more, outcomes)
    said = os.popen(f"{haproxy} -v").readline().split(" 20")[0].strip()
    worst = 1000 * max(outcome.late for outcome in outcomes.values())
    print(
        f"{said}; {time.monotonic() - begun:.0f} s; the machine was late by {worst:.0f} ms at most;"
        f" load average {os.getloadavg()[2]:.1f}"
    )
    if chosen.json:
        chosen.json.write_text(json.dumps([[*key, *o] for key, o in outcomes.items()], indent=1))


def _play_all(
    pool: ThreadPoolExecutor,
    haproxy: str,
    plays: Iterable[tuple[int, Scenario, Row]],
    outcomes: dict[Key, Outcome],
) -> None:
    playing = {
        (scenario.name, row.name, seed): pool.submit(run, row, scenario, seed, haproxy)
        for seed, scenario, row in plays
    }
    for key, future in playing.items():
        outcomes[key] = future.result()
        print(*key, *(round(figure, 3) for figure in outcomes[key]), file=sys.stderr)


def _close(
    scenario: Scenario, rows: list[Row], seeds: Iterable[int], outcomes: dict[Key, Outcome]
) -> list[Row]:
    """Return the rows that come close to the best, and ours."""
    means = {
        row: mean(outcomes[scenario.name, row.name, seed].whole for seed in seeds) for row in rows
    }
    least = max(means.values()) - CLOSE
    return [row for row in rows if means[row] >= least or row.name == OUR_ROW.name]


def _print(scenario: Scenario, rows: list[Row], seeds: int, outcomes: dict[Key, Outcome]) -> None:
    print(f"\n{scenario.name}: % answered within 1 s, mean of {seeds} seeds (least - most)\n")
    head = ("all", "", "during", "after", "p99 ms", "queued", "DOWN")
    print(f"{'':36}{head[0]:>6} {head[1]:13}" + "".join(f"{word:>8}" for word in head[2:]))
    for row in rows:
        seen = [outcomes[scenario.name, row.name, seed] for seed in range(1, seeds + 1)]
        wholes = [outcome.whole for outcome in seen]
        spread = f"({min(wholes):.1f} - {max(wholes):.1f})"
        figures = [mean(getattr(o, what) for o in seen) for what in ("during", "after")]
        print(
            f"{row.name:36}{mean(wholes):6.1f} {spread:13}"
            + "".join(f"{figure:8.1f}" for figure in figures)
            + f"{mean(o.p99 for o in seen):8.0f}"
            + f"{max(o.longest for o in seen):8}{sum(o.down for o in seen):8}"
        )


def _print_close(
    scenario: Scenario, rows: list[Row], seeds: int, outcomes: dict[Key, Outcome]
) -> None:
    """Print how much better a row is than ours with the same visitors, and how sure that is."""
    print(f"\n{scenario.name}: those that come close, with {seeds} seeds\n")
    print(f"{'':36}{'all':>6}{'better than PRINTED by':>26}")
    ours = [outcomes[scenario.name, OUR_ROW.name, seed].whole for seed in range(1, seeds + 1)]
    for row in rows:
        wholes = [outcomes[scenario.name, row.name, seed].whole for seed in range(1, seeds + 1)]
        more = [its - our for its, our in zip(wholes, ours, strict=True)]
        sure = (
            ""
            if row.name == OUR_ROW.name
            else f"{mean(more):+.2f} +- {stdev(more) / seeds**0.5:.2f}"
        )
        print(f"{row.name:36}{mean(wholes):6.1f}{sure:>26}")


if __name__ == "__main__":
    main()
