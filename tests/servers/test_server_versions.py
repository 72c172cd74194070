"""The guard with old versions of Twisted, waitress and cheroot, beside the ones that are tested."""

from __future__ import annotations

import os
import re
import sys

import pytest
from support.client import Line, ask, check, eventually, is_check, many, request, together
from support.http2 import Streams
from support.processes import Site, ThreadedSite, environment
from support.versions import folders

THREADED = [
    ("waitress", "2.1.2"),
    ("waitress", "3.0.0"),
    ("cheroot", "9.0.0"),
    ("cheroot", "10.0.1"),
]
TWISTED = [("Twisted", "24.7.0")]
if sys.version_info < (3, 13):  # from there on the standard library has no cgi, which these import
    TWISTED += [("Twisted", "22.10.0"), ("Twisted", "21.7.0")]

# They mix up the answers to requests that come together, also without the guard (CVE-2024-41671).
DISORDERED = ("22.10.0", "21.7.0")

REFUSALS = "busyguard-refused"


@pytest.fixture(scope="session")
def targets(tmp_path_factory):
    return folders(tmp_path_factory, map("==".join, THREADED + TWISTED))


@pytest.fixture
def old(request, targets, started):
    """Starts a site with an old server."""
    name, version = request.param
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join([targets[f"{name}=={version}"], env["PYTHONPATH"]])
    if name == "Twisted":
        return version, lambda **options: started(Site, env=env, **options)
    return version, lambda **options: started(ThreadedSite, env=env, server=name, **options)


def versions(*some):
    return pytest.mark.parametrize("old", some, ids="-".join, indirect=True)


@versions(*THREADED, *TWISTED)
def test_the_guard_holds_on_an_old_version(old):
    version, start = old
    guarded = start(threads=2, max_queue=2, max_wait=1.5, ready="exact")
    assert guarded.tell("version") == version

    # checks, a kept connection, and what is pipelined
    assert is_check(check(guarded.port))
    assert is_check(ask(guarded.port, "OPTIONS", "*"))
    assert ask(guarded.port, "HEAD", "/readyz").headers["content-length"] == "4"
    assert ask(guarded.port, "POST", "/length", body=b"b" * 200_000).text == "200000"
    with Line(guarded.port) as line:
        asked = [request(path="/big/2"), request("OPTIONS", "/"), request(path="/big/3")]
        parts = [[one] for one in asked] if version in DISORDERED else [asked]
        answers = []
        for part in parts:
            line.send(b"".join(part))
            answers += [line.answer() for _ in part]
        first, a_check, last = answers
        assert (first.text, last.text) == ("xx", "xxx")
        assert is_check(a_check)
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
    if isinstance(guarded, ThreadedSite):
        eventually(lambda: guarded.tell("stock")[:2] == [0, 0])

    # the drain
    guarded.tell("hold")
    answers, threads = many(2, guarded.port, path="/hang")
    guarded.filled(2)
    guarded.signal()
    eventually(lambda: check(guarded.port).text == "draining")
    assert ask(guarded.port, path="/new").headers[REFUSALS] == "draining"
    guarded.tell("release")
    together(threads)
    assert [answer.status for answer in answers] == [200] * 2
    assert guarded.ended() == 0
    # A queue that lasts for 2 s is in the log, and here it may.
    states = r"wsgi_busyguard: (busy for|free again)"
    assert [line for line in guarded.errors if not re.match(states, line)] == []


@versions(*THREADED)
def test_an_old_server_without_the_guard_is_read_exactly(old):
    _, start = old
    stock = start(stock=True, threads=2)
    answers, threads = many(6, stock.port, path="/hang")
    eventually(lambda: stock.tell("stock") == [4, 2, 2])
    stock.tell("release")
    together(threads)
    assert [answer.status for answer in answers] == [200] * 6
    stock.at_rest()


@versions(*TWISTED)
def test_http_2_on_an_old(old):
    version, start = old
    guarded = start(threads=1, max_queue=1, max_wait=30.0, http2=True)
    with Streams(guarded.port) as line, Streams(guarded.port) as other:
        assert line.answer(line.ask("POST", "/length", body=b"b" * 50_000)).text == "50000"
        assert is_check(line.answer(line.ask(path="/readyz")))
        inside = line.ask(path="/hang")
        guarded.filled(1)
        other.ask(path="/gone")
        guarded.filled(1, 1)
        assert line.answer(line.ask(path="/new")).headers[REFUSALS] == "queue-full"
        other.close()
        guarded.filled(1)
        guarded.signal()
        eventually(lambda: line.answer(line.ask(path="/readyz")).text == "draining")
        refused = line.answer(line.ask(path="/new"))
        assert refused.headers[REFUSALS] == "draining"
        assert set(guarded.ran) == {"/length", "/hang"}
        guarded.tell("release")
        assert line.answer(inside).text == "done"
        assert line.bye(within=5) > inside
    assert guarded.ended() == 0
    assert "Traceback" not in guarded.output, version
