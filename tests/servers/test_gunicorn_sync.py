"""Guarded sync workers: the queue is the kernel's, and the master reads it."""

from __future__ import annotations

import time

import pytest
from support.client import (
    Line,
    ask,
    check,
    checks,
    eventually,
    free_port,
    many,
    request,
    together,
)


def test_ten_requests_at_one_worker_are_one_inside_and_nine_in_the_kernel(gunicorn, held):
    served = gunicorn(kind="GuardedSync", ready="exact")
    answers, threads = many(10, served.port, path=held.path)
    served.filled(1, 9)
    assert {answer.text for answer in checks(served.check)} == {"busy"}
    assert answers == []
    held.let_go()
    together(threads)
    assert {answer.status for answer in answers} == {200}
    served.at_rest()
    eventually(lambda: check(served.check).text == "free")
    eventually(lambda: [row["served"] for row in served.load["processes"]] == [10])


@pytest.mark.parametrize("bind", ["unix", "127.0.0.1:0", "[::1]:0"])
def test_three_workers_share_one_queue_whatever_it_listens_at(gunicorn, tmp_path, held, bind):
    path = str(tmp_path / "app.sock") if bind == "unix" else None
    served = gunicorn("-w3", kind="GuardedSync", bind=f"unix:{path}" if path else bind)
    served.all_ready(3)
    if path is None:
        port = int(served.logged(r"Listening at: http://\S*:(\d+)"))
    threads = []
    for _ in range(10):
        if bind.startswith("["):
            threads += asked_at_ipv6(port, held.path)
        else:
            threads += many(1, None if path else port, path=held.path, unix=path)[1]
    served.filled(3, 7)
    assert served.load["capacity"] == 3
    assert [row["active"] for row in served.load["processes"]] == [1, 1, 1]
    assert [row["queued"] for row in served.load["processes"]] == [0, 0, 0]
    held.let_go()
    together(threads)
    served.at_rest()


def asked_at_ipv6(port, path):
    import http.client
    import threading

    def one():
        client = http.client.HTTPConnection("::1", port, timeout=20)
        client.request("GET", path)
        client.getresponse().read()
        client.close()

    thread = threading.Thread(target=one, daemon=True)
    thread.start()
    return [thread]


def test_with_reuse_port_each_worker_reads_its_own_queue(gunicorn, held):
    port = free_port()
    served = gunicorn("-w2", "--reuse-port", kind="GuardedSync", bind=f"127.0.0.1:{port}")
    served.all_ready(2)
    _, threads = many(10, port, path=held.path)
    eventually(lambda: sum(r["active"] + r["queued"] for r in served.load["processes"]) == 10)
    assert served.load["active"] == 2
    held.let_go()
    together(threads)
    served.at_rest()
    served.signal()
    assert served.ended() == 0


def test_threads_do_not_have_gunicorn_take_another_class(gunicorn):
    served = gunicorn("--threads=4", kind="GuardedSync")
    served.logged(r"Using worker: \S*GuardedSync")
    assert served.load["capacity"] == 1


def test_who_is_slow_to_ask_takes_the_worker_and_is_counted(gunicorn):
    served = gunicorn(kind="GuardedSync")
    with Line(served.port) as slow:
        served.filled(1)
        slow.send(request(path="/x"))
        assert slow.answer().status == 200
    served.at_rest()


def test_who_keeps_the_interpreter_from_the_first_moment_is_counted_all_the_same(gunicorn):
    served = gunicorn(kind="GuardedSync")
    _, threads = many(1, served.port, path="/seize/2")
    eventually(lambda: served.load["active"] == 1, within=1.5)
    together(threads)
    served.at_rest()


def test_a_load_that_comes_and_goes_is_counted_exactly(gunicorn):
    served = gunicorn("-w2", kind="GuardedSync")
    served.all_ready(2)
    began = time.monotonic()
    while time.monotonic() - began < 2:
        answers, threads = many(20, served.port, path="/x")
        together(threads)
        assert {answer.status for answer in answers} == {200}
    served.at_rest()
    eventually(lambda: check(served.port).text == "free")


def test_beside_a_stock_check_that_waits_behind_seconds_of_work(gunicorn, held):
    """What the guard is for: behind the same queue the app's own port says nothing for seconds."""
    served = gunicorn(kind="GuardedSync")
    _, first = many(1, served.port, path=held.path)
    served.filled(1)
    _, threads = many(5, served.port, path="/sleep/0.5")
    served.filled(1, 5)
    there = ask(served.check, path="/readyz?ready=exact")
    held.let_go()
    here = check(served.port)
    print(f"the check port {there.took * 1000:.1f} ms, the app's port {here.took * 1000:.0f} ms")
    assert (there.status, there.text) == (503, "busy")
    assert there.took * 10 < here.took
    together([*first, *threads])
    served.at_rest()


def test_a_worker_that_gunicorn_ends_for_its_timeout_is_out_of_the_sum(gunicorn):
    served = gunicorn("-w2", "--timeout=1", kind="GuardedSync")
    served.all_ready(2)
    first = served.workers
    _, threads = many(1, served.port, path="/sleep/15")
    served.filled(1)
    served.logged("WORKER TIMEOUT")
    eventually(lambda: len(set(first) & set(served.workers)) == 1)
    served.all_ready(2)
    served.at_rest()
    together(threads)
