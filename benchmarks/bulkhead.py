"""What a place in a bulkhead costs a call, by turns with a call that has none.

    $ python benchmarks/bulkhead.py

In a request of a guard with ten slots, thirty calls deep, beside another bulkhead. A busy machine
makes all of it dearer: the lower quartile is the figure to compare.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from wsgiref.util import setup_testing_defaults

sys.path.insert(0, str(Path(__file__).parents[1]))

from wsgi_busyguard import BusyGuard
from wsgi_busyguard.bulkhead import Bulkhead

DEPTH = 30
CALLS = 100


class Nothing:
    """What a context manager of two methods costs in any case."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def service(day, currency="EUR"):
    pass


def inside(context):
    def call(day, currency="EUR"):
        with context:
            pass

    return call


def decorated(context):
    def call(*args, **kwargs):
        with context:
            return service(*args, **kwargs)

    return call


def measured(rounds):
    """Return the ns of each kind of call beyond a plain one, a list each, one for each round."""
    rates = Bulkhead("rates")
    calls = {
        "with a bulkhead": inside(rates),
        "decorated": rates(service),
        "with, of two empty methods": inside(Nothing()),
        "decorated likewise": decorated(Nothing()),
    }
    beyond = {name: [] for name in calls}
    for _ in range(rounds):
        plain = timed(service)
        for name, call in calls.items():
            beyond[name].append(timed(call) - plain)
    return beyond


def timed(call):
    began = time.perf_counter()
    for _ in range(CALLS):
        call(1, currency="USD")
    return 1e9 * (time.perf_counter() - began) / CALLS


def deep(depth, work):
    return deep(depth - 1, work) if depth else work()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    rounds = parser.parse_args().rounds
    found = {}
    other = Bulkhead("stock")

    def app(environ, start_response):
        found.update(deep(DEPTH, lambda: measured(rounds)))
        start_response("200 OK", [])
        return []

    environ = {"PATH_INFO": "/"}
    setup_testing_defaults(environ)
    BusyGuard(app, slots=10)(environ, lambda *_: None)
    print(f"ns beyond a plain call, {rounds} rounds, beside {other.name!r}:")
    print(f"{'':28}{'p25':>8}{'p50':>8}{'p75':>8}")
    for name, each in found.items():
        print(f"{name:28}" + "".join(f"{part:8.0f}" for part in statistics.quantiles(each)))


if __name__ == "__main__":
    main()
