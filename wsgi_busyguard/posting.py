"""Keeps the processes of a server on a board, however they come to be and go.

Nothing here may stop a server: a process that finds no slot serves on without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .board import Board
from .poster import Poster
from .words import BEAT_EVERY, CALLED, READY, SECOND, STARTING, STOPPING

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from .load import Adapter

# Nanoseconds after which a process that found no slot tries again.
AGAIN = 10 * SECOND


class Member(Poster):
    """A poster that is ready as soon as it has a slot, and looks after that slot at its beats.

    :param board: a board, or the path of one.
    """

    def __init__(
        self, board: Board | str | os.PathLike[str], adapter: Adapter, *, loop: bool = False
    ) -> None:
        super().__init__(board if isinstance(board, Board) else Board(board), adapter, loop=loop)

    def _renew(self) -> None:
        super()._renew()
        self._due: int | None = None  # when to look for a slot, if there is none
        self._going = False

    def enter(self) -> None:
        """Have this process be counted, or say in the log why it is not."""
        error: Exception | None = None
        try:
            self.join()
        except Exception as raised:  # no slot, mostly
            error = raised
        self._due = 0 if error is None else self.board.now() + AGAIN
        self._note("join", error, "this process is not on %r, and serves on", self.board)
        self._turn(self._wanted)

    @property
    def _wanted(self) -> int:
        return STOPPING if self._going else READY

    def go(self) -> None:
        """Have this process not be counted any more: it is shutting down."""
        self._going = True
        self.stopping()

    def leave(self) -> None:
        """Give the slot back, and look for no other one."""
        self._due = None
        super().leave()

    def beat(self) -> None:
        """Post, and look for a slot if there is none and one is due."""
        if self._due is not None and not self.joined and self.board.now() >= self._due:
            self.enter()
        super().beat()


class Forking(Member):
    """A member of a server that may fork after the app is made, in a way that nobody knows here.

    :param forgotten: called in a child of a process that has been called, so that the first call
        there is told to :meth:`call` again.

    Where the app is made before the fork (preload, uWSGI) the process that made it serves nothing
    and its children do; where it is made after it, the children are nobody's servers (an app that
    uses multiprocessing). What tells the two apart is whether the parent has been called before
    the fork. So a child of one that has not been called joins by itself and has its parent not be
    counted, and a child of one that has joins when it is called itself.
    """

    def __init__(
        self,
        board: Board | str | os.PathLike[str],
        adapter: Adapter,
        forgotten: Callable[[], object],
    ) -> None:
        self._called = False
        self._parent: tuple[int, int] | None = None
        self._forgotten = forgotten
        self._is_draining: Callable[[], bool] = bool
        super().__init__(board, adapter)

    def begin(self, is_draining: Callable[[], bool]) -> None:
        """Have this process be counted, and beat.

        :param is_draining: whether it is shutting down.
        :raises BoardFull: if there is no slot for it.
        """
        self.join()  # enter() would only log that it cannot
        self._is_draining = is_draining
        self.enter()
        self.start()

    def call(self) -> None:
        """Note that this process serves. At its first request."""
        self.enter()
        self._called = True
        self._flags |= CALLED
        self._turn(self._wanted)
        with self._lock:
            if self._thread is None:
                self.start()
        if self._thread is None:  # none is to be had: the next call comes here, too
            self._forgotten()

    def enter(self) -> None:
        """Have this process be counted, and in its place not the parent that was."""
        super().enter()
        parent, self._parent = self._parent, None
        if parent is not None:
            # Only if it has not been called, as the word itself says. One that is called between
            # the look and the store finds out at its next beat.
            row, pid = parent
            self._table.turn(row, pid, READY, STARTING, unless=CALLED)

    def beat(self) -> None:
        """Post, and be counted again if it was not and should be."""
        if self._is_draining():
            self.go()
        elif self._called and self._state() == STARTING:
            self.ready()
        super().beat()

    def _renew(self) -> None:
        """Begin without a slot, as a child does; remember whose child it is."""
        if self._row is not None:
            self._parent = self._row, self._pid
        self._flags &= ~CALLED
        super()._renew()

    def _after_fork(self) -> None:
        """Go on in a child. One that executes another program soon never gets to join."""
        super()._after_fork()
        if self._called:
            self._called = False
            self._parent = None
            self._forgotten()
        else:
            self._due = self.board.now() + int(BEAT_EVERY * SECOND)
            self.start()
