"""Several GuardedThreads workers: none refuses while threads of another are idle."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import time

import pytest
from support.client import Line, ask, check, checks, eventually, many, request, together

from servers.test_gunicorn_threads import REFUSALS, gunicorn

__all__ = ["gunicorn"]  # fixtures

# A worker that is idle takes a connection in less than a millisecond, unless the machine is busy
# elsewhere, and then the others may wait for it for longer than the 0.1 s of life.
PATIENT = "from wsgi_busyguard.adapters.gunicorn import balance\nbalance.PATIENCE_SECONDS = 5.0\n"


@pytest.fixture
def workers(gunicorn):
    """Starts so many workers of four threads."""

    def start(count, *arguments, **options):
        server = gunicorn("-w", str(count), "--threads", "4", *arguments, **options)
        server.boots = count
        eventually(lambda: server.ready() >= count)
        return server

    return start


def each(server):
    """Return how many requests each worker has, inside and waiting."""
    rows = server.load["processes"]
    return sorted((row["active"], row["queued"]) for row in rows)


def test_as_many_requests_as_there_are_threads_are_all_served_at_once(workers, conf):
    server = workers(2, conf(PATIENT), max_queue=0)
    for _ in range(10):
        answers, threads = many(8, server.port, path="/sleep/0.2")
        together(threads)
        assert [answer.status for answer in answers] == [200] * 8
        server.at_rest()


def test_with_three_workers_likewise_and_what_is_too_much_is_refused(workers, held, conf):
    server = workers(3, conf(PATIENT), max_queue=0)
    answers, threads = many(12, server.port, path=held.path)
    eventually(lambda: each(server) == [(4, 0)] * 3)
    assert answers == []
    refused, more = many(6, server.port, path=held.path)
    together(more)
    assert {answer.headers[REFUSALS] for answer in refused} == {"queue-full"}
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200] * 12


def test_queues_are_as_long_as_each_other(workers, held, conf):
    server = workers(2, conf(PATIENT), max_queue=10, max_wait=50)
    answers, threads = many(20, server.port, path=held.path)
    eventually(lambda: each(server) == [(4, 6)] * 2)
    assert check(server.port).text == "busy"
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200] * 20


def test_one_worker_refuses_as_ever(workers, held):
    server = workers(1, max_queue=2)
    answers, threads = many(10, server.port, path=held.path)
    eventually(lambda: len(answers) == 4)
    assert {answer.headers[REFUSALS] for answer in answers} == {"queue-full"}
    assert max(answer.took for answer in answers) < 1
    held.let_go()
    together(threads)


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_who_is_idle_and_stuck_is_not_waited_for(workers, held):
    """Its row says that four threads are idle, for as long as nobody knows that it is stopped."""
    server = workers(2, max_queue=2, max_wait=50)
    _, idle = server.workers
    with stopped(idle):
        answers, threads = many(6, server.port, path=held.path)
        eventually(lambda: each(server) == [(0, 0), (4, 2)])
        refused = ask(server.port, path=held.path)
        assert (refused.status, refused.headers[REFUSALS]) == (503, "queue-full")
        checks(server.port)
        held.let_go()
        together(threads)
    assert [answer.status for answer in answers] == [200] * 6


def test_workers_of_another_master_are_not_waited_for(workers, held, tmp_path):
    """They are on the same board, if told so, and at another socket."""
    board = tmp_path / "board"
    server, _ = (workers(1, max_queue=0, board=board) for _ in range(2))
    _, threads = many(4, server.port, path=held.path)
    server.filled(4)
    answers = [ask(server.port, path=held.path) for _ in range(20)]
    assert {answer.status for answer in answers} == {503}
    assert max(answer.took for answer in answers) < 1
    held.let_go()
    together(threads)


def test_checks_are_answered_at_once_while_connections_are_left_to_others(workers, held):
    server = workers(2, max_queue=2, max_wait=50)
    _, threads = many(5, server.port, path=held.path)
    eventually(lambda: sum(active for active, _ in each(server)) == 5)
    checks(server.port)
    held.let_go()
    together(threads)


def test_what_is_left_in_the_kernel_is_counted_as_queued(workers, held):
    server = workers(2, max_queue=0)
    pids = server.workers
    with contextlib.ExitStack() as both:
        for pid in pids:
            both.enter_context(stopped(pid))
        answers, threads = many(5, server.port, path=held.path)
        eventually(lambda: server.load["queued"] == 5)
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200] * 5


def test_with_reuse_port_nobody_else_could_take_a_connection(workers, held):
    with socket.socket() as known:  # each worker binds by itself, so the kernel cannot choose
        known.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        known.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{known.getsockname()[1]}"
        server = workers(2, "--reuse-port", bind=where, max_queue=0)
    answers, threads = many(12, server.port, path=held.path)
    eventually(lambda: len(answers) >= 4)
    assert max(answer.took for answer in answers) < 1
    held.let_go()
    together(threads)
    assert {answer.status for answer in answers} == {200, 503}


def test_who_is_kept_alive_at_a_full_worker_is_sent_to_one_that_is_not(workers):
    """A connection that is kept belongs to one worker, and so do all its requests."""
    server = workers(2, "--keep-alive", "30", max_wait=50)
    lines = collections.defaultdict(list)
    until = time.monotonic() + 20
    with contextlib.ExitStack() as open_lines:
        while len(lines) < 2 or min(map(len, lines.values())) < 9:
            assert time.monotonic() < until
            line = open_lines.enter_context(Line(server.port))
            line.send(request(path="/pid"))
            lines[line.answer().text].append(line)
        one, _ = lines.values()
        for line in one[:8]:
            line.send(request(path="/sleep/0.3"))
        answers = [line.answer() for line in one[:8]]
        server.at_rest()
        one[-1].send(request(path="/page"))
        at_rest = one[-1].answer()
    assert [answer.text for answer in answers] == ["slept 0.3"] * 8
    assert "close" in [answer.headers["connection"] for answer in answers]
    assert at_rest.headers["connection"] == "keep-alive"
