"""One thing at a time that a site has to go on without: a disk, descriptors, its agent."""

from __future__ import annotations

import contextlib
import re
import resource
import signal
import subprocess
import time

import pytest
from balancers.test_agent import AGENT, Agent
from support.chaos import (
    STOPPED,
    WRONG_AT_MOST,
    Asking,
    Visitors,
    flat,
    held,
    limited,
    longest_wrong,
    lost,
    lowest_free,
    sent,
    stopped,
    told,
)
from support.client import PATIENCE, ask, check, eventually, free_port
from support.haproxies import ROOMY, ROOMY_TIMEOUTS, Balancer
from support.processes import Process

from wsgi_busyguard.haproxy import Server, Setting, configuration

WORKERS, THREADS, VISITORS = 2, 2, 3

SIZE = ("-w", str(WORKERS), "--threads", str(THREADS))


class Disk:
    """A file system of its own, of two megabytes.

    :ivar folder: where it is.
    :ivar is_own: whether it is one; without the right to mount any, this is a folder like others.
    """

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
        self.is_own = subprocess.run(command, capture_output=True).returncode == 0

    @contextlib.contextmanager
    def full(self, pids):
        """Have nothing be left of it; where it is not its own, have no file of these grow."""
        if not self.is_own:
            with limited(pids, resource.RLIMIT_FSIZE, lambda _: 0):
                yield
            return
        filler = self.folder / "filler"
        with open(filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
        filler.unlink()

    def enter(self):
        """Have this process have no more room than others, in a child that is about to execute."""
        if not self.is_own:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def end(self):
        if self.is_own:
            subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.end()


def visiting(port):
    return Visitors(VISITORS, port)


def checking(port):
    return Asking(1, 0.05, lambda: check(port, PATIENCE))


def never_wrong(checks, visitors):
    assert {asked.text for asked in told(checks)} <= {"free", "busy"}
    seconds, what = longest_wrong(told(checks), visitors.answers)
    assert seconds <= WRONG_AT_MOST, what


def test_on_a_full_disk_the_site_its_workers_and_its_agent_go_on(
    disk, gunicorn, started, accepts, conf
):
    board, log = disk.folder / "board", disk.folder / "access"
    logged = ("--access-logfile", log, "--worker-tmp-dir", disk.folder, conf(accepts.conf))
    served = gunicorn(*SIZE, *logged, board=board, **ROOMY)
    served.all_ready(WORKERS)
    visitors, checks, killed = visiting(served.port), checking(served.check), []
    with visitors, checks:
        visitors.came()
        with disk.full([served.popen.pid, *served.workers]):
            visitors.came()
            worker, *_ = served.workers
            killed.append(sent(worker, signal.SIGKILL))
            eventually(lambda: worker not in served.workers)
            served.all_ready(WORKERS)
            agent = started(Agent, board)
            eventually(lambda: agent.ready[0] == 200)
            visitors.came()
        visitors.came()
    assert accepts.lost(lost(visitors), killed) == []
    never_wrong(checks, visitors)

    def is_logged():
        assert ask(served.port, path="/sleep/0.01").status == 200
        return "GET /sleep/0.01 " in log.read_text()

    eventually(is_logged)
    agent.signal()
    assert agent.ended() == 0


def test_a_board_that_has_no_room_is_not_begun_and_harms_nobody(disk, gunicorn):
    """It was removed, and the disk is full by now: those who serve have the old one mapped."""
    board = disk.folder / "board"
    served = gunicorn(*SIZE, board=board, **ROOMY)
    served.all_ready(WORKERS)
    board.unlink()
    with disk.full([served.popen.pid, *served.workers]):
        refused = subprocess.run(
            [*AGENT, f"--board={board}", "--check=127.0.0.1:0"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            preexec_fn=disk.enter,
        )
        visitors, checks = visiting(served.port), checking(served.check)
        with visitors, checks:
            visitors.came(50)
    assert refused.returncode != 0
    assert re.search("No space left|File too large", refused.stderr)
    assert "Traceback" not in refused.stderr
    assert lost(visitors) == []
    never_wrong(checks, visitors)
    assert len(served.workers) == WORKERS


def test_a_master_without_descriptors_declares_nobody_dead_and_answers_checks_again(gunicorn):
    served = gunicorn(*SIZE, **ROOMY)
    served.all_ready(WORKERS)
    master, workers = served.popen.pid, served.workers
    before = held(master)
    visitors, checks = visiting(served.port), checking(served.check)
    with visitors, checks:
        checks.came()
        with limited([master], resource.RLIMIT_NOFILE, lowest_free):
            stopped(workers[0])  # so that its beats are late, and it is looked whether it is there
            visitors.came()
        checks.came()
    assert lost(visitors) == []
    never_wrong(checks, visitors)
    assert served.workers == workers
    served.at_rest()
    eventually(lambda: check(served.check).status == check(served.port).status == 200)
    flat(master, before)


def test_haproxy_goes_on_whatever_happens_to_the_agent(gunicorn, started, tmp_path):
    port = free_port()
    served = gunicorn(*SIZE, board=tmp_path / "board", **ROOMY)
    served.all_ready(WORKERS)

    def begin():
        ports = [f"--check=127.0.0.1:{free_port()}", f"--agent=127.0.0.1:{port}"]
        agent = started(Process, [*AGENT, f"--board={tmp_path / 'board'}", *ports], server="checks")
        agent.line("agent at tcp://")
        return agent

    def text(bind, stats):
        setting = Setting(WORKERS * THREADS, 1, "lb", bind, stats, ("nbthread 1",))
        known = [Server("web1", f"127.0.0.1:{served.port}", f"127.0.0.1:{port}")]
        return ROOMY_TIMEOUTS.sub(r"\1 10s", configuration(known, setting))

    agent = begin()
    balancer = started(Balancer, tmp_path, 1, text)
    eventually(balancer.answers)

    def knows():
        row = balancer.rows()["web1"]
        return row["status"].startswith("UP") and int(row["slim"] or 0) == WORKERS * THREADS

    eventually(knows)
    visitors = visiting(balancer.port)
    with visitors:
        visitors.came()
        for end in (Process.reap, Process.signal):
            end(agent)
            agent.ended()
            visitors.came()
            agent = begin()
        stopped(agent.popen.pid)
        with limited([agent.popen.pid], resource.RLIMIT_NOFILE, lowest_free):
            time.sleep(STOPPED)
        visitors.came()
        eventually(knows)
    assert lost(visitors) == []
