"""Posts the load of this process on a board, a few times a second and whenever it is read.

Nothing that is called here, and nothing that goes wrong, reaches a request.
"""

from __future__ import annotations

import os
import weakref
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

from .._support.forks import Stage, after_fork
from .._support.launcher import relaunch
from .._support.locks import Turn, owned_lock, under
from .._support.log import Streak
from .._support.periodic import Periodic
from ..counters import NAMED, SECOND, Counters
from ..load import UNKNOWN, Adapter, Load, known_adapter
from .board import Board, BoardFull
from .bulkheads import calls_now
from .draining import DrainLog, newcomer
from .layout import (
    BEAT,
    BEFORE,
    CALLED,
    COUNTS,
    FIGURES,
    LIMITS,
    LOOP,
    POST_SECONDS,
    READY,
    SERVER,
    STARTING,
    STOPPING,
    THERE,
    packed,
    packed_limits,
)
from .posted_counts import Tally
from .processes import born
from .row import RowPlace
from .table import BORN, FLAG_BITS, OWNER, Full

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..load import GuardLimits
    from .table import Table

# Nanoseconds after which a process that found no slot tries again.
JOIN_RETRY_NS = SECOND

WITHOUT = "this process is not on %r, and serves on; it tries again"


class Publisher:
    """Posts what an adapter reads in the slot of this process.

    :param board: where.
    :param adapter: reads the load of this process.
    :param loop: whether the beats come from the very loop that takes requests in: then a late beat
        is a late loop.
    :raises TypeError: for an adapter that cannot be read.
    :ivar joined: whether this process has a slot.
    :ivar limits: returns what is in force in the guard, once there is one.

    An adapter with ``counts()`` has its counts posted at every beat.

    Once it has joined, or tried to, it looks after its slot at the beats: it takes another one if
    there was none, if this process was taken for dead, and if the board was made anew. Without one
    it says at least that somebody is there who serves.

    An adapter itself: it reads the load of the host, after posting that of this process, so that
    its own share is never old. Whoever subscribes is called at every beat.

    In a child process it has no slot until :meth:`join` is called there; until then nothing is
    posted. All methods may be called from any thread; :meth:`ready`, :meth:`stopping` and
    :meth:`leave` also in a signal handler.
    """

    def __init__(self, board: Board, adapter: Adapter, *, loop: bool = False) -> None:
        if not isinstance(board, Board):
            raise TypeError(f"board must be a Board, not {board!r}")
        self.board = board
        self.adapter = known_adapter(adapter)
        # Who is made by a server, and not by an app that anybody may import, serves for certain.
        self._flags = CALLED | (LOOP if loop else 0)
        self._subscribers: list[Callable[[], object]] = []
        self._asked: list[Mapping[str, Sequence[int]]] = []
        self.limits: Callable[[], GuardLimits] | None = None
        self._renew()
        _publishers.add(self)
        after_fork(Stage.OWN, self._after_fork)

    _place: RowPlace | None = None

    def _renew(self) -> None:
        self._lock = owned_lock()
        self._interrupted = False
        self._place, self._posted = None, False  # posted: since it has its place
        self._pid = os.getpid()
        self._wanted = 0  # the state that it is to have on the board; 0: it is not to be there
        self._due = 0  # when to look for a slot, if there is none
        self._tally = Tally(self._asked)
        self._counting = Turn()
        self._uncounted = False  # since what was counted was last stored
        self._beats = Periodic(self._beat, POST_SECONDS, "busyguard-beat", at_once=True)
        self._work: tuple[Callable[[], object], ...] = ()  # done at each beat of the thread
        self._drain_log = DrainLog(self.board)
        self._failing: defaultdict[object, Streak] = defaultdict(Streak)  # by what is called here

    def _after_fork(self) -> None:
        self._renew()

    @property
    def shared(self) -> Board:
        """What the monitors of all processes have in common: the board."""
        return self.board

    @property
    def joined(self) -> bool:
        """Whether this process has a slot."""
        return self._mine() is not None

    def _mine(self) -> RowPlace | None:
        """Return the place of this process, if it has one on the board of now."""
        place = self._place
        if place is None or not place.table.shares(self.board.table):
            return None
        return place if place.is_ours() else None

    def join(self) -> None:
        """Take a slot for this process, which is starting.

        :raises BoardFull: if there is none. It is tried again at the beats.
        :raises OSError: if the system does not let this process look; likewise.
        """
        if not under(_joining, self._join) and self._posted:
            return
        # Also by a thread that finds that another has taken the slot, and has not come to this.
        self.post_counts()
        self._call(self._post_limits)
        self.post()
        self._posted = True
        self._turn()  # last, for whoever is counted without its figures has a capacity of 0

    def _join(self) -> bool:
        """Take a slot unless there is one; return whether there was none. Requires _joining."""
        if self.joined:
            return False
        if self._pid != os.getpid():
            self._renew()
        self._wanted = self._wanted or STARTING
        self._posted, self._place = False, self._claimed(self.board.table)
        return True

    def _claimed(self, table: Table) -> RowPlace:
        """Return a place for this process. Requires _joining."""
        self.board.settle()
        pid, now = self._pid, self.board.now()
        began = born(pid, now)
        others = [one for one in list(_publishers) if one.board.table.shares(table)]
        places = [place for place in (other._mine() for other in others) if place is not None]
        try:
            row = table.claim(
                pid << FLAG_BITS | STARTING | self._flags,
                {place.row for place in places},
                partial(self.board.is_vacant, table),
                lambda: {BORN: began, BEAT: now, SERVER: newcomer(table)},
                {BEFORE + n: COUNTS + n for n in range(NAMED)},
                COUNTS,
            )
        except Full:
            raise BoardFull(
                f"the board has {table.rows} slots and every one belongs to a process"
                " that is there: make it with more slots"
            ) from None
        for other in others:
            if other._place is not None and other._place.row == row:
                other._place = None  # it was declared dead, and would take this for its own
        return RowPlace(table, row, pid)

    def seek(self) -> None:
        """Take a slot, now or at a later beat; what stands in the way is logged once."""
        error: Exception | None = None
        try:
            self.join()
        except Exception as raised:  # no slot, mostly
            error = raised
        self._due = 0 if error is None else self.board.now() + JOIN_RETRY_NS
        self._note("join", error, WITHOUT, self.board)

    def leave(self) -> None:
        """Give the slot back, with all that has been counted in it."""
        self._wanted = 0
        self.post_counts()
        place, self._place = self._mine(), None
        if place is not None:
            place.put(OWNER, 0)

    def ready(self) -> None:
        """Have this process be counted from now on."""
        self._be(READY)

    def stopping(self) -> None:
        """Have this process not be counted any more: it goes."""
        self._be(STOPPING)

    def _be(self, state: int) -> None:
        if self._wanted:  # else it has left, or never tried to join
            self._wanted = state
            self._turn()

    def _state(self) -> int:
        """Return how this process is by its row; 0 if it has none."""
        place = self._mine()
        return 0 if place is None else place.get(OWNER) & THERE

    def _turn(self) -> None:
        """Store the state that is wanted, in whatever order threads and signal handlers say so."""
        place = self._mine()
        while place is not None:
            wanted = self._wanted
            place.put(OWNER, wanted and place.pid << FLAG_BITS | wanted | self._flags)
            if wanted == self._wanted:
                return

    def read(self) -> Load:
        """Post, and return the load of the host."""
        self.post()
        return self.board.read()

    def subscribe(self, changed: Callable[[], object]) -> None:
        """Have ``changed`` called at every beat: other processes change without notice."""
        self._subscribers.append(changed)

    def post(self) -> None:
        """Post what the adapter reads now.

        Under a lock, so that the last figures stored are those of the last look. A finalizer may
        come here in the middle of that, in the same thread; then it is looked once more.
        """
        relaunch()  # here, for it is where every process comes by
        if self._mine() is None:
            return
        if self._lock._is_owned():
            self._interrupted = True
            return
        error = under(self._lock, self._post)
        self._note("read", error, "cannot read the load from %r; posted as unknown", self.adapter)

    def _post(self) -> Exception | None:
        """Look and store, once more if something interrupted that. Requires self._lock."""
        error = self._store()
        if self._interrupted:
            self._interrupted = False
            error = self._store()
        return error

    def _store(self) -> Exception | None:
        """Look and store; return what went wrong. Requires self._lock."""
        place = self._mine()
        if place is None:
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
            place.put(column, word)
        return error

    def beat(self) -> None:
        """Post, and note that this process makes progress."""
        self.board.current()
        wanted = self._wanted if self._pid == os.getpid() else 0  # what a parent wanted is its own
        if wanted and not self.joined and self.board.now() >= self._due:
            self.seek()
        place, now = self._mine(), self.board.now()
        if place is not None:
            place.put(BEAT, now)
        if (wanted if place is None else self._state()) == READY:
            self.board.note_ready(now)
        self.post()
        self.post_counts()
        self._call(self._post_limits)
        self._call(self._drain_log.look)
        for changed in tuple(self._subscribers):
            self._call(changed)

    def hears(self, asked: Mapping[str, Sequence[int]]) -> None:
        """Have these counts of checks be posted, too; see :func:`~.counters.no_checks`."""
        if not any(known is asked for known in self._asked):
            self._asked.append(asked)

    def counts(self) -> Counters:
        """Post what has been counted, and return the counts of the host."""
        self.post_counts()
        return self.board.counts()

    def post_counts(self) -> None:
        """Post what has been counted so far."""
        self._uncounted = True
        self._counting.take(lambda: self._uncounted, self._post_counts)

    def _post_counts(self) -> None:
        self._uncounted = False
        place = self._mine()
        if place is not None:
            self._tally.store(place, self.adapter)

    def _post_limits(self) -> None:
        """Post what is in force, and the bulkheads of this process."""
        place = self._mine()
        if place is not None:
            limits = packed_limits(self.limits and self.limits())
            for column, word in enumerate([*limits, *calls_now(self.board.now())], LIMITS):
                place.put(column, word)

    def start(self, *work: Callable[[], object]) -> None:
        """Beat every quarter of a second on a thread of its own, and do ``work`` then.

        Made when it is called, so that under gevent's monkey patching it is a greenlet, and a
        stalled hub shows. It ends with :meth:`stop`, or when nobody else has this publisher. While
        no thread is to be had it is tried again, and :meth:`beat_if_due` beats meanwhile.
        """
        self.stop()
        self._work = work
        self._beats.start()

    def _beat(self) -> None:
        self._call(self.beat)
        for function in self._work:
            self._call(function)

    def beat_if_due(self) -> None:
        """Beat here if a thread should and none is to be had. For a loop that comes by often."""
        if self._beats.running or not self._beats.wanted:
            return
        place = self._mine()
        if place is None or self.board.now() - place.get(BEAT) >= POST_SECONDS * SECOND:
            self._beat()

    def stop(self) -> None:
        """End that thread; the slot is kept."""
        self._beats.stop(wait=True)

    def _call(self, function: Callable[[], object]) -> None:
        error: Exception | None = None
        try:
            function()
        except Exception as raised:
            error = raised
        self._note(function, error, "%r raised at a beat", function)

    def _note(self, what: object, error: Exception | None, message: str, about: object) -> None:
        """Log what went wrong, once until it goes well again."""
        if error is None:
            self._failing.pop(what, None)
        else:
            self._failing[what].failed(f"{message}: %r", about, error)

    def __del__(self) -> None:
        if "_pid" in self.__dict__:
            self.leave()

    def __repr__(self) -> str:
        place = self._mine()
        where = "no slot of " if place is None else f"slot {place.row} of "
        return f"<Publisher of {self.adapter!r}: {where}{self.board!r}>"


_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()
_joining = owned_lock()  # one thread of a process at a time takes slots


def _after_fork_in_child() -> None:
    global _joining
    _joining = owned_lock()


after_fork(Stage.OWN, _after_fork_in_child)
