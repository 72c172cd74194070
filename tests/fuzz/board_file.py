"""A board with anything in it: either it is no board, or everybody who looks gets an answer.

The first bit chooses. Without it the input is the file. With it the input is words on a board on
which this process posts: each two bytes that say where, and eight that are the word. The next two
bits choose what the check port is asked for.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from wsgi_busyguard import Board, Load, Monitor
from wsgi_busyguard._support.wsgi_call import called, least_environ
from wsgi_busyguard.board.layout import COLUMNS
from wsgi_busyguard.board.memory import HEADER_WORDS, OTHERS
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.board.watcher import Watcher
from wsgi_busyguard.checkport.ports import CheckApp
from wsgi_busyguard.policy import READY_POLICIES, Verdict

NOW = 1000.0
FOLDER = Path(tempfile.mkdtemp())
PATHS = ["/readyz", "/load", "/metrics", "/"]  # what costs little is asked for as often
PLACES = [*range(OTHERS, HEADER_WORDS), *range(HEADER_WORDS, HEADER_WORDS + 4 * COLUMNS)]


class Idle:
    def read(self) -> Load:
        return Load(0, 0, 4)


class Host:
    """A board, a process that posts there, and those who only look."""

    def __init__(self, path: Path) -> None:
        self.board = Board(path, 4, clock=lambda: NOW)
        self.watcher, self.monitor = Watcher(self.board), Monitor(self.board)
        self.app = CheckApp(self.watcher)

    def look(self, path: str) -> None:
        for policy in READY_POLICIES:
            for judge in (self.watcher.check, self.monitor.check):
                assert isinstance(judge(policy), Verdict)
        for figure in (self.board.leader, self.board.awake, self.board.left, self.watcher.alive):
            figure()
        self.app.page.look(NOW)
        environ = least_environ("GET", path, "", {"HTTP_ACCEPT": "text/html"})
        status, _, body = called(self.app, environ)
        assert status[:3] in ("200", "503")
        assert b"".join(body)


HOST = Host(FOLDER / "known")
PUBLISHER = Publisher(HOST.board, Idle())
PUBLISHER.join()
PUBLISHER.ready()
PUBLISHER.beat()
AT_FIRST = bytes(HOST.board.table.words)


def target(data: bytes) -> None:
    if not data or data[0] & 1 == 0:
        file = FOLDER / "file"
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        with suppress(ValueError):
            Host(file).look("/")
        return
    words = HOST.board.table.words
    words[:] = memoryview(AT_FIRST).cast("Q")
    for at in range(1, len(data) - 9, 10):
        place = int.from_bytes(data[at : at + 2], "little") % len(PLACES)
        words[PLACES[place]] = int.from_bytes(data[at + 2 : at + 10], "little")
    HOST.look(PATHS[data[0] >> 1 & 3])
    PUBLISHER.beat()
    PUBLISHER.counts()
