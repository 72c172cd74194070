"""What is set right in a child process: all of it, in order, whatever goes wrong."""

from __future__ import annotations

import gc
import os
import threading

import pytest

from wsgi_busyguard import Gate, Load, Monitor
from wsgi_busyguard._support import forks
from wsgi_busyguard._support.forks import Stage, after_fork

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    # To fork while threads run is what these are about.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(forks, "_resets", [{} for _ in Stage])


def in_a_child(work):
    """Return the text that ``work`` returns in a child process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, str(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


class Polled:
    def read(self):
        return Load(0, 0, 4)


def test_the_stages_come_in_their_order_whatever_the_order_of_the_imports():
    happened = []
    for stage in reversed(Stage):
        after_fork(stage, lambda stage=stage: happened.append(stage.name))
    after_fork(Stage.OWN, lambda: happened.append("and another"))
    assert in_a_child(lambda: happened) == "['OWN', 'and another', 'SERVER', 'THREADS']"
    assert happened == []


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, SystemExit, KeyboardInterrupt])
def test_one_that_raises_keeps_no_other_from_being_set_right(error, caplog):
    happened = []

    def fails():
        raise error("not now")

    after_fork(Stage.OWN, fails)
    after_fork(Stage.OWN, lambda: happened.append("the next"))
    after_fork(Stage.THREADS, lambda: happened.append("the last"))

    def said():
        return happened, [record.levelname for record in caplog.records]

    assert in_a_child(said) == "(['the next', 'the last'], ['ERROR'])"


def test_a_monitor_that_gets_no_thread_in_the_child_leaves_the_others_whole(monkeypatch):
    monitors = [Monitor(Polled(), on_busy=print) for _ in range(3)]
    gate = Gate(2)
    gate.enter()
    held, forked = threading.Event(), threading.Event()

    def hold():
        with monitors[1]._lock, monitors[2]._lock:
            held.set()
            forked.wait()

    holding = threading.Thread(target=hold)
    holding.start()
    held.wait()

    def fails(*_, **__):
        raise OSError("no thread, and not for the reason that is known")

    def work():
        states = [monitor.state.value for monitor in monitors]
        return *states, gate.read().active

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        # In a pipe, not here: a lock that is held still would hang this process, too.
        said = in_a_child(work)
    forked.set()
    holding.join()
    assert said == "('free', 'free', 'free', 0)"


def test_what_is_gone_is_not_set_right():
    class Thing:
        def reset(self):
            happened.append("reset")

    happened = []
    thing = Thing()
    after_fork(Stage.OWN, thing.reset)
    assert in_a_child(lambda: happened) == "['reset']"
    del thing
    gc.collect()
    assert in_a_child(lambda: happened) == "[]"
    assert not forks._resets[Stage.OWN]


def test_a_child_of_a_child_is_set_right_too():
    happened = []
    after_fork(Stage.OWN, lambda: happened.append("reset"))
    assert in_a_child(lambda: in_a_child(lambda: happened)) == "['reset', 'reset']"
