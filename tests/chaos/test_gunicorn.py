"""A guarded gunicorn, with an agent beside it, to whose processes everything happens at random.

``pytest tests/chaos --seconds 300 --seed 7`` goes on for five minutes each, with the same dice.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time

import pytest
from balancers.test_agent import AGENT
from servers.test_gunicorn_scarce import SCARCE
from support.chaos import (
    STOPPED,
    WRONG_AT_MOST,
    Asking,
    Visitors,
    descriptors,
    dice,
    flat,
    held,
    limited,
    longest_wrong,
    lost,
    outside,
    sent,
    stopped,
    told,
)
from support.client import PATIENCE, check, eventually, figures, free_port
from support.processes import Process

from wsgi_busyguard import Board

WORKERS, THREADS, VISITORS = 3, 2, 4

SECONDS = 20

MASTER = "from gunicorn.app.wsgiapp import run\nrun()\n"


class Chaos:
    """Does one thing after the other to a gunicorn and to an agent for its board.

    :ivar killed: which workers were killed, and when.
    :ivar scarce: from when to when no thread could be started.
    """

    def __init__(self, served, folder, started, dice):
        self.killed, self.scarce = [], []
        self._served, self._folder, self._started, self._dice = served, folder, started, dice
        self.port, self.agent = free_port(), None
        self.begin_agent()

    def step(self):
        steps = [
            *(self.kill, self.stop, self.end, self.reload, self.resize, self.upgrade),
            *(self.no_descriptors, self.no_threads, self.no_room, self.replace_board),
            *(self.kill_agent, self.stop_agent, self.end_agent),
        ]
        step = self._dice.choice(steps)
        print(f"{time.monotonic():.2f} {step.__name__}")
        with contextlib.suppress(ProcessLookupError):
            step()
        time.sleep(self._dice.uniform(0.05, 0.5))

    # What is there

    @property
    def master(self):
        return int(eventually(self._written))

    def _written(self):
        with contextlib.suppress(FileNotFoundError):  # for a moment, when one goes
            return (self._folder / "pid").read_text()

    @property
    def workers(self):
        return [row["pid"] for row in figures(self._served.check)["processes"]]

    def _some_worker(self):
        workers = self.workers
        if not workers:
            raise ProcessLookupError
        return self._dice.choice(sorted(workers))

    def begin_agent(self):
        command = [*AGENT, f"--board={self._folder / 'board'}", f"--check=127.0.0.1:{self.port}"]
        self.agent = self._started(Process, command, server="checks")
        self.agent.line("checks at ")

    # What happens to workers

    def kill(self):
        self.killed.append(sent(self._some_worker(), signal.SIGKILL))

    def stop(self):
        stopped(self._some_worker())

    def end(self):
        os.kill(self._some_worker(), signal.SIGTERM)

    # What happens to the master

    def reload(self):
        os.kill(self.master, signal.SIGHUP)

    def resize(self):
        """Have one worker more, or one less.

        How many there are in the end is not known: a reload has as many again as at first, and two
        signals that come together may be heard in another order.
        """
        several = len(self.workers) > WORKERS
        os.kill(self.master, signal.SIGTTOU if several else signal.SIGTTIN)

    def upgrade(self):
        """Have a new master come beside the old one, and end that."""
        old, before = self.master, set(self.workers)
        os.kill(old, signal.SIGUSR2)
        eventually((self._folder / "pid.2").exists)
        eventually(lambda: sum(pid not in before for pid in self.workers) >= WORKERS)
        os.kill(old, signal.SIGTERM)
        eventually(lambda: self.master != old)

    # What is scarce for a moment

    def no_descriptors(self):
        with limited([*self.workers, self.agent.popen.pid], resource.RLIMIT_NOFILE, descriptors):
            time.sleep(STOPPED)

    def no_room(self):
        """Have every write to a file fail, as on a disk that is full."""
        pids = [self.master, *self.workers, self.agent.popen.pid]
        with limited(pids, resource.RLIMIT_FSIZE, lambda _: 0):
            time.sleep(STOPPED)

    def no_threads(self):
        before = time.monotonic()
        (self._folder / "scarce").touch()
        time.sleep(STOPPED)
        (self._folder / "scarce").unlink()
        self.scarce.append((before, time.monotonic() + 1))

    def replace_board(self):
        (self._folder / "board").unlink(missing_ok=True)
        if self._dice.random() < 0.5:
            Board(self._folder / "board")

    # What happens to the agent

    def kill_agent(self):
        self.agent.reap()
        self.begin_agent()

    def stop_agent(self):
        stopped(self.agent.popen.pid)

    def end_agent(self):
        self.agent.signal()
        assert self.agent.ended() == 0
        self.begin_agent()


@pytest.fixture
def served(gunicorn, accepts, conf, tmp_path):
    """A gunicorn with a board in a file, and two logs."""
    (tmp_path / "master.py").write_text(MASTER)
    limits = {"max_queue": 100, "max_wait": 30, "client_timeout": 60}
    served = gunicorn(
        *("-w", str(WORKERS), "--threads", str(THREADS), "--pid", tmp_path / "pid"),
        *(
            "--access-logfile",
            tmp_path / "access",
            conf(SCARCE.format(file=str(tmp_path / "scarce")) + accepts.conf),
        ),
        script=tmp_path / "master.py",
        board=tmp_path / "board",
        check=f"127.0.0.1:{free_port()}",
        **limits,
    )
    yield served
    print(served.output[-100_000:])  # which pytest shows if it failed


@pytest.mark.timeout(0)  # every wait in it ends
def test_whatever_happens_to_its_processes_the_site_goes_on(
    served, started, accepts, tmp_path, pytestconfig
):
    served.all_ready(WORKERS)
    chaos = Chaos(served, tmp_path, started, dice(pytestconfig))
    before = held(chaos.master)
    end = time.monotonic() + (pytestconfig.getoption("--seconds") or SECONDS)
    visitors = Visitors(VISITORS, served.port)
    checks = Asking(1, 0.05, lambda: check(served.check, PATIENCE))
    agents = Asking(1, 0.05, lambda: check(chaos.port, PATIENCE))
    with visitors, checks, agents:
        visitors.came()
        while time.monotonic() < end:
            chaos.step()
        eventually(lambda: {row["state"] for row in served.load["processes"]} == {"ready"})
        visitors.came()
    refused = [asked for asked in lost(visitors) if asked.status == 503]
    assert outside(refused, chaos.scarce) == []  # a worker that can start no thread says so
    assert accepts.lost([one for one in lost(visitors) if one not in refused], chaos.killed) == []
    for asking in (checks, agents):
        assert {asked.text for asked in told(asking)} <= {"free", "busy", "draining", "absent"}
        seconds, what = longest_wrong(told(asking), visitors.answers)
        assert seconds <= WRONG_AT_MOST, what
    served.at_rest()
    eventually(lambda: check(served.check).status == check(served.port).status == 200)
    eventually(lambda: check(chaos.port).status == 200)
    flat(chaos.master, before)
