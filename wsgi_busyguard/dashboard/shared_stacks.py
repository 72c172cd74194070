"""In which lines the requests of all workers are, for the process that they were forked from.

Each worker looks at its own threads, and only while somebody asks: at its beats, for some seconds
after the last look. It writes what it saw into memory that it shares with that process. Nobody
waits for anybody: a worker that does not get to run is missing, and the others are shown.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
import zlib
from typing import TYPE_CHECKING, Any, cast

from .stack_lines import nothing, together
from .stacks import LOOK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..board.board import Board
    from ..load_report import StackFigures
    from ..state_log import StackView

# So much of a worker's is kept: its lines with the most requests, as far as they fit.
ROW_BYTES = 8192

# So many characters of why a worker cannot be seen, each of which may take six bytes.
MOST_OF_WHY = 1000

# Seconds for which workers look after somebody has asked, and for which what they saw is shown.
WANTED_SECONDS = 3.0

SECOND = 10**9
HEAD = struct.Struct("<II")  # a checksum, for it may be read while it is written; the length


class SharedStacks:
    """Says in which lines the requests of the workers on a board are. From any thread.

    :param board: of the workers, which are forked from here; each writes at the number of its row.
    :param clock: monotonic seconds, the same for all processes of the host.
    """

    def __init__(self, board: Board, clock: Callable[[], float] = time.monotonic) -> None:
        self._board = board
        self._clock = clock
        self._memory = mmap.mmap(-1, (1 + board.slots) * ROW_BYTES)
        self._asked = memoryview(self._memory)[:8].cast("Q")
        self._since: float | None = None  # since when somebody asks without a longer pause
        self._seen = nothing("nobody has looked yet")
        self._at = -LOOK_SECONDS

    def post(self, stacks: StackView) -> None:
        """Write what this process sees, if somebody asks."""
        now = self._clock()
        if not 0 <= now - self._asked[0] / SECOND < WANTED_SECONDS:
            return
        pid = os.getpid()
        for row in self._board.rows():
            if row.pid == pid and row.slot < self._board.slots:
                self._write(row.slot, _fitting({**stacks.look()}, pid, now))

    def look(self) -> StackFigures:
        """Return what the workers saw within the last seconds, and have them look again."""
        now = self._clock()
        if now - self._at >= LOOK_SECONDS:
            if now - self._at >= WANTED_SECONDS:
                self._since = now
            self._at = now
            self._asked[0] = int(now * SECOND)
            rows = [row for row in self._board.rows() if row.state == "ready"]
            found = [self._read(row.slot, row.pid, now) for row in rows]
            self._seen = self._combined(found, now)
        return self._seen

    def _combined(self, found: list[StackFigures | None], now: float) -> StackFigures:
        seen = [one for one in found if one is not None]
        if not seen and found:
            new = self._since is None or now - self._since < WANTED_SECONDS
            return nothing(
                "the workers have been asked; look again in a second"
                if new
                else "no worker has answered; none of them gets to run"
            )
        return together(seen, len(seen) == len(found))

    def _write(self, slot: int, body: bytes) -> None:
        at = (1 + slot) * ROW_BYTES
        self._memory[at : at + HEAD.size + len(body)] = (
            HEAD.pack(zlib.crc32(body), len(body)) + body
        )

    def _read(self, slot: int, pid: int, now: float) -> StackFigures | None:
        at = (1 + slot) * ROW_BYTES
        checksum, length = HEAD.unpack_from(self._memory, at)
        body = self._memory[at + HEAD.size : at + min(HEAD.size + length, ROW_BYTES)]
        if not body or zlib.crc32(body) != checksum:
            return None
        owner, when, figures = json.loads(body)
        fresh = owner == pid and 0 <= now - when < WANTED_SECONDS
        return cast("StackFigures", figures) if fresh else None


def _fitting(figures: dict[str, Any], pid: int, now: float) -> bytes:
    figures["why"] = figures["why"] and figures["why"][:MOST_OF_WHY]
    body = json.dumps([pid, now, figures]).encode()
    while len(body) > ROW_BYTES - HEAD.size and figures["lines"]:
        figures["lines"] = figures["lines"][:-1]
        body = json.dumps([pid, now, figures]).encode()
    return body
