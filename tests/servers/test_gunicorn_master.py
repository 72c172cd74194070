"""The life of a guarded gunicorn master, whatever happens to it and to its workers.

With the check port and the app's own port asked all the while.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from support.client import ask, check, eventually, figures, free_port, many, together
from support.gunicorns import HEARD, Prober

from servers.test_last_call import Crowd

PLENTY = {"max_wait": 30, "max_queue": 100}


def released(folder, count, port):
    """Ask for so many requests, each of which waits for its file; return the files and threads."""
    files = [folder / f"go{n}" for n in range(count)]
    threads = [many(1, port, path=f"/until{file}")[1][0] for file in files]
    return files, threads


def filled(served, count):
    """Wait until the workers have so many requests: which one takes them is up to the kernel."""
    eventually(lambda: sum(r["active"] + r["queued"] for r in served.load["processes"]) == count)


def inside(files):
    """Return the files whose requests are in the app."""
    return [file for file in files if Path(f"{file}.in").exists() and not file.exists()]


def refused(port):
    """Whether nobody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


def gone(pid):
    """Whether this process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def states(port):
    return [row["state"] for row in figures(port)["processes"]]


def exact(port):
    return ask(port, "OPTIONS", "/?ready=exact").text


def test_a_hundred_checks_at_two_workers_have_one_answer(gunicorn, tmp_path):
    """Also at equality, where the answer depends on what was before."""
    served = gunicorn("-w2", "--threads=4", **PLENTY)
    served.all_ready(2)
    files, threads = released(tmp_path, 8, served.port)
    filled(served, 8)
    everywhere = [served.port, served.check] * 50
    # Equality, coming from free. At the app's port a check may itself be the one too many, for the
    # moment for which it waits in the kernel.
    assert {exact(served.check) for _ in everywhere} == {"free"}
    (tmp_path / "more").mkdir()
    more, their_threads = released(tmp_path / "more", 4, served.port)
    filled(served, 12)
    assert {exact(port) for port in everywhere} == {"busy"}
    load = served.load
    rows = load["processes"]
    assert len(rows) == 2
    for figure in ("queued", "active", "capacity"):
        assert load[figure] == sum(row[figure] for row in rows), figure
    assert load["capacity"] == 8
    for left in range(11, 7, -1):
        inside(files + more)[0].touch()
        filled(served, left)
    assert {exact(port) for port in everywhere} == {"busy"}  # equality, coming from busy
    inside(files + more)[0].touch()
    eventually(lambda: exact(served.check) == "free")
    assert {exact(port) for port in everywhere} == {"free"}
    for file in files + more:
        file.touch()
    together(threads + their_threads)


def test_a_killed_worker_is_out_of_the_sum_within_a_second_and_the_new_one_in(gunicorn, held):
    served = gunicorn("-w2", "--threads=4", **PLENTY)
    served.all_ready(2)
    many(20, served.port, path=held.path)
    filled(served, 20)
    with Prober(served.check) as prober:
        victim, other = served.workers
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: victim not in served.workers, within=1)
        print(f"out of the sum after {time.monotonic() - killed:.3f} s")
        served.all_ready(2)
        assert other in served.workers
        assert served.load["capacity"] == 8
    assert prober.failed == []


def test_all_workers_killed_again_and_again_come_back(gunicorn):
    served = gunicorn("-w2", "--threads=2", "--preload", **PLENTY)
    served.all_ready(2)
    many(12, served.port, path="/sleep/1")
    for _ in range(6):
        victims = served.workers
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        eventually(lambda victims=victims: not set(victims) & set(served.workers), within=2)
        served.all_ready(2)
        assert ask(served.port, path="/x", timeout=5).status == 200
        assert served.load["capacity"] == 4


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync", "GuardedGevent"])
def test_no_check_fails_while_workers_are_exchanged_added_and_taken_away(gunicorn, kind):
    # Workers that boot for longer than the patience are rightly said to be absent.
    served = gunicorn("-w2", "--threads=4", kind=kind, ready="always", patience=20)
    served.all_ready(2)
    many(12, served.port, path="/sleep/0.4")
    ports = [served.check] if kind == "GuardedSync" else [served.check, served.port]
    with Prober(*ports) as prober:
        for _ in range(2):
            before = served.workers
            served.signal(signal.SIGHUP)
            eventually(lambda before=before: not set(before) & set(served.workers))
            served.all_ready(2)
        served.signal(signal.SIGTTIN)
        served.all_ready(3)
        served.signal(signal.SIGTTOU)
        served.all_ready(2)
    assert prober.failed == []
    assert len(prober.answers) > 10


def test_a_reload_at_half_the_load_fails_no_check_under_the_default_policy(gunicorn):
    served = gunicorn("-w2", "--threads=4")
    served.all_ready(2)
    end = threading.Event()

    def client():
        while not end.is_set():
            with contextlib.suppress(OSError):  # at a reload a request may be lost, as ever
                ask(served.port, path="/sleep/0.1")

    clients = [threading.Thread(target=client, daemon=True) for _ in range(4)]
    for thread in clients:
        thread.start()
    with Prober(served.check, served.port) as prober:
        for _ in range(3):
            before = served.workers
            served.signal(signal.SIGHUP)
            eventually(lambda before=before: not set(before) & set(served.workers))
            served.all_ready(2)
    end.set()
    together(clients)
    assert prober.failed == []


@pytest.mark.parametrize("pause", [0.0, 0.15], ids=["who speak at once", "who think first"])
def test_of_a_crowd_around_reloads_nobody_is_lost(gunicorn, pause):
    served = gunicorn("-w2", "--threads=4")
    served.all_ready(2)
    crowd = Crowd(served.port, pause, path="/page")
    for _ in range(4):
        before, come = served.workers, crowd.tally[200]
        served.signal(signal.SIGHUP)
        eventually(lambda before=before: not set(before) & set(served.workers))
        served.all_ready(2)
        eventually(lambda come=come: crowd.tally[200] > come + 50)
    lost = list(crowd.losses)
    served.signal()
    crowd.gone()
    assert lost == []


def test_a_reload_of_an_app_that_loads_slowly_fails_no_check(gunicorn, tmp_path):
    (tmp_path / "slow.py").write_text("import time; time.sleep(1)\nfrom gunicorn_app import app\n")
    served = gunicorn("-w2", "--threads=2", "--pythonpath", tmp_path, app="slow:app")
    served.all_ready(2)
    before = served.workers
    with Prober(served.check) as prober:
        served.signal(signal.SIGHUP)
        eventually(lambda: not set(before) & set(served.workers))
        served.all_ready(2)
    assert prober.failed == []


def test_until_the_first_worker_is_ready_checks_say_that_nobody_is_there(gunicorn, tmp_path):
    (tmp_path / "slow.py").write_text("import time; time.sleep(2)\nfrom gunicorn_app import app\n")
    served = gunicorn(
        "--pythonpath", tmp_path, app="slow:app", ports=False, wait=False, check="127.0.0.1:0"
    )
    port = int(served.logged(r"checks at http\S*:(\d+)"))
    first = check(port)
    assert (first.status, first.text) == (503, "absent")
    assert ask(port, path="/livez").status == 200
    eventually(lambda: check(port).status == 200)


def test_a_reload_follows_the_configuration(gunicorn, conf):
    served = gunicorn(conf("threads = 2"), "-w2")
    served.all_ready(2)
    assert served.load["capacity"] == 4
    conf("threads = 3")
    served.signal(signal.SIGHUP)
    eventually(lambda: served.load["capacity"] == 6)


def test_wrong_options_at_a_reload_are_logged_once_and_those_from_before_hold(
    gunicorn, conf, tmp_path
):
    served = gunicorn(conf('raw_env = ["BUSYGUARD_RETRY_AFTER=7"]'), "-w3", "--threads=1")
    for text in (
        '["BUSYGUARD_RETRY_AFTER=9", "BUSYGUARD_MAX_QUEUE=0"]',
        '["BUSYGUARD_MAX_QUEUE=lots"]',
    ):
        served.all_ready(3)
        before = served.workers
        conf(f"raw_env = {text}")
        with Prober(served.check, served.port) as prober:
            served.signal(signal.SIGHUP)
            eventually(lambda before=before: not set(before) & set(served.workers))
            served.all_ready(3)
        assert prober.failed == []
    go = tmp_path / "go"

    def taken():  # which worker is asked is up to the kernel
        many(1, served.port, path=f"/until{go}")
        return sum(row["active"] for row in served.load["processes"]) == 3

    eventually(taken)
    assert served.load["queued"] == 0  # still without a queue
    refused_one = ask(served.port, path="/x")
    go.touch()
    assert refused_one.status == 503
    assert int(refused_one.headers["retry-after"]) >= 9
    assert served.output.count("BUSYGUARD_MAX_QUEUE='lots'") == 1
    assert "Traceback" not in served.output


def test_sigterm_says_draining_at_once_and_finishes_what_runs(gunicorn, held):
    served = gunicorn("-w2", "--threads=2", **PLENTY)
    served.all_ready(2)
    answers, threads = many(4, served.port, path=held.path)
    filled(served, 4)
    served.signal()
    eventually(lambda: check(served.check).text == "draining", within=HEARD)
    assert check(served.check).status == 503
    assert ask(served.check, path="/livez").status == 200
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200] * 4
    assert served.ended() == 0
    assert refused(served.check)
    assert refused(served.agent)
    assert "Traceback" not in served.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_quick_shutdown_says_draining_and_ends(gunicorn, number):
    """Threads that run keep a worker until the graceful timeout, as without the guard."""
    served = gunicorn("-w2", "--threads=2", "--graceful-timeout=1")
    served.all_ready(2)
    many(4, served.port, path="/sleep/20")
    filled(served, 4)
    served.signal(number)
    eventually(lambda: check(served.check).text == "draining", within=HEARD)
    assert served.ended(within=10) == 0
    assert refused(served.check)
    assert "Traceback" not in served.output


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync", "GuardedGevent"])
def test_a_killed_master_leaves_no_port_that_accepts(gunicorn, held, kind):
    """Its workers live for a while, and finish what they have."""
    served = gunicorn("-w2", kind=kind)
    served.all_ready(2)
    workers = served.workers
    answers, threads = many(2, served.port, path=held.path)
    eventually(lambda: served.load["active"] >= 1)
    os.kill(served.popen.pid, signal.SIGKILL)
    served.popen.wait(5)
    assert refused(served.check)
    assert refused(served.agent)
    if kind != "GuardedGevent":
        assert not all(map(gone, workers))
    held.let_go()
    together(threads)
    if kind != "GuardedGevent":  # which ends at once, as without the guard
        assert 200 in {answer.status for answer in answers}
    eventually(lambda: all(map(gone, workers)))


def test_two_masters_answer_each_for_its_own_workers_during_an_upgrade(gunicorn, tmp_path):
    free = free_port()
    script = tmp_path / "master.py"
    script.write_text("from gunicorn.app.wsgiapp import run\nrun()\n")
    (tmp_path / "slow.py").write_text(
        "import time; time.sleep(2.5)\nfrom gunicorn_app import app\n"
    )
    listens = {"check": f"127.0.0.1:{free}", "app": "slow:app"}
    served = gunicorn("-w1", "--threads=2", "--pythonpath", tmp_path, script=script, **listens)
    served.all_ready(1)
    old = served.workers[0]
    with Prober(served.check, served.port) as prober:
        served.signal(signal.SIGUSR2)
        new = int(
            served.logged(r"\[(\d+)\] \[INFO\] Starting gunicorn[^\0]*Starting gunicorn")
            and re.findall(r"\[(\d+)\] \[INFO\] Starting gunicorn", served.output)[-1]
        )
        assert new != served.popen.pid
        eventually(lambda: len({tuple(served.workers) for _ in range(20)} - {()}) == 2)
        seen = {tuple(served.workers) for _ in range(40)}
        assert (old,) in seen
        assert {len(pids) for pids in seen} == {1}
        eventually(lambda: all(served.ready() == 1 for _ in range(20)))
        assert {served.load["capacity"] for _ in range(20)} == {2}
        assert prober.failed == []  # also while the new one had nobody to serve
        served.signal(signal.SIGTERM)
        served.ended()
        eventually(lambda: all(served.workers != [old] for _ in range(10)))
        # Who has just been accepted by the old one, or is about to be, is reset when it ends.
        during = [why for _, why in prober.failed if why != "draining" and "reset" not in why]
        assert len(prober.failed) - prober.failed.count((503, "draining")) <= 2
        prober.answers.clear()
        assert check(served.check).text == "free"
    assert during == []
    assert prober.failed == []
    os.kill(new, signal.SIGTERM)
    eventually(lambda: refused(served.check))


def test_a_daemon_whose_workers_are_sent_away_is_draining(gunicorn, tmp_path):
    port = free_port()
    pidfile = tmp_path / "pid"
    gunicorn("--daemon", "-p", pidfile, "-w2", check=f"127.0.0.1:{port}", wait=False)
    eventually(lambda: pidfile.exists() and pidfile.read_text())
    master = int(pidfile.read_text())
    try:
        # A signal that finds a worker still booting is lost, with and without the guard.
        eventually(lambda: not refused(port) and states(port) == ["ready"] * 2)
        os.kill(master, signal.SIGWINCH)
        eventually(lambda: check(port).text == "draining")
        eventually(lambda: states(port) == [])
        assert check(port).text == "draining"
        os.kill(master, signal.SIGHUP)  # brings them back
        eventually(lambda: states(port) == ["ready"] * 2)
        eventually(lambda: check(port).status == 200)
    finally:
        os.kill(master, signal.SIGTERM)
        eventually(lambda: gone(master))
    eventually(lambda: refused(port), within=1)


def test_recycled_workers_fail_no_check_when_there_are_two(gunicorn):
    # Workers that boot for longer than the patience are rightly said to be absent.
    served = gunicorn("-w2", "--threads=2", "--max-requests=5", ready="always", patience=20)
    served.all_ready(2)
    first = set(served.workers)
    with Prober(served.check) as prober:
        for _ in range(6):
            together(many(4, served.port, path="/sleep/0.1")[1])
        eventually(lambda: not first & set(served.workers))
    assert prober.failed == []
