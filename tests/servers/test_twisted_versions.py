"""The guarded site with old versions of Twisted, each installed beside the one that is tested."""

from __future__ import annotations

import os
import sys

import pytest
from support.client import Line, ask, check, eventually, many, request, together
from support.http2 import Streams
from support.processes import Site, environment
from support.versions import folders

VERSIONS = ["24.7.0"]
if sys.version_info < (3, 13):  # from there on the standard library has no cgi, which these import
    VERSIONS += ["22.10.0", "21.7.0"]

REFUSALS = "busyguard-refused"


@pytest.fixture(scope="session")
def targets(tmp_path_factory):
    return folders(tmp_path_factory, [f"Twisted=={version}" for version in VERSIONS])


@pytest.fixture(params=VERSIONS)
def old(request, targets, started):
    """Starts a site with an old Twisted."""
    version = request.param
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join([targets[f"Twisted=={version}"], env["PYTHONPATH"]])
    return version, lambda **options: started(Site, env=env, **options)


def test_the_guard_holds_on_an_old_twisted(old):
    version, start = old
    guarded = start(threads=2, max_queue=2, max_wait=1.5, ready="exact")
    assert guarded.tell("version") == version

    # checks
    assert check(guarded.port).text == "free"
    assert ask(guarded.port, "OPTIONS", "*").text == "free"
    assert ask(guarded.port, "HEAD", "/readyz").headers["content-length"] == "4"
    assert ask(guarded.port, path="/echo").status == 200
    assert ask(guarded.port, "POST", "/length", body=b"b" * 200_000).text == "200000"

    # an age limit in the queue, while every thread is stuck
    stuck, stuck_threads = many(2, guarded.port, path="/hang")
    guarded.filled(2)
    aged, threads = many(2, guarded.port, path="/aged")
    guarded.filled(2, 2)
    assert check(guarded.port).status == 503

    # a length limit
    refused = ask(guarded.port, path="/refused")
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
    assert set(guarded.ran) == {"/echo", "/length", "/hang"}

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
    assert guarded.ended(within=5) == 0


def test_http_2_on_an_old_twisted(old):
    version, start = old
    guarded = start(threads=1, max_queue=1, max_wait=30.0, http2=True)
    with Streams(guarded.port) as line, Streams(guarded.port) as other:
        assert line.answer(line.ask("POST", "/length", body=b"b" * 50_000)).text == "50000"
        assert line.answer(line.ask(path="/readyz")).text == "free"
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
    assert guarded.ended(within=5) == 0
    assert "Traceback" not in guarded.said, version
