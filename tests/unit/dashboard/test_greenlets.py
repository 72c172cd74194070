"""In which lines greenlets are: each looked at by whoever runs in their own thread."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from wsgi_busyguard.dashboard.greenlets import Walking

pytest.importorskip("gevent")

# Each starts a process that imports gevent and patches everything.
pytestmark = pytest.mark.slow

BEGIN = """
from gevent import monkey
monkey.patch_all()
import gevent, threading, time
from gevent.event import Event
from wsgi_busyguard.dashboard import greenlets
from wsgi_busyguard.dashboard.stacks import Stacks
stacks, go_on = Stacks(), Event()
def outside():
    go_on.wait(20)
def app(environ, start_response):
    outside()
    return []
noted = stacks.noting(app)
def elsewhere(work):
    return gevent.get_hub().threadpool.apply(work)
"""


def run(code):
    """Run this in a process of its own, where everything is patched."""
    code = BEGIN + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_those_that_have_a_request_are_seen_by_whoever_runs_in_their_thread():
    run("""
        jobs = [gevent.spawn(noted, {}, None) for _ in range(3)]
        others = [gevent.spawn(outside) for _ in range(2)]
        gevent.sleep(0)
        seen = stacks.look()
        assert (seen["threads"], seen["complete"], seen["why"]) == (3, True, None), seen
        (line,) = seen["lines"]
        assert line["threads"] == 3, seen
        assert line["at"].endswith("<string>:10 in outside"), seen
        assert 0 <= line["oldest"] < 20, seen
        go_on.set()
        gevent.joinall(jobs + others)
        assert stacks._looked(0.0)["threads"] == 0
    """)


def test_another_thread_looks_at_none_and_has_their_hub_do_it():
    run("""
        jobs = [gevent.spawn(noted, {}, None) for _ in range(3)]
        gevent.sleep(0)
        look, looked = stacks._greenlets._look_here, []
        stacks._greenlets._look_here = lambda: looked.append(gevent.getcurrent()) or look()
        with gevent.Timeout(20):
            while elsewhere(lambda: stacks._looked(time.monotonic()))["threads"] < 3:
                gevent.sleep(0.01)
        assert set(looked) == {gevent.get_hub()}
    """)


def test_the_greenlet_that_keeps_the_hub_is_seen_from_another_thread():
    run("""
        over = []
        def computes(environ, start_response):
            while not over:
                sum(range(100))
            return []
        def looks():
            deadline = native() + 20
            while native() < deadline:
                seen = stacks._looked(native())
                if seen["threads"]:
                    break
                sleep(0.1)
            over.append(seen)
        native, sleep = time.monotonic, monkey.get_original("time", "sleep")
        monkey.get_original("_thread", "start_new_thread")(looks, ())
        gevent.spawn(stacks.noting(computes), {}, None).join()
        (line,) = over[0]["lines"]
        assert line["at"].endswith("in computes"), over
    """)


def test_so_many_are_looked_at_and_so_deep():
    run("""
        greenlets.MOST_GREENLETS = 2
        def deep(left):
            return deep(left - 1) if left else go_on.wait(20)
        noted = stacks.noting(lambda environ, start_response: deep(150))
        jobs = [gevent.spawn(noted, {}, None) for _ in range(3)]
        gevent.sleep(0)
        seen = stacks.look()
        assert (seen["threads"], seen["complete"]) == (2, False), seen
    """)


def test_it_is_known_of_no_greenlet_that_is_gone():
    run("""
        go_on.set()
        gevent.joinall([gevent.spawn(noted, {}, None) for _ in range(10)])
        import gc
        with gevent.Timeout(20):
            while len(stacks._greenlets._began):
                gevent.sleep(0.01)
                gc.collect()
    """)


def test_no_finalizer_comes_while_stacks_are_walked():
    """One that lets others run ended the process: a frame ended that Python was just looking at."""
    run("""
        import gc
        walking, came = [], []
        class Litter:
            def __init__(self):
                self.me = self
            def __del__(self):
                came.append(bool(walking))
        stack = greenlets._stack
        def walked(one):
            walking.append(one)
            try:
                Litter()
                return stack(one)
            finally:
                walking.clear()
        greenlets._stack = walked
        jobs = [gevent.spawn(noted, {}, None) for _ in range(3)]
        gevent.sleep(0)
        gc.set_threshold(1)
        assert stacks._looked(0.0)["threads"] == 3
        gc.set_threshold(700)
        gc.collect()
        assert came == [False] * 3, came
        assert gc.isenabled()
        gc.disable()
        stacks._looked(0.0)
        assert not gc.isenabled()
        go_on.set()
        gevent.joinall(jobs)
    """)


@pytest.mark.slow
def test_a_process_outlives_looks_while_finalizers_let_others_run():
    """From their own thread, from another one, in children, and while one keeps the hub."""
    benchmark = Path(__file__).parents[3] / "benchmarks" / "stacks.py"
    command = [sys.executable, str(benchmark), "50", "--greenlets"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("50 looks and 1 forks survived"), done.stdout


def test_collection_is_on_again_in_a_child_that_is_forked_during_a_walk():
    walking = Walking()

    def walk():
        assert not gc.isenabled()
        pid = os.fork()
        if not pid:
            os._exit(0 if gc.isenabled() else 1)
        return os.waitpid(pid, 0)[1]

    assert walking.without_collection(walk) == 0
    assert gc.isenabled()
