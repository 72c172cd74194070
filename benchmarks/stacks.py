"""What a look at what holds the slots costs, and whether the process lives on.

    $ python benchmarks/stacks.py 100000
    $ python benchmarks/stacks.py 100000 --greenlets

Threads make garbage with finalizers as fast as they can, others come and go, and the process forks,
while three of them look so often: what stopped a process within seconds when it looked at frames.
Then what one look costs ten threads that have a request, and what ``show_stacks`` costs a request.

With ``--greenlets`` thirty of gevent's do so, and others come and go. They are looked at from their
own thread, where finalizers let others run as soon as they may (in the middle of a look they ended
the process within a minute), and from another thread, as by a check port. One keeps the hub at
times for longer than that thread waits for it.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import signal
import statistics
import sys
import threading
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from wsgi_busyguard.dashboard import greenlets
from wsgi_busyguard.dashboard.stack_lines import folded
from wsgi_busyguard.dashboard.stacks import Stacks, dump, threads_in

# Between two forks, and how long a child may take for one look.
FORK_LOOKS = 1000
CHILD_SECONDS = 60


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
    """Look so often, and return how many requests were seen.

    Those that make garbage look, too: so a look finds others in the middle of theirs.
    """
    stacks, looked, seen, over = Stacks(), [], [], []
    noted = stacks.noting(lambda environ, start_response: deep(30))

    def look():
        while len(looked) < looks:
            noted({}, None)
            text = dump()
            looked.append(None)
            if len(looked) % 500 == 0:  # to read it takes thirty times as long, and is no danger
                found, complete = threads_in(text)
                seen.append(folded(found, complete, stacks._began, 0.0)["threads"])

    def call():
        while not over:
            noted({}, None)

    def come_and_go():
        while not over:
            thread = threading.Thread(target=deep, args=(5,))
            thread.start()
            thread.join()

    others = [threading.Thread(target=work) for work in (call, come_and_go)]
    lookers = [threading.Thread(target=look) for _ in range(3)]
    for thread in others + lookers:
        thread.start()
    for number in range(1 + (looks - 1) // FORK_LOOKS):
        while len(looked) < number * FORK_LOOKS:
            time.sleep(0.001)
        pid = os.fork()
        if pid == 0:
            os._exit(len(threads_in(dump())[0]) - 1)
        assert os.waitpid(pid, 0)[1] == 0, "a child saw threads that it has not"
    for thread in lookers:
        thread.join()
    over.append(1)
    for thread in others:
        thread.join()
    return sum(seen)


def survive_greenlets(looks):
    """Look so often at greenlets, and return how many requests were seen."""
    import gevent
    from gevent import monkey

    greenlets.HUB_PATIENCE = 0.02  # so that a greenlet that keeps the hub does so for no longer
    stacks, over, elsewhere, yields, numbers = Stacks(), [], [], [], itertools.count()
    looking = [0]  # in which process one looks just now

    class Yielding(Litter):
        """One in ten lets others run, where that is possible: not in the hub, nor in a child."""

        def __del__(self):
            here = looking[0] == os.getpid() and gevent.getcurrent() is main
            if here and next(numbers) % 10 == 0:
                yields.append(gevent.sleep(0))

    def deep(depth):
        if depth % 10 == 0:
            Yielding()
            gevent.sleep(0)
        return depth and deep(depth - 1)

    def compute():
        until = time.monotonic() + 2 * greenlets.HUB_PATIENCE
        while time.monotonic() < until:
            pass

    def call():
        while not over:
            noted({}, None)

    def come_and_go():
        while not over:
            gevent.spawn(noted, {}, None).join()

    def keep():
        while not over:
            gevent.sleep(1)
            kept({}, None)

    def look_elsewhere():
        while not over:
            elsewhere.append(stacks._looked(time.monotonic())["threads"])
            sleep(0.05)

    noted = stacks.noting(lambda environ, start_response: deep(30))
    kept = stacks.noting(lambda environ, start_response: compute())
    main, sleep = gevent.getcurrent(), monkey.get_original("time", "sleep")
    jobs = [gevent.spawn(work) for work in (*[call] * 30, *[come_and_go] * 3, keep)]
    jobs.append(gevent.get_hub().threadpool.spawn(look_elsewhere))
    seen = number = 0
    while number < looks or not (any(elsewhere) and yields):
        looking[0] = os.getpid()
        found = stacks._looked(time.monotonic())
        looking[0] = 0
        assert found["why"] is None, found
        seen += found["threads"]
        gevent.sleep(0)
        if number % FORK_LOOKS == 0:
            fork(stacks)
        number += 1
    over.append(1)
    gevent.joinall(jobs, raise_error=True)
    return seen


def fork(stacks):
    """Have a child look."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(CHILD_SECONDS)
        os._exit(0 if stacks._looked(time.monotonic())["why"] is None else 1)
    assert os.waitpid(pid, 0)[1] == 0, "a child could not look"


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
    parser.add_argument("--greenlets", action="store_true")
    given = parser.parse_args()
    looks = given.looks
    if given.greenlets:
        from gevent import monkey

        monkey.patch_all()
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks in a process with threads
    before, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(100)
    sys.setswitchinterval(1e-5)
    began = time.monotonic()
    seen = survive_greenlets(looks) if given.greenlets else survive(looks)
    took = time.monotonic() - began
    assert seen, "no request was ever seen"
    gc.set_threshold(*before)
    sys.setswitchinterval(interval)
    print(f"{looks} looks and {1 + (looks - 1) // FORK_LOOKS} forks survived, in {took:.0f} s")
    if given.greenlets:
        return
    standing, whole = cost_of_a_look()
    print(f"a look at 10 threads, 60 calls deep: {whole:.1f} ms, {standing:.1f} of it stood still")
    print(f"show_stacks costs a request {cost_of_a_request():.2f} us")


if __name__ == "__main__":
    main()
