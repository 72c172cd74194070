"""Is what CONTRIBUTING.rst says true?"""

from __future__ import annotations

import queue
import re
import shlex
import socket
import threading
from textwrap import dedent

import pytest
from contracts.reader import CAPACITY, DEADLINE, AdapterContract

from docs.test_docs import ROOT

PAGE = (ROOT / "CONTRIBUTING.rst").read_text()
SHOWN = r"^\.\. code-block:: python\n   :name: %s\n\n((?:(?:   .*)?\n)+)"


def shown(name):
    """Return what the code of this name on the page defines."""
    names: dict[str, object] = {}
    [code] = re.findall(SHOWN % name, PAGE, re.M)
    exec(dedent(code), names)
    return names


class Server:
    """A queue, a set of busy threads and a number of threads: what the reader on the page reads."""

    def __init__(self):
        self.queue = queue.SimpleQueue()
        self.busy = set()
        self.threads = CAPACITY
        self.pool = [threading.Thread(target=self.work, daemon=True) for _ in range(CAPACITY)]
        for thread in self.pool:
            thread.start()

    def work(self):
        while (job := self.queue.get()) is not None:
            self.busy.add(threading.current_thread())
            job()
            self.busy.discard(threading.current_thread())

    def close(self):
        for _ in self.pool:
            self.queue.put(None)
        for thread in self.pool:
            thread.join(DEADLINE)


class ReaderStage:
    def __init__(self):
        self.server = Server()
        self.adapter = shown("a reader")["PoolAdapter"](self.server)
        self._leave = queue.SimpleQueue()
        self._sent = 0

    def submit(self):
        self._sent += 1
        self.server.queue.put(lambda: self._leave.get(timeout=DEADLINE))

    def finish(self):
        self._leave.put(None)

    def close(self):
        for _ in range(self._sent):
            self.finish()
        self.server.close()


@pytest.fixture
def stage():
    stage = ReaderStage()
    yield stage
    stage.close()


class TestTheReaderOnThePage(AdapterContract):
    """It keeps the contract that it is said to keep."""


class PageJob:
    """A request of the server's, for a page that is held until ``go_on`` is set."""

    method, query = "GET", ""

    def __init__(self, go_on, path="/page"):
        self.path, self.environ = path, {}
        self.socket, self.peer = socket.socketpair()
        self.output, self._go_on = [], go_on

    def answer(self):
        self._go_on.wait(DEADLINE)
        self.output.append("the page")

    def say(self, app):
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": self.path}
        self.output += app(environ, lambda status, headers: self.output.append(status[:3]))


def test_the_front_on_the_page_answers_checks_bounds_the_queue_and_drops_who_has_left(until):
    server, go_on = Server(), threading.Event()
    front = shown("a front")["PoolFront"](server, max_queue=2, max_wait=DEADLINE)
    jobs = [PageJob(go_on) for _ in range(CAPACITY + 3)]
    front.start()
    for job in jobs:
        front.meet(job)
    assert front.monitor.adapter.read()[:2] == (2, CAPACITY)
    assert [job.output for job in jobs if job.output] == [["503", b"busy"]]
    check = PageJob(go_on, "/readyz")
    front.meet(check)
    assert check.output == ["200", b"busy"]
    jobs[CAPACITY].peer.close()
    until(lambda: front.monitor.adapter.read().queued == 1)
    go_on.set()
    until(lambda: front.gate.empty)
    assert [job.output for job in jobs].count(["the page"]) == CAPACITY + 1
    front.stop()
    server.close()
    for job in [*jobs, check]:
        job.socket.close()
        job.peer.close()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"``([\w.]+/[\w./]*|\w+\.\w+)``", PAGE))))
def test_what_it_names_is_there(path):
    places = (ROOT, ROOT / "wsgi_busyguard")
    assert any((place / path).exists() for place in places)


@pytest.mark.parametrize("command", re.findall(r"^   \$ (?:\S+ .* && )?pytest(.*)$", PAGE, re.M))
def test_what_it_has_pytest_run_is_there(command, pytestconfig):
    words = shlex.split(command, comments=True)
    for word in words:
        if "/" in word:
            assert (ROOT / word).exists()
    known = [line.partition(":")[0] for line in pytestconfig.getini("markers")]
    if "-m" in words:
        asked = re.findall(r"\w+", words[words.index("-m") + 1])
        assert set(asked) - {"and", "not"} <= set(known)
    if "--all" in words:
        assert pytestconfig.getoption("--all") in (True, False)


@pytest.mark.parametrize(
    "file",
    ["servers/test_twisted.py", "servers/test_gunicorn_threads.py", "balancers/test_haproxy.py"],
)
def test_one_test_each_of_the_real_ones_is_not_slow(file):
    assert (ROOT / "tests" / file).read_text().count("@pytest.mark.smoke") == 1
