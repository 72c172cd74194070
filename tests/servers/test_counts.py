"""Counters of real servers are those of their clients, however their processes come and go."""

from __future__ import annotations

import collections
import signal

import pytest
from support.client import Line, ask, eventually, figures, many, request, together

from servers.test_serve import APP, Serve


def counted(port):
    counts = figures(port)["counts"]
    return counts["served"], sum(counts["refused"].values())


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync", "GuardedGevent"])
def test_workers_that_end_well_lose_no_count(gunicorn, kind):
    served = gunicorn("-w", "2", "--max-requests", "7", kind=kind)
    for _ in range(40):
        assert ask(served.port).status == 200
    eventually(lambda: counted(served.check)[0] == 40)
    pids = {row["pid"] for row in served.load["processes"]}
    served.signal(signal.SIGHUP)
    eventually(lambda: not pids & {row["pid"] for row in served.load["processes"]})
    eventually(lambda: counted(served.check)[0] == 40)


@pytest.mark.parametrize("server", ["twisted", "waitress", "werkzeug"])
def test_one_process_counts_what_its_clients_see(started, tmp_path, held, server):
    (tmp_path / "app.py").write_text(APP)
    limits = ("--threads=2", "--max-queue=3", "--max-wait=20")
    served = started(Serve, tmp_path, f"--server={server}", *limits)
    port, check = served.port, served.check
    seen = collections.Counter()
    for _ in range(2):
        answers, threads = many(12, port, path="/sleep/0.05")
        together(threads)
        seen.update(answer.status for answer in answers)
    slept = 0.05 * seen[200]
    eventually(lambda: figures(check)["active"] == 0)
    answers, threads = many(12, port, path=held.path)
    eventually(lambda: len(answers) == 7)
    held.let_go()
    together(threads)
    seen.update(answer.status for answer in answers)
    assert seen[200] + seen[503] == 36
    eventually(lambda: counted(check) == (seen[200], seen[503]))
    counts = figures(check)["counts"]
    assert counts["admitted"] == sum(counts["queue_time"]["counts"]) == seen[200]
    assert sum(counts["service_time"]["counts"]) == seen[200]
    assert counts["service_time"]["total"] >= slept
    assert counts["refused"]["queue-full"] == seen[503]


def test_who_leaves_the_queue_is_dropped(site):
    served = site(threads=1, max_queue=5, max_wait=30)
    _, threads = many(1, served.port, path="/hang")
    served.filled(1)
    with Line(served.port) as gone:
        gone.send(request("GET", "/"))
        served.filled(1, 1)
    eventually(lambda: figures(served.check)["counts"]["dropped"] == 1)
    served.tell("release")
    together(threads)
    eventually(lambda: counted(served.check) == (1, 0))
