"""Is what CONTRIBUTING.rst says true?"""

from __future__ import annotations

import queue
import re
import shlex
import threading
from textwrap import dedent

import pytest
from contracts.reader import CAPACITY, DEADLINE, AdapterContract

from docs.test_docs import ROOT

PAGE = (ROOT / "CONTRIBUTING.rst").read_text()
READER = re.compile(r"^\.\. code-block:: python\n   :name: a reader\n\n((?:(?:   .*)?\n)+)", re.M)


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


class ReaderStage:
    def __init__(self):
        names: dict[str, object] = {}
        [code] = READER.findall(PAGE)
        exec(dedent(code), names)
        self.server = Server()
        self.adapter = names["PoolAdapter"](self.server)
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
        for _ in self.server.pool:
            self.server.queue.put(None)
        for thread in self.server.pool:
            thread.join(DEADLINE)


@pytest.fixture
def stage():
    stage = ReaderStage()
    yield stage
    stage.close()


class TestTheReaderOnThePage(AdapterContract):
    """It keeps the contract that it is said to keep."""


@pytest.mark.parametrize("path", sorted(set(re.findall(r"``([\w.]+/[\w./]*|\w+\.\w+)``", PAGE))))
def test_what_it_names_is_there(path):
    places = (ROOT, ROOT / "wsgi_busyguard")
    assert any((place / path).exists() for place in places)


@pytest.mark.parametrize("shown", re.findall(r"^   \$ (?:\S+ .* && )?pytest(.*)$", PAGE, re.M))
def test_what_it_has_pytest_run_is_there(shown, pytestconfig):
    words = shlex.split(shown, comments=True)
    for word in words:
        if "/" in word:
            assert (ROOT / word).exists()
    known = [line.partition(":")[0] for line in pytestconfig.getini("markers")]
    if "-m" in words:
        asked = re.findall(r"\w+", words[words.index("-m") + 1])
        assert set(asked) - {"and", "not"} <= set(known)
    if "--all" in words:
        assert pytestconfig.getoption("--all") in (True, False)
