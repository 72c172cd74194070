"""What the guard costs a request, and what a check costs.

Run ``python benchmarks/overhead.py``. The unit is a no-op class middleware, the least that a
middleware written as a class can cost: microseconds do not travel, ratios nearly do.

The app answers with a body of one bytes object and does nothing else. Around every call stands what
every server must do for a request: a fresh environ of 35 keys (a copy, with a path just decoded),
the call, iterating the body, closing it. So that nobody need ask whom this flatters, the column
"call only" repeats the ratio for a loop that calls and does nothing else, always with the same
environ. "-" stands there for layers whose body has to be iterated or closed, or that do less for an
environ they have seen before.

Microseconds include the harness and are those of the quietest rounds, ratios are medians over all.
One thread: nobody waits at the gate, and no lock is contended.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import logging
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

import rivals
from interleaved import PAGE, Case, Figures, called, check, compare, in_processes, served

from wsgi_busyguard import BusyGuard, Load, Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interleaved import App

HEADERS = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", "5")]

NO_OP, NO_OP_STREAMED = "no-op class", "no-op class; generator"
PASS_THROUGH, ADAPTER = "BusyGuard, unknown server", "BusyGuard, adapter"
STAMPED = "BusyGuard, adapter, client_timeout"
GATE, GATE_STREAMED = "BusyGuard, gate", "BusyGuard, gate; generator"
INC_DEC, TRACKED = "prometheus_client inc/dec", "prometheus_client track_inprogress"
COUNTED, COUNTED_STREAMED = "lock + closing wrapper", "lock + closing wrapper; generator"

# How much dearer the gate may be than the cheapest that counts. Those take a lock each time, which
# "with" does in two fifths of the time from Python 3.14 on; the gate takes none.
COUNTING = 1.5 if sys.version_info >= (3, 14) else 1.0

# How the cases are named whose loop does nothing but call.
ONLY = "call only: "


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", HEADERS)
    return [b"hello"]


def streamed(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    start_response("200 OK", HEADERS)
    yield b"hello"


class Crowd:
    """An adapter to a server that is busy, but not for long."""

    def read(self) -> Load:
        """Return the same figures every time."""
        return Load(3, 10, 10, 0.1, 0.05)


def layers() -> dict[str, App]:
    """Return what leaves the list of ``hello`` alone, so that the call is the whole request."""
    inc_dec, tracked = rivals.gauged(hello)
    return {
        "no middleware": hello,
        NO_OP: rivals.NoOp(hello),
        PASS_THROUGH: BusyGuard(hello),
        ADAPTER: BusyGuard(hello, monitor=Monitor(Crowd())),
        "whitenoise, miss": rivals.whitened(hello),
        "werkzeug DispatcherMiddleware, miss": rivals.dispatched(hello),
        GATE: BusyGuard(hello, slots=8),
        INC_DEC: inc_dec,
        TRACKED: tracked,
        "werkzeug ProxyFix": rivals.proxied(hello),
    }


def whole_layers() -> dict[str, App]:
    """Return what needs a whole request: a fresh environ, or a body that is closed."""
    return {
        STAMPED: BusyGuard(hello, monitor=Monitor(Crowd()), client_timeout=5),
        COUNTED: rivals.counted(hello),
        **rivals.traced(hello),
    }


def streamed_layers() -> dict[str, App]:
    """Return what is put around ``streamed``, which has to be iterated and closed."""
    return {
        "no middleware; generator": streamed,
        NO_OP_STREAMED: rivals.NoOp(streamed),
        GATE_STREAMED: BusyGuard(streamed, slots=8),
        COUNTED_STREAMED: rivals.counted(streamed),
    }


def checks() -> dict[str, tuple[App, dict[str, Any]]]:
    """Return the app that answers and the environ that asks, by name."""
    gate, adapter = BusyGuard(hello, slots=8), BusyGuard(hello, monitor=Monitor(Crowd()))
    bare, project = rivals.django_projects()
    healthz = check("GET", "/healthz", HTTP_HOST="shop.example")
    as_json = check("GET", "/healthz", HTTP_ACCEPT="application/health+json")
    return {
        "no middleware, for comparison": (hello, healthz),
        "gate, OPTIONS /": (gate, check("OPTIONS", "/")),
        "gate, GET /healthz": (gate, healthz),
        "gate, HEAD /healthz": (gate, check("HEAD", "/healthz")),
        "gate, GET /healthz, health+json": (gate, as_json),
        "gate, GET /livez": (gate, check("GET", "/livez")),
        "adapter, OPTIONS /": (adapter, check("OPTIONS", "/")),
        "adapter, GET /healthz": (adapter, healthz),
        "Django view, no middleware": (bare, healthz),
        "Django view, startproject's middleware": (project, healthz),
    }


def cases() -> tuple[list[Case], list[Case]]:
    """Return the cases of requests and those of checks."""
    plain = layers()
    requests = [Case(n, served(app, PAGE), NO_OP) for n, app in (plain | whole_layers()).items()]
    requests += [Case(n, served(a, PAGE), NO_OP_STREAMED) for n, a in streamed_layers().items()]
    requests += [Case(ONLY + n, called(app, PAGE), ONLY + NO_OP) for n, app in plain.items()]
    asked = []
    for name, (app, environ) in checks().items():
        asked.append(Case(name, served(app, environ), NO_OP))
        if not name.startswith("Django"):  # whose responses have to be closed
            asked.append(Case(ONLY + name, called(app, environ), ONLY + NO_OP))
    return requests, asked


def bounds(found: dict[str, Figures]) -> list[dict[str, Any]]:
    """Return what must hold, with the figure and its bound."""
    counting = min(found[name].ratio for name in (INC_DEC, TRACKED, COUNTED))
    streamed_peer = found[GATE_STREAMED].ratio / found[COUNTED_STREAMED].ratio
    ours = [name for name in found if name.startswith((ONLY + "gate, ", ONLY + "adapter, "))]
    musts = [
        ("pass-through / no-op", found[PASS_THROUGH].ratio, 1.25),
        ("pass-through with an adapter / no-op", found[ADAPTER].ratio, 1.25),
        ("gate / no-op", found[GATE].ratio, 2.7),
        ("gate / no-op, generator body", found[GATE_STREAMED].ratio, 3.1),
        ("gate / the cheapest peer that counts", found[GATE].ratio / counting, COUNTING),
        ("gate / lock + closing wrapper, generator body", streamed_peer, 1.0),
        *((f"us, call only: {name.removeprefix(ONLY)}", found[name].us, 2.0) for name in ours),
    ]
    return [{"what": what, "is": is_, "at most": most} for what, is_, most in musts]


def print_requests(found: dict[str, Figures], requests: list[Case]) -> None:
    print(f"{'a request through':38}{'us':>8}{'ratio':>8}  {'quartiles':17}call only, ratio")
    for name in (name for name, _, _ in requests if not name.startswith(ONLY)):
        us, ratio, low, high, _ = found[name]
        bare = found.get(ONLY + name)
        only = "-" if bare is None else f"{bare.ratio:.2f}"
        print(f"{name:38}{us:8.2f}{ratio:8.2f}  {f'{low:.2f} - {high:.2f}':17}{only:>6}")


def print_checks(found: dict[str, Figures], asked: list[Case]) -> None:
    print(f"\n{'a check':38}{'us':>8}{'ratio':>8}  {'quartiles':17}call only, us")
    for name in (name for name, _, _ in asked if not name.startswith(ONLY)):
        us, ratio, low, high, _ = found[name]
        bare = found.get(ONLY + name)
        only = "-" if bare is None else f"{bare.us:.2f}"
        print(f"{name:38}{us:8.2f}{ratio:8.2f}  {f'{low:.2f} - {high:.2f}':17}{only:>6}")


def print_bounds(musts: list[dict[str, Any]]) -> None:
    print(f"\n{'must':54}{'is':>8}{'at most':>9}")
    for what, is_, most in (must.values() for must in musts):
        print(f"{what:54}{is_:8.2f}{most:9.2f}  {'met' if is_ <= most else 'MISSED'}")


def measured(rounds: int, slice_ms: float) -> dict[str, Figures]:
    """Return what this process finds."""
    logging.getLogger("wsgi_busyguard").setLevel(logging.ERROR)  # it warns of unknown servers
    return compare(list(itertools.chain(*cases())), rounds, slice_ms)


def main() -> None:
    question = "What does the guard cost a request, and a check?"
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--rounds", type=int, default=200, help="default: %(default)s")
    parser.add_argument(
        "--processes",
        type=int,
        default=10,
        metavar="N",
        help="that share the rounds; compare.py needs several; default: %(default)s",
    )
    parser.add_argument(
        "--slice",
        type=float,
        default=4,
        metavar="MS",
        help="CPU for each case in a round; default: %(default)s ms",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    args = parser.parse_args()

    each = max(2, args.rounds // args.processes)
    found = in_processes(measured, args.processes, each, args.slice)
    requests, asked = cases()
    machine = f"{platform.python_implementation()} {platform.python_version()}, {_cpu()}"
    print(f"{machine}; {args.processes} processes, {each} rounds in each\n")
    print_requests(found, requests)
    print_checks(found, asked)
    musts = bounds(found)
    print_bounds(musts)
    if args.json:
        report = {
            "question": question,
            "date": datetime.date.today().isoformat(),
            "machine": machine,
            "rounds": args.rounds,
            "figures": {name: figures._asdict() for name, figures in found.items()},
            "bounds": musts,
        }
        with open(args.json, "w") as file:
            json.dump(report, file, indent=2)


def _cpu() -> str:
    """Return the processor's name, where the system tells it."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} cores of {name}"


if __name__ == "__main__":
    main()
