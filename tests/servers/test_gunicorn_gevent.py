"""Guarded gevent workers: greenlets that are counted, and a hub that may be stuck."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.client import ask, check, checks, eventually, many, together
from support.gunicorns import CLASSES, HEARD

PATCHED = "from gevent import monkey\nmonkey.patch_all()\n"


def test_forty_greenlets_are_active_and_nobody_waits(gunicorn, held):
    served = gunicorn(kind="GuardedGevent")
    answers, threads = many(40, served.port, path=held.path)
    served.filled(40)
    assert {answer.text for answer in checks(served.port)} == {"free"}
    held.let_go()
    together(threads)
    assert {answer.status for answer in answers} == {200}
    served.at_rest()
    eventually(lambda: served.load["processes"][0]["served"] >= 40)


def test_a_full_pool_leaves_the_rest_in_the_kernel(gunicorn, held):
    served = gunicorn("--worker-connections=4", kind="GuardedGevent", ready="exact")
    answers, threads = many(12, served.port, path=held.path)
    served.filled(4, 8)
    assert served.load["capacity"] == 4
    assert check(served.check).text == "busy"
    held.let_go()
    together(threads)
    assert {answer.status for answer in answers} == {200}
    served.at_rest()


def test_with_slots_the_guard_is_the_queue(gunicorn, held):
    served = gunicorn(kind="GuardedGevent", slots=4, max_queue=8, max_wait=30)
    answers, threads = many(20, served.port, path=held.path)
    served.filled(4, 8)
    checks(served.port)
    eventually(lambda: len(answers) == 8)
    held.let_go()
    together(threads)
    assert collections.Counter(answer.status for answer in answers) == {200: 12, 503: 8}
    refused = [answer for answer in answers if answer.status == 503]
    assert {answer.headers["busyguard-refused"] for answer in refused} == {"queue-full"}
    served.at_rest()
    # What is counted is posted at each beat.
    eventually(lambda: [(r["served"], r["refused"]) for r in served.load["processes"]] == [(12, 8)])


def test_a_hub_that_computes_is_late_and_the_check_port_says_so(gunicorn):
    served = gunicorn(kind="GuardedGevent", ready="exact")
    _, threads = many(8, served.port, path="/seize/0.5")
    eventually(lambda: served.load["lag"] > 0.25)
    eventually(lambda: check(served.check).text == "busy")
    together(threads)
    eventually(lambda: check(served.check).text == "free")


def test_an_app_that_loads_slowly_does_not_make_a_late_hub(gunicorn, conf, tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time; time.sleep(1.5)\nfrom gunicorn_app import app\n"
    )
    # From here to the first turn of the hub a check must not take it for stuck.
    hook = (
        "def post_worker_init(worker):\n    import ctypes\n    ctypes.PyDLL(None).usleep(200000)\n"
    )
    served = gunicorn(
        *(conf(hook), "--pythonpath", tmp_path),
        kind="GuardedGevent",
        app="slow:app",
        wait=False,
        ready="exact",
    )
    port = int(served.logged(r"checks at http\S*:(\d+)"))
    seen = []
    eventually(lambda: seen.append(check(port).text) or seen.count("free") > 20, every=0.01)
    assert set(seen) == {"absent", "free"}


def test_a_hub_that_is_stuck_is_not_live_for_as_long_as_it_is(gunicorn):
    served = gunicorn(kind="GuardedGevent", stall_after=0.7)
    assert ask(served.check, path="/livez").text == "alive"
    _, threads = many(1, served.port, path="/seize/3")
    eventually(lambda: ask(served.check, path="/livez").text == "stalled")
    assert ask(served.check, path="/livez").status == 503
    together(threads)
    eventually(lambda: ask(served.check, path="/livez").text == "alive")


def threads_of(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


def listening(pid, port):
    """Whether this process holds the socket that listens at a port of 127.0.0.1."""
    inodes = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[1] == f"0100007F:{port:04X}" and line.split()[3] == "0A"
    }
    held = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held.add(os.readlink(link))
        except OSError:  # closed meanwhile
            continue
    return bool({f"socket:[{inode}]" for inode in inodes} & held)


@pytest.mark.parametrize("kind", ["GuardedGevent", "GuardedThreads", "GuardedSync"])
def test_a_patched_master_answers_from_a_real_thread_which_no_child_has(gunicorn, conf, held, kind):
    served = gunicorn(conf(PATCHED), "-w2", kind=kind)
    served.all_ready(2)
    master, workers = served.popen.pid, served.workers
    # One more than the same master has without our ports: greenlets are none.
    assert threads_of(master) >= 2
    for port in (served.check, served.agent):
        assert listening(master, port)
        assert not any(listening(worker, port) for worker in workers)
    _, threads = many(6, served.port, path=held.path)
    eventually(lambda: served.load["active"] >= 1)
    checks(served.check)
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: workers[0] not in served.workers, within=1)
    served.all_ready(2)
    assert not any(listening(worker, served.check) for worker in served.workers)
    os.kill(master, signal.SIGKILL)
    served.popen.wait(5)
    with pytest.raises(ConnectionRefusedError):
        check(served.check)
    held.let_go()
    together(threads)


@pytest.mark.parametrize("kind", ["GuardedGevent", "GuardedThreads"])
def test_a_patched_master_drains_reloads_and_ends(gunicorn, conf, held, kind):
    served = gunicorn(conf(PATCHED), "-w1", kind=kind)
    served.all_ready(1)
    first = served.workers
    served.signal(signal.SIGHUP)
    eventually(lambda: served.workers and served.workers != first)
    served.all_ready(1)
    answers, threads = many(1, served.port, path=held.path)
    eventually(lambda: served.load["active"] == 1)
    served.signal()
    eventually(lambda: check(served.check).text == "draining", within=HEARD)
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200]
    assert served.ended() == 0
    assert "Traceback" not in served.output


def test_the_listeners_of_a_monitor_run_in_the_worker(gunicorn, conf, tmp_path):
    file = tmp_path / "heard"
    served = gunicorn(
        conf(
            "import os\n"
            "def post_worker_init(worker):\n"
            "    def busy(change):\n"
            f"        open({str(file)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
            "    worker.monitor.on_busy(busy)\n"
        ),
        kind="GuardedGevent",
        slots=1,
        max_wait=30,
    )
    _, threads = many(4, served.port, path="/sleep/0.5")
    eventually(lambda: file.exists() and file.read_text())
    assert {int(line) for line in file.read_text().split()} == set(served.workers)
    together(threads)


def test_the_other_classes_do_not_need_gevent():
    import sys

    script = (
        "import sys; sys.modules['gevent'] = None\n"
        "import wsgi_busyguard.adapters.gunicorn as found\n"
        "assert found.GuardedThreads and found.GuardedSync\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=30)
    assert CLASSES == "wsgi_busyguard.adapters.gunicorn."
