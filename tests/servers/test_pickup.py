"""Refusing at pick-up on real servers: nobody at rest and in a burst, some in an overload."""

from __future__ import annotations

from collections import Counter

import pytest
from support.client import ask, checks, eventually, figures, many, together
from support.gunicorns import Gunicorn

from .test_gate_anywhere import Anywhere

STOCK = ["waitress", "gunicorn gthread"]


def statuses(answers):
    return Counter(answer.status for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
def test_a_burst_is_served(started, name):
    server = started(Anywhere, name, 4, {"client_timeout": 20})
    for _ in range(3):  # a page, and what belongs to it
        assert ask(server.port, path="/sleep/0.05").status == 200
        answers, threads = many(6, server.port, path="/sleep/0.05")
        together(threads)
        assert statuses(answers) == {200: 6}
    answers, threads = many(20, server.port, path="/sleep/0.3")
    together(threads)
    assert statuses(answers) == {200: 20}


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
def test_of_too_many_some_are_refused_and_the_others_served(started, name):
    server = started(Anywhere, name, 4, {"max_wait": 0.3})
    answers, threads = many(80, server.port, path="/sleep/0.2")
    assert {answer.text for answer in checks(server.check, 5)} <= {"free", "busy"}
    assert ask(server.port, path="/livez").text == "alive"  # when a thread takes it up
    together(threads)
    assert statuses(answers).keys() == {200, 503}
    reasons = {answer.headers.get("busyguard-refused") for answer in answers if answer.status > 200}
    assert reasons == {"queue-age"}
    assert figures(server.check)["counts"]["refused"]["queue-age"] == statuses(answers)[503]
    eventually(lambda: server.load["queued"] == 0)
    answers, threads = many(4, server.port, path="/sleep/0.2")
    together(threads)
    assert statuses(answers) == {200: 4}


@pytest.mark.slow
def test_sync_workers_refuse_by_their_shares_of_the_kernels_queue(started):
    server = started(Gunicorn, "-w2", kind="GuardedSync", client_timeout=1)
    server.all_ready(2)
    answers, threads = many(6, server.port, path="/sleep/0.1")  # done within a third of a second
    together(threads)
    assert statuses(answers) == {200: 6}
    answers, threads = many(40, server.port, path="/sleep/0.2")
    together(threads)
    assert statuses(answers).keys() == {200, 503}
    wanted = (statuses(answers)[200] + 6, statuses(answers)[503])
    eventually(lambda: counted(server) == wanted)


def counted(server):
    counts = server.load["counts"]
    return counts["served"], counts["refused"]["queue-age"]
