"""Posts the load of this process on a board, a few times a second and whenever it is read.

Nothing that is called here, and nothing that goes wrong, reaches a request.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

from .board import Board, BoardFull
from .counts import LENGTH, NAMED, Counts, asked, counts_of, no_checks
from .launcher import launch, relaunch
from .load import UNKNOWN, Adapter, Load
from .native import Bell
from .table import BORN, FLAGS, OWNER, Full, born
from .words import (
    BEAT,
    BEAT_EVERY,
    BEFORE,
    CHECKED,
    COUNTS,
    FIGURES,
    LAST_READY,
    LOOP,
    READY,
    SECOND,
    STARTING,
    STOPPING,
    THERE,
    packed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger("wsgi_busyguard")

# What an adapter that does not count itself may have counted, by the place in a list of counts.
COUNTED = {"served": 1, "refused": 2, "dropped": NAMED - 1}


class Poster:
    """Posts what an adapter reads in the slot of this process.

    :param board: where.
    :param adapter: reads the load of this process.
    :param loop: whether the beats come from the very loop that takes requests in: then a late beat
        is a late loop.
    :raises TypeError: for an adapter that cannot be read.
    :ivar joined: whether this process has a slot.

    An adapter with ``counts()`` has its counts posted at every beat.

    An adapter itself: it reads the load of the host, after posting that of this process, so that
    its own share is never old. Whoever subscribes is called at every beat.

    In a child process it has no slot until :meth:`join` is called there; until then nothing is
    posted. All methods may be called from any thread; :meth:`ready`, :meth:`stopping` and
    :meth:`leave` also in a signal handler.
    """

    def __init__(self, board: Board, adapter: Adapter, *, loop: bool = False) -> None:
        if not isinstance(board, Board):
            raise TypeError(f"board must be a Board, not {board!r}")
        if not callable(getattr(adapter, "read", None)):
            raise TypeError(f"adapter must have a read() that returns a Load, not {adapter!r}")
        self.board = board
        self.adapter = adapter
        self._flags = LOOP if loop else 0
        self._table = board.table
        self._words = board.table.words
        self._told: list[Callable[[], object]] = []
        self._asked: Mapping[str, Sequence[int]] = no_checks()
        self._renew()
        _posters.add(self)

    _row: int | None = None
    _pid = 0

    def _renew(self) -> None:
        """Begin without a slot."""
        self._lock = threading.RLock()
        self._looking = False
        self._interrupted = False
        self._row = None
        self._pid = 0
        self._counted: deque[tuple[int, int]] = deque()
        self._counting = threading.Lock()
        self._uncounted = False  # since what was counted was last stored
        self._own = [0] * LENGTH
        self._from = [0] * (LENGTH + CHECKED)  # what to add to what is counted here
        self._end: Bell | None = None
        self._thread: threading.Thread | None = None
        self._work: tuple[Callable[[], object], ...] | None = None  # for a thread, if it is wanted
        self._failing: set[object] = set()  # of what is called here, since it last went well

    def _after_fork(self) -> None:
        """Go on in a child."""
        self._renew()

    @property
    def shared(self) -> Board:
        """What the monitors of all processes have in common: the board."""
        return self.board

    @property
    def joined(self) -> bool:
        """Whether this process has a slot."""
        return self._mine() is not None

    def _mine(self) -> int | None:
        """Return the row of this process, if it has one.

        Not in a child, also where nobody tells Python of the fork (uWSGI does not); and not when
        somebody has declared this process dead and given its row away.
        """
        row = self._row
        if row is None or self._pid != os.getpid():
            return None
        return row if self._words[self._table.at(OWNER, row)] >> FLAGS == self._pid else None

    def join(self) -> None:
        """Take a slot for this process, which is starting.

        :raises BoardFull: if there is none.
        """
        with _joining:
            if self.joined:
                return
            pid = os.getpid()
            if self._pid != pid:
                self._renew()
            now = self.board.now()
            others = [poster for poster in list(_posters) if self._table.shares(poster._table)]
            mine = {row for row in (other._mine() for other in others) if row is not None}
            try:
                row = self._table.claim(
                    pid << FLAGS | STARTING | self._flags,
                    mine,
                    self.board.is_vacant,
                    {BORN: born(pid, now), BEAT: now},
                    {BEFORE + n: COUNTS + n for n in range(NAMED)},
                    COUNTS,
                )
            except Full:
                raise BoardFull(
                    f"the board has {self.board.slots} slots and every one belongs to a process"
                    " that is there: make it with more slots"
                ) from None
            for other in others:
                if other._row == row:  # it was declared dead, and would take this for its own
                    other._row = None
            left = [self._words[self._table.at(COUNTS + n, row)] for n in range(len(self._from))]
            own = self._tally()
            self._from = [there - here for there, here in zip(left, own, strict=True)]
            self._pid, self._row = pid, row
        self.post()

    def leave(self) -> None:
        """Give the slot back, with all that has been counted in it."""
        self.post_counts()
        row, self._row = self._mine(), None
        if row is not None:
            self._words[self._table.at(OWNER, row)] = 0

    def ready(self) -> None:
        """Have this process be counted from now on."""
        self._turn(READY)

    def stopping(self) -> None:
        """Have this process not be counted any more: it goes."""
        self._turn(STOPPING)

    def _state(self) -> int:
        """Return how this process is by its row; 0 if it has none."""
        row = self._mine()
        return 0 if row is None else self._words[self._table.at(OWNER, row)] & THERE

    def _turn(self, state: int) -> None:
        row = self._mine()
        if row is not None:
            self._words[self._table.at(OWNER, row)] = self._pid << FLAGS | state | self._flags

    def read(self) -> Load:
        """Post, and return the load of the host."""
        self.post()
        return self.board.read()

    def subscribe(self, changed: Callable[[], object]) -> None:
        """Have ``changed`` called at every beat: other processes change without a word."""
        self._told.append(changed)

    def post(self) -> None:
        """Post what the adapter reads now.

        Under a lock, so that the last figures stored are those of the last look. A finalizer may
        come here in the middle of that, in the same thread; then it is looked once more.
        """
        relaunch()  # here, for it is where every process comes by
        if self._mine() is None:
            return
        with self._lock:
            if self._looking:
                self._interrupted = True
                return
            self._looking = True
            try:
                error = self._store()
                if self._interrupted:
                    self._interrupted = False
                    error = self._store()
            finally:
                self._looking = False
        self._note("read", error, "cannot read the load from %r; posted as unknown", self.adapter)

    def _store(self) -> Exception | None:
        """Look and store; return what went wrong. Requires self._lock."""
        row = self._mine()
        if row is None:
            return None
        now = self.board.now()
        error: Exception | None = None
        try:
            load = self.adapter.read()
            if not isinstance(load, Load):
                raise TypeError(f"expected a Load from read(), not {load!r}")
            words = packed(load, now)
        except Exception as raised:
            error, words = raised, packed(UNKNOWN, now)
        for column, word in enumerate(words, FIGURES):
            self._words[self._table.at(column, row)] = word
        return error

    def beat(self) -> None:
        """Post, and note that this process makes progress."""
        row = self._mine()
        if row is not None:
            now = self.board.now()
            self._words[self._table.at(BEAT, row)] = now
            if self._state() == READY:
                self._words[LAST_READY] = now
        self.post()
        self.post_counts()
        for changed in tuple(self._told):
            self._call(changed)

    def hears(self, asked: Mapping[str, Sequence[int]]) -> None:
        """Have these counts of checks be posted, too; see :func:`~.counts.no_checks`."""
        self._asked = asked

    def counts(self) -> Counts:
        """Post what has been counted, and return the counts of the host."""
        self.post_counts()
        return self.board.counts()

    def post_counts(self) -> None:
        """Post what has been counted so far."""
        self._uncounted = True
        # One at a time does it for all. Whoever is at it looks again afterwards, and a finalizer
        # that comes in between waits for nobody.
        while self._uncounted and self._counting.acquire(blocking=False):
            try:
                self._uncounted = False
                row = self._mine()
                if row is not None:
                    for n, count in enumerate(self._tally()):
                        self._words[self._table.at(COUNTS + n, row)] = self._from[n] + count
            finally:
                self._counting.release()

    def _tally(self) -> list[int]:
        """Return what has been counted in this process."""
        try:
            counts = counts_of(self.adapter) or Counts()
        except Exception:  # the next look at the load says what is wrong
            counts = Counts()
        while self._counted:
            which, more = self._counted.popleft()
            self._own[which] += more
        here = [count + own for count, own in zip(counts.flat(), self._own, strict=True)]
        return [*here, *asked(self._asked)]

    def count(self, what: str, n: int = 1) -> None:
        """Count requests that were ``"served"``, ``"refused"`` or ``"dropped"``.

        For an adapter that does not count by itself.


        :raises ValueError: for another word.
        """
        try:
            which = COUNTED[what]
        except KeyError:
            raise ValueError(f"expected one of {', '.join(COUNTED)}, not {what!r}") from None
        self._counted.append((which, n))
        self.post_counts()

    def start(self, *work: Callable[[], object]) -> None:
        """Beat every quarter of a second on a thread of its own, and do ``work`` then.

        Made when it is called, so that under gevent's monkey patching it is a greenlet, and a
        stalled hub shows. It ends with :meth:`stop`, or when nobody else has this poster. While no
        thread is to be had it is tried again, and :meth:`beat_if_due` beats meanwhile.
        """
        self.stop()
        self._work = work
        launch(self._begin_to_beat)

    def _begin_to_beat(self) -> None:
        work, end = self._work, Bell()
        if work is None or self._thread is not None:
            return
        thread = threading.Thread(
            target=_beat, args=(weakref.ref(self), end, work), name="busyguard-beat", daemon=True
        )
        thread.start()
        self._end, self._thread = end, thread
        if self._work is not work:  # stopped meanwhile
            end.ring()

    def beat_if_due(self) -> None:
        """Beat here if a thread should and none is to be had. For a loop that comes by often."""
        work, row = self._work, self._mine()
        if work is None or self._thread is not None or row is None:
            return
        if self.board.now() - self._words[self._table.at(BEAT, row)] >= BEAT_EVERY * SECOND:
            self.beat()
            for function in work:
                self._call(function)

    def stop(self) -> None:
        """End that thread; the slot is kept."""
        self._work = None
        end, thread, self._end, self._thread = self._end, self._thread, None, None
        if end is not None and thread is not None:
            end.ring()
            if thread is not threading.current_thread():
                thread.join()

    def _call(self, function: Callable[[], object]) -> None:
        error: Exception | None = None
        try:
            function()
        except Exception as raised:
            error = raised
        self._note(function, error, "%r raised at a beat", function)

    def _note(self, what: object, error: Exception | None, words: str, about: object) -> None:
        """Log what went wrong, once until it goes well again."""
        if error is None:
            self._failing.discard(what)
        elif what not in self._failing:
            self._failing.add(what)
            logger.error(f"{words}: %r", about, error)

    def __del__(self) -> None:
        if "_pid" in self.__dict__:
            self.leave()

    def __repr__(self) -> str:
        where = f"slot {self._row} of " if self.joined else "no slot of "
        return f"<Poster of {self.adapter!r}: {where}{self.board!r}>"


def _beat(
    poster_ref: weakref.ref[Poster], end: Bell, work: tuple[Callable[[], object], ...]
) -> None:
    """Beat until the end."""
    while True:
        poster = poster_ref()
        if poster is None:
            return
        poster.beat()
        for function in work:
            poster._call(function)
        del poster
        if end.wait(BEAT_EVERY):
            return


_posters: weakref.WeakSet[Poster] = weakref.WeakSet()
_joining = threading.RLock()  # one thread of a process at a time takes slots


def _after_fork_in_child() -> None:
    global _joining
    _joining = threading.RLock()
    for poster in list(_posters):
        poster._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
