"""Keeps the processes of a server on a board, however they come to be and go.

Nothing here may stop a server: a process that finds no slot serves on without.
"""

from __future__ import annotations

import errno
import math
import os
from typing import TYPE_CHECKING

from .._support.forks import Stage, after_fork
from .._support.listening_sockets import listens
from .._support.log import logger
from ..counters import SECOND
from .board import Board
from .layout import CALLED, POST_SECONDS, READY, STARTING, STOPPING
from .publisher import Publisher
from .respawn import is_late

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..load import Adapter

# What no configuration is to blame for: it was well a moment ago, and will be again.
FOR_NOW = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR))


class Member(Publisher):
    """A publisher that is ready as soon as it has a slot, and looks after that slot at its beats.

    :param board: a board, or the path of one.
    """

    def __init__(
        self, board: Board | str | os.PathLike[str], adapter: Adapter, *, loop: bool = False
    ) -> None:
        super().__init__(board if isinstance(board, Board) else Board(board), adapter, loop=loop)

    def _renew(self) -> None:
        super()._renew()
        self._going = False

    def enter(self) -> None:
        """Have this process be counted, or say in the log why it is not."""
        if self._pid != os.getpid():
            self._renew()
        self._wanted = STOPPING if self._going else READY
        if self.board.now() >= self._due:  # each request may come here while there is no thread
            self.seek()
        self._turn()

    def go(self) -> None:
        """Have this process not be counted any more: it is shutting down."""
        self._going = True
        self.stopping()


class Forking(Member):
    """A member in a process that has imported an app, and may serve it, or fork those who do.

    :param forgotten: called in a child of a process that has been called, so that the first call
        there comes to :meth:`call` again.

    *Who serves?* Whoever imports the app makes the guard: a server, but also a shell, a queue
    worker, a test run, and the parent that only reloads. So a process is counted when it is called,
    or before that, when it listens; else no request would ever come where a balancer asks the board
    first.

    *Whose child?* Where the app is made before the fork (preload, uWSGI) the process that made it
    listens and serves nothing, and its children do; where it is made after it, the children are
    nobody's servers (an app that uses multiprocessing). What tells the two apart is whether the
    parent has been called before the fork. So a child of one that has not been called looks whether
    it listens, and has its parent not be counted; likewise any process whose parent is on the
    board, as that of a reloader is. A child of one that has been called joins when it is called
    itself.
    """

    def __init__(
        self,
        board: Board | str | os.PathLike[str],
        adapter: Adapter,
        forgotten: Callable[[], object],
    ) -> None:
        self._look_from: float = 0  # when to look whether it listens
        self._called = False
        self._ancestors: set[int] = set()
        self._forgotten = forgotten
        self._is_draining: Callable[[], bool] = bool
        super().__init__(opened(board), adapter)
        after_fork(Stage.THREADS, self._after_fork_beat)

    def begin(self, is_draining: Callable[[], bool]) -> None:
        """Have this process be counted as soon as it serves, and beat then.

        :param is_draining: whether it is shutting down.
        """
        self._is_draining = is_draining
        self.start()

    def call(self) -> bool:
        """Note that this process serves, at its first request; return whether at the next, too.

        As long as no thread is to be had. Whoever calls keeps one note of it, however many requests
        come at once: if each made a note of its own, there would soon be thousands.
        """
        self.enter()
        self._called = True
        self._flags |= CALLED
        self._turn()
        self._beats.start()
        return not self._beats.running

    def enter(self) -> None:
        """Have this process be counted, and in its place not those that it was forked from."""
        super().enter()
        ancestors, self._ancestors = self._ancestors, set()
        for pid in ancestors | {os.getppid()}:
            self._take_the_place_of(pid)

    def leave(self) -> None:
        """Give the slot back, and look for no other one before it is called."""
        self._look_from = math.inf
        super().leave()

    def _take_the_place_of(self, pid: int) -> None:
        """Have a process not be counted that has not been called.

        One that is called between the look and the store finds out at its next beat.
        """
        self.board.table.turn(pid, READY, STARTING, unless=CALLED)

    def beat(self) -> None:
        """Post, and be counted if it is not and should be."""
        if self._is_draining():
            self.go()
        elif self._called and self._state() == STARTING:
            self.ready()
        elif not self._wanted and self.board.now() >= self._look_from and listens():
            self.enter()
        if self._wanted:
            super().beat()
            self._take_the_place_of(os.getppid())

    def _renew(self) -> None:
        """Begin without a slot, as a child does; remember whose child it is."""
        self._ancestors |= {self.__dict__.get("_pid", 0)} - {0, os.getpid()}
        self._flags &= ~CALLED
        self._look_from = 0
        super()._renew()

    def _after_fork(self) -> None:
        """Go on in a child. One that executes another program soon never gets to join."""
        super()._after_fork()
        if self._called:
            self._called = False
            self._ancestors = set()
            self._forgotten()
        else:
            self._look_from = self.board.now() + int(POST_SECONDS * SECOND)

    def _after_fork_beat(self) -> None:
        if self._look_from:
            self.start()


def opened(board: Board | str | os.PathLike[str]) -> Board:
    """Return the board, or one in its place until it can be opened, if its users may not fail now.

    They may as long as somebody configures them, and not any more in a process that a server makes
    in the place of another.

    :raises ValueError, OSError: if it cannot be opened, in all other processes.
    """
    if isinstance(board, Board):
        return board
    try:
        return Board(board)
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None) not in FOR_NOW and not is_late():
            raise
        logger.error("cannot open a board: %s; this process serves on, and tries again", error)
        return Board.later(board)
