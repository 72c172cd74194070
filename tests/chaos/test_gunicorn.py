"""A guarded gunicorn whose processes are killed, stopped, ended and replaced at random, under load.

``pytest tests/chaos --seconds 300 --seed 7`` goes on for five minutes, with the same dice again.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time

import pytest
from support.client import PATIENCE, Answer, ask, check, eventually
from support.gunicorns import Prober

WORKERS, THREADS, VISITORS = 3, 2, 4

# Seconds for which a worker is stopped: so long a request that it has must wait.
STOPPED = 0.5

SECONDS = 10


class Visitors:
    """So many who ask for a page again and again, one after the other."""

    def __init__(self, port):
        self.answers = []
        self._port = port
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._visit, daemon=True) for _ in range(VISITORS)]

    def _visit(self):
        while not self._end.wait(0.01):
            began = time.monotonic()
            try:
                answer = ask(self._port, path="/sleep/0.02")
            except (OSError, ValueError) as error:  # reset, or cut off in the middle
                answer = Answer(-1, {}, repr(error).encode(), time.monotonic() - began)
            self.answers.append(answer)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads), "a visitor hangs"


class Chaos:
    """Does one thing after the other to a gunicorn.

    :ivar killed: how many workers were killed, which may have had a request of each visitor's.
    """

    def __init__(self, served, seed):
        self.killed = 0
        self._served = served
        self._dice = random.Random(seed)

    def step(self):
        step = self._dice.choice([self.kill, self.stop, self.end, self.reload, self.resize])
        with contextlib.suppress(ProcessLookupError):
            step()
        time.sleep(self._dice.uniform(0.05, 0.5))

    def _worker(self):
        return self._dice.choice(self._served.workers or [0])

    def kill(self):
        worker = self._worker()
        if worker:
            self.killed += 1
            os.kill(worker, signal.SIGKILL)

    def stop(self):
        worker = self._worker()
        if worker:
            os.kill(worker, signal.SIGSTOP)
            time.sleep(STOPPED)
            os.kill(worker, signal.SIGCONT)

    def end(self):
        worker = self._worker()
        if worker:
            os.kill(worker, signal.SIGTERM)

    def reload(self):
        self._served.signal(signal.SIGHUP)

    def resize(self):
        """Have one worker more, or one less.

        How many there are in the end is not known: a reload has as many again as at first, and two
        signals that come together may be heard in another order.
        """
        several = len(self._served.workers) > WORKERS
        self._served.signal(signal.SIGTTOU if several else signal.SIGTTIN)


def held(pid):
    """Return how many descriptors and threads a process has, together."""
    return len(os.listdir(f"/proc/{pid}/fd")) + len(os.listdir(f"/proc/{pid}/task"))


@pytest.mark.timeout(0)  # every wait in it ends
def test_whatever_happens_to_its_workers_the_site_goes_on(gunicorn, pytestconfig):
    seed, seconds = pytestconfig.getoption("--seed"), pytestconfig.getoption("--seconds")
    if not seed:  # by itself always the same dice, for minutes others each time
        seed = random.SystemRandom().randrange(1, 1 << 32) if seconds else 1
    print(f"--seed {seed}")
    limits = {"max_queue": 100, "max_wait": 30, "client_timeout": 60}
    served = gunicorn("-w", str(WORKERS), "--threads", str(THREADS), **limits)
    served.all_ready(WORKERS)
    before = held(served.popen.pid)
    chaos = Chaos(served, seed)
    end = time.monotonic() + (pytestconfig.getoption("--seconds") or SECONDS)
    with Prober(served.check, timeout=PATIENCE) as prober, Visitors(served.port) as visitors:
        while time.monotonic() < end:
            chaos.step()
        eventually(lambda: {row["state"] for row in served.load["processes"]} == {"ready"})
        calm = len(visitors.answers)
        eventually(lambda: len(visitors.answers) >= calm + 10 * VISITORS)
    lost = [answer for answer in visitors.answers if answer.status != 200]
    assert len(lost) <= VISITORS * chaos.killed, lost[:5]
    # The master answers whatever its workers do, and does not say that it goes.
    assert {answer.status for answer in prober.answers} <= {200, 503}
    assert "draining" not in {answer.text for answer in prober.answers}
    served.at_rest()
    eventually(lambda: check(served.check).status == check(served.port).status == 200)
    eventually(lambda: held(served.popen.pid) <= before + 4)
