"""The guard with old versions of waitress and cheroot, each installed beside the one tested."""

from __future__ import annotations

import os
import re

import pytest
from support.client import Line, ask, check, eventually, many, request, together
from support.processes import environment
from support.threaded import ThreadedSite
from support.versions import folders

VERSIONS = [
    ("waitress", "2.1.2"),
    ("waitress", "3.0.0"),
    ("cheroot", "9.0.0"),
    ("cheroot", "10.0.1"),
]

REFUSALS = "busyguard-refused"


@pytest.fixture(scope="session")
def targets(tmp_path_factory):
    return folders(tmp_path_factory, map("==".join, VERSIONS))


@pytest.fixture(params=VERSIONS, ids="-".join)
def old(request, targets, started):
    """Starts a site with an old server."""
    name, version = request.param
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join([targets[f"{name}=={version}"], env["PYTHONPATH"]])
    return version, lambda **options: started(ThreadedSite, env=env, server=name, **options)


def test_the_guard_holds_on_an_old_version(old):
    version, start = old
    guarded = start(threads=2, max_queue=2, max_wait=1.5, ready="exact")
    assert guarded.tell("version") == version

    # checks, a kept connection, and what is pipelined
    assert check(guarded.port).text == "free"
    assert ask(guarded.port, "OPTIONS", "*").text == "free"
    assert ask(guarded.port, "HEAD", "/readyz").headers["content-length"] == "4"
    assert ask(guarded.port, "POST", "/length", body=b"b" * 200_000).text == "200000"
    with Line(guarded.port) as line:
        line.send(request(path="/big/2") + request("OPTIONS", "/") + request(path="/big/3"))
        assert [line.answer().text for _ in range(3)] == ["xx", "free", "xxx"]
        line.send(request(path="/echo"))
        assert line.answer().status == 200
    guarded.at_rest()

    # an age limit in the queue, while every thread is stuck
    stuck, stuck_threads = many(2, guarded.port, path="/hang")
    guarded.filled(2)
    aged, threads = many(2, guarded.port, path="/aged")
    guarded.filled(2, 2)
    assert check(guarded.port).status == 503

    # a length limit, before and behind a body
    refused = ask(guarded.port, path="/refused")
    assert (refused.status, refused.headers[REFUSALS]) == (503, "queue-full")
    refused = ask(guarded.port, "POST", "/refused", body=b"b" * 200_000)
    assert (refused.status, refused.headers[REFUSALS]) == (503, "queue-full")
    together(threads)
    assert {answer.headers[REFUSALS] for answer in aged} == {"queue-age"}

    # a client that leaves
    with Line(guarded.port) as line:
        line.send(request(path="/gone"))
        guarded.filled(2, 1)
    eventually(lambda: guarded.load["queued"] == 0, within=0.8)

    guarded.tell("release")
    together(stuck_threads)
    assert [answer.status for answer in stuck] == [200] * 2
    guarded.at_rest()
    eventually(lambda: check(guarded.port).text == "free")
    assert set(guarded.ran) == {"/length", "/big/2", "/big/3", "/echo", "/hang"}
    eventually(lambda: guarded.tell("stock")[:2] == [0, 0])

    # the drain
    guarded.tell("hold")
    answers, threads = many(2, guarded.port, path="/hang")
    guarded.filled(2)
    guarded.signal()
    eventually(lambda: check(guarded.port).text == "draining", within=0.8)
    assert ask(guarded.port, path="/new").headers[REFUSALS] == "draining"
    guarded.tell("release")
    together(threads)
    assert [answer.status for answer in answers] == [200] * 2
    assert guarded.ended(within=8) == 0
    # A queue that lasts for 2 s is in the log, and here it may.
    states = r"wsgi_busyguard: (busy for|free again)"
    assert [line for line in guarded.errors if not re.match(states, line)] == []


def test_an_old_server_without_the_guard_is_read_exactly(old):
    _, start = old
    stock = start(stock=True, threads=2)
    answers, threads = many(6, stock.port, path="/hang")
    eventually(lambda: stock.tell("stock") == [4, 2, 2])
    stock.tell("release")
    together(threads)
    assert [answer.status for answer in answers] == [200] * 6
    stock.at_rest()
