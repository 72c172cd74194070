"""What a look at what holds the slots costs, and whether the process lives on.

    $ python benchmarks/stacks.py 100000

Threads make garbage with finalizers as fast as they can, others come and go, and the process forks,
while it looks so often: what stopped a process within seconds when it looked at frames. Then what
one look costs ten threads that have a request, and what ``show_stacks`` costs a request.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import threading
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from wsgi_busyguard.dashboard.stack_lines import folded
from wsgi_busyguard.dashboard.stacks import Stacks, dump, threads_in


class Litter:
    """Garbage with a finalizer."""

    def __init__(self):
        self.me, self.more = self, [[] for _ in range(20)]

    def __del__(self):
        sum(range(50))


def deep(depth):
    depth % 10 or Litter()
    return depth and deep(depth - 1)


def survive(looks):
    """Look so often, and return how many requests were seen."""
    over = []
    stacks = Stacks()
    noted = stacks.noting(lambda environ, start_response: deep(30))

    def call():
        while not over:
            noted({}, None)

    def come_and_go():
        while not over:
            thread = threading.Thread(target=deep, args=(5,))
            thread.start()
            thread.join()

    threads = [threading.Thread(target=work) for work in (call, call, call, come_and_go)]
    for thread in threads:
        thread.start()
    seen = 0
    for number in range(looks):
        text = dump()
        if number % 50 == 0:  # to read it takes ten times as long, and is no danger
            found, complete = threads_in(text)
            seen += folded(found, complete, stacks._began, 0.0)["threads"]
        if number % 1000 == 0:
            pid = os.fork()
            if pid == 0:
                os._exit(len(threads_in(dump())[0]) - 1)
            assert os.waitpid(pid, 0)[1] == 0, "a child saw threads that it has not"
    over.append(1)
    for thread in threads:
        thread.join()
    return seen


def cost_of_a_look(threads=10, depth=60):
    """Return the ms for which the interpreter stands still, and those of the whole look."""
    go_on = threading.Event()
    stacks = Stacks()

    def wait(left):
        return wait(left - 1) if left else go_on.wait(60)

    noted = stacks.noting(lambda environ, start_response: wait(depth))
    for _ in range(threads):
        threading.Thread(target=noted, args=({}, None), daemon=True).start()
    while len(stacks._began) < threads:
        time.sleep(0.01)
    dumps = [timed(dump) for _ in range(200)]
    looks = [timed(stacks._looked, 0.0) for _ in range(200)]
    go_on.set()
    return 1000 * statistics.median(dumps), 1000 * statistics.median(looks)


def cost_of_a_request(rounds=40, calls=20_000):
    """Return the us that a request pays, by turns with one that pays nothing."""

    def app(environ, start_response):
        return []

    def run(app):
        for _ in range(calls):
            app({}, None)

    noted = Stacks().noting(app)
    differences = [timed(run, noted) - timed(run, app) for _ in range(rounds)]
    return 1e6 * statistics.median(differences) / calls


def timed(call, *arguments):
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("looks", type=int, nargs="?", default=100_000)
    looks = parser.parse_args().looks
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks in a process with threads
    before, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(100)
    sys.setswitchinterval(1e-5)
    began = time.monotonic()
    seen = survive(looks)
    took = time.monotonic() - began
    assert seen, "no request was ever seen"
    gc.set_threshold(*before)
    sys.setswitchinterval(interval)
    print(f"{looks} looks and {1 + (looks - 1) // 1000} forks survived, in {took:.0f} s")
    standing, whole = cost_of_a_look()
    print(f"a look at 10 threads, 60 calls deep: {whole:.1f} ms, {standing:.1f} of it stood still")
    print(f"show_stacks costs a request {cost_of_a_request():.2f} us")


if __name__ == "__main__":
    main()
