"""A real Apache with mod_wsgi: what is read there is what was sent.

With the mod_wsgi that the distribution has, and with the newest one.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
from balancers.test_agent import Agent
from support import client
from support.apaches import Apache, newest_mod_wsgi
from support.client import ask, check, eventually, many, of_forty_24_are_served, together
from support.fixtures import Held

from servers.test_refused_uploads import upload
from wsgi_busyguard import Board
from wsgi_busyguard.board.watcher import Watcher

pytestmark = pytest.mark.timeout(300)  # the first of them compiles a mod_wsgi

SHAPES = {"1 x 4": (1, 4), "2 x 2": (2, 2), "4 x 1": (4, 1)}


@pytest.fixture(params=["distribution", "newest"])
def newest(request, tmp_path_factory):
    """The folder of the newest mod_wsgi; ``None`` for that of the distribution."""
    return newest_mod_wsgi(tmp_path_factory) if request.param == "newest" else None


@pytest.fixture
def apache(started, newest):
    """Starts an Apache with these processes, threads and options."""
    return lambda *arguments, **site: started(Apache, *arguments, newest=newest, **site)


@pytest.fixture
def held():
    """The same in a folder into which nobody, as whom Apache runs, may look."""
    with tempfile.TemporaryDirectory(prefix="busyguard-") as folder:
        Path(folder).chmod(0o755)
        yield Held(Path(folder) / "go")


@pytest.fixture
def agent(started):
    """Starts ``busyguard agent`` for the board of an Apache."""
    return lambda server: started(Agent, server.board, "--ready=exact")


def shows(agent, *, queued, active, capacity=4):
    """Whether the figures are these."""
    return client.shows(agent.load, queued=queued, active=active, capacity=capacity)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_the_board_says_is_what_was_sent(apache, agent, shape):
    server = apache(*shape)
    agent = agent(server)
    eventually(lambda: shows(agent, queued=0, active=0))
    eventually(lambda: server.ready == (200, "free"))
    _, threads = many(40, server.port, path="/sleep/60")
    eventually(lambda: shows(agent, queued=36, active=4))
    assert agent.ready == (503, "busy")
    assert server.ready == (503, "busy")
    _, another = many(1, server.port, path="/sleep/60")
    eventually(lambda: shows(agent, queued=37, active=4))
    server.reap()
    together([*threads, *another])


def test_all_are_served_know_their_time_in_the_queue_and_the_figures_return_to_zero(
    apache, agent, held
):
    server = apache(2, 2)
    agent = agent(server)
    eventually(lambda: shows(agent, queued=0, active=0))
    began = time.monotonic()
    answers, threads = many(12, server.port, path=held.path)
    eventually(lambda: shows(agent, queued=8, active=4))
    full = time.monotonic()
    eventually(lambda: time.monotonic() > full + 0.5)
    let_go = time.monotonic()
    held.let_go()
    together(threads)
    ended = time.monotonic()
    assert [answer.status for answer in answers] == [200] * 12
    waited = sorted(float(answer.text) for answer in answers)
    assert waited[3] <= full - began
    assert let_go - full <= waited[4] <= waited[-1] <= ended - began
    eventually(lambda: shows(agent, queued=0, active=0))
    eventually(lambda: server.ready == (200, "free"))


@pytest.mark.parametrize("shape", [(1, 4), (2, 2)], ids=["1 x 4", "2 x 2"])
def test_what_a_process_reads_by_itself_is_what_was_sent(apache, shape):
    server = apache(*shape, board=None, side=True)
    _, threads = many(40, server.port, path="/sleep/60")
    eventually(lambda: shows(server, queued=36, active=4))
    _, another = many(1, server.port, path="/sleep/60")
    eventually(lambda: shows(server, queued=37, active=4))
    server.reap()
    together([*threads, *another])


def test_the_guard_finds_by_itself_in_which_mod_wsgi_it_is_and_reads_it(apache, newest, held):
    server = apache(1, 4, board=None, found=True)
    software = ask(server.port, path="/sleep/0").headers["server"]
    release = re.search(r"mod_wsgi/(\d+)", software)[1]
    assert int(release) == 6 if newest else int(release) < 6
    _, threads = many(10, server.port, path=held.path)
    eventually(lambda: shows(server, queued=6, active=4))
    assert server.load["reads"].startswith("<ModWsgiAdapter of 4 at <Listeners at ['/tmp/")
    held.let_go()
    together(threads)
    eventually(lambda: shows(server, queued=0, active=0))
    assert "is not known" not in server.output


def test_an_embedded_app_has_no_queue_of_its_own(apache):
    server = apache(1, 1, group="%{GLOBAL}", board=None, side=True)
    assert ask(server.port, path="/sleep/0").text == "None"
    server.check = int(server.logged(r"side at (\d+)"))
    eventually(lambda: server.load["active"] == 0)  # it is answered a moment before it has left
    load = server.load
    assert (load["queued"], load["active"], load["capacity"]) == (0, 0, None)
    assert "embedded; no queue, no capacity" in server.output


@pytest.mark.slow
def test_as_a_gate_it_serves_24_and_refuses_16_and_checks_get_through(apache, agent, held):
    """Without a gate the check waits for all of them."""
    server = apache(1, 26, slots=4, max_queue=20, max_wait=30, client_timeout=60)
    agent = agent(server)
    eventually(lambda: shows(agent, queued=0, active=0))
    is_full = partial(shows, agent, queued=20, active=4)
    of_forty_24_are_served(server.port, held, is_full, [server.port], "busy")
    eventually(lambda: shows(agent, queued=0, active=0))
    eventually(lambda: check(server.port).text == "free")


def test_the_refusal_of_an_upload_is_read(apache, agent):
    """Apache reads what is left of it, and passes on what the daemon has answered."""
    server = apache(1, 6, slots=1, max_queue=0)
    agent = agent(server)
    many(1, server.port, path="/sleep/60", timeout=60)
    eventually(lambda: shows(agent, queued=0, active=1, capacity=1))
    for size in (1_000, 60_000, 400_000):
        for close in (True, False):
            assert [upload(server.port, size, close=close) for _ in range(4)] == [503] * 4, size


@pytest.mark.parametrize("which", [min, max], ids=["who speaks", "another"])
def test_a_process_that_is_killed_is_out_of_the_sum(apache, agent, which):
    """Its successor takes one of those who wait."""
    server = apache(4, 1)
    agent = agent(server)
    eventually(lambda: shows(agent, queued=0, active=0))
    _, threads = many(7, server.port, path="/sleep/60", timeout=60)
    eventually(lambda: shows(agent, queued=3, active=4))
    killed = which(row["pid"] for row in agent.load["processes"])
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: killed not in [row["pid"] for row in agent.load["processes"]], every=0.005)
    eventually(lambda: shows(agent, queued=2, active=4), every=0.005)
    server.reap()
    together(threads)


def test_a_graceful_stop_serves_who_is_inside_and_says_that_it_drains(apache, agent, held):
    server = apache(2, 2)
    agent = agent(server)
    eventually(lambda: shows(agent, queued=0, active=0))
    answers, threads = many(2, server.port, path=held.path)
    eventually(lambda: shows(agent, queued=0, active=2))
    server.signal(signal.SIGWINCH)
    held.let_go()  # Apache tells the processes of it when the last one is served, not before
    seen, watcher = set(), Watcher(Board(server.board))
    while server.popen.poll() is None:
        seen.add(watcher.check()[:2])
        time.sleep(0.001)
    together(threads)
    assert ("draining", False) in seen
    assert [answer.status for answer in answers] == [200, 200]
    eventually(lambda: not Board(server.board).rows())
    eventually(lambda: agent.ready == (503, "absent"))
