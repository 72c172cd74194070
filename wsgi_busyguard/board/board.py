"""The host: the sum of what its processes post, and the state that they share."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

from .._support.log import logger
from ..counters import LENGTH, NAMED, SECOND, of
from ..load import BUSY, FREE, UNKNOWN, Load, State
from ..load import judge as judged
from ..policy import whole
from .draining import draining_rows, start_draining, stop_draining
from .history import note_change
from .layout import (
    ASKED,
    BEAT,
    CHECKED,
    COLUMNS,
    COUNTS,
    EXPECTED,
    LAST_READY,
    LOAD_COLUMNS,
    POST_SECONDS,
    READY,
    STATE,
    STOPPING,
    THERE,
    TOOK,
    UNREADY,
    summed,
)
from .memory import MOST_ROWS
from .processes import is_gone
from .row import Row, row_in
from .table import BORN, FLAG_BITS, OWNER, Table
from .totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..counters import Changes, Counters

# Whoever has beaten within two beats is alive: to look for each process would take 15 us.
YOUNG_NS = int(2 * POST_SECONDS * SECOND)

# For so long it is believed that a silent one is still there. Together with the above it is less
# than the second within which the dead have to be out of the sum.
BELIEVED_NS = int(0.25 * SECOND)

# Seconds without a beat after which another process speaks for the host.
SILENT_SECONDS = 1.0

# How many processes may post, unless somebody says so.
DEFAULT_SLOTS = 256

# Between two looks at whether the path still names the file that is mapped.
PATH_LOOK_NS = SECOND


class BoardFull(RuntimeError):
    """Every slot of the board belongs to a process that is there."""


# A process that is made joins within this, also where its imports are slow.
JOINING_NS = 2 * SECOND


class Board:
    """Shared memory in which several processes post their :class:`~wsgi_busyguard.Load`.

    :param path: a file, made if it is missing; one that exists decides by itself how many slots it
        has. ``None``: memory shared with the processes that this one forks from now on.
    :param slots: how many processes may post.
    :param clock: monotonic seconds, the same for all processes of the host.
    :raises ValueError: for a file that is no board, or a damaged one.
    :raises OSError: for one that cannot be read and written.

    It is an adapter. Reading takes no lock and waits for no process, whatever the others do. All
    methods may be called from any thread, and none of them ever waits.

    A process that holds a board may live longer than those that post there, and the file may be
    removed and made anew meanwhile, as systemd does with a ``RuntimeDirectory=``. So once a second
    reading also looks whether the path names another board by now, and goes on with that one.

    One board is for one host and one namespace of process ids: processes that cannot see each
    other take each other for dead.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        slots: int = DEFAULT_SLOTS,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_late = False
        whole("slots", slots, least=1)
        if slots > MOST_ROWS:
            raise ValueError(f"slots must be at most {MOST_ROWS}, not {slots}")
        self.path = path
        self._clock = clock
        # The folder of now: a daemon goes to another one.
        self._where = None if path is None else os.path.abspath(path)
        self._turn_to(Table(path, slots, COLUMNS))

    @classmethod
    def later(cls, path: str | os.PathLike[str]) -> Board:
        """Return a board that becomes the one at ``path`` when that can be opened.

        Until then it is in memory, and this process is alone on it. It is tried once a second, by
        whoever looks.
        """
        board = cls.__new__(cls)
        board.path, board._where, board._is_late = path, os.path.abspath(path), True
        board._clock = time.monotonic
        board._turn_to(Table(None, DEFAULT_SLOTS, COLUMNS, alone=True))
        return board

    def _turn_to(self, table: Table) -> None:
        """Go on with these rows. Other threads may look meanwhile: each takes the table once."""
        self._look_at_path = self.now() + PATH_LOOK_NS
        self.slots = table.rows
        self.table = table
        self._believed: dict[int, tuple[int, int, int, bool]] = {}
        self._totals = Totals(table)

    @property
    def shared(self) -> Board:
        """What the monitors of all processes have in common: this."""
        return self

    def now(self) -> int:
        """Return the nanoseconds of the clock."""
        return int(self._clock() * SECOND)

    def read(self) -> Load:
        """Return the load of the host: the sum over the processes that are ready.

        :data:`~wsgi_busyguard.load.UNKNOWN` if none is. The service time is the one that their
        throughputs make together, and the lag is the smallest: while one loop is free it takes
        the new requests in. While none of the ready ones knows a service time, as after a reload
        with a full accept queue, the last one that was known here goes on to hold.
        """
        now, ready, columns = self._look(READY)
        if not ready:
            return UNKNOWN
        self.note_ready(now)
        words = self.table.words
        load = summed(columns, ready, now)
        if load.service is not None:
            words[TOOK] = int(load.service * SECOND)
        elif words[TOOK]:
            load = load._replace(service=words[TOOK] / SECOND)
        return load

    def rows(self) -> list[Row]:
        """Return what each process that is there has posted."""
        now, living, columns = self._look(THERE, COUNTS + NAMED)
        return [row_in(columns, row, now) for row in living]

    def awake(self) -> dict[int, Load]:
        """Return, by its id, the load of each ready process that gave a sign of life just now.

        Not of those that are there and silent: they may be stopped.
        """
        now, ready, columns = self._look(READY)
        return {
            columns[OWNER][row] >> FLAG_BITS: summed(columns, [row], now)
            for row in ready
            if columns[BEAT][row] > now - YOUNG_NS
        }

    def is_leader(self) -> bool:
        """Return whether this process is the one of the host's that speaks for all of them.

        It alone writes changes to the log, sends figures, tells balancers, and posts the queue that
        is there for all. Not while its board cannot be opened: others may be there.
        """
        return not self._is_late and self.leader() == os.getpid()

    def leader(self) -> int | None:
        """Return the id of the first process that is ready and not silent; ``None`` without any.

        Where all are silent, the first of them.
        """
        now, ready, columns = self._look(READY)
        due = now - int(SILENT_SECONDS * SECOND)
        awake = [row for row in ready if columns[BEAT][row] > due] or ready
        return columns[OWNER][awake[0]] >> FLAG_BITS if awake else None

    def counts(self) -> Counters:
        """Return what all processes have counted that ever had a slot, up to their last beats."""
        return of(self._totals.summed(COUNTS, LENGTH))

    def asked(self) -> list[int]:
        """Return how many checks they have answered, in the order of ``counters.CHECKS``."""
        return self._totals.summed(ASKED, CHECKED)

    def changes(self) -> Changes:
        """Return how often the state has changed, and for how long it has been busy."""
        return self._totals.changes(self._last_seen())

    def drain(self) -> list[int]:
        """Have every check say draining, while requests are served; return whom this reaches.

        Those are the processes that are there now, by their ids. It ends with them, and those that
        their server makes in their place; or with :meth:`undrain`.

        :raises OSError: if another process is in the middle of a claim, and stopped there.
        """
        _, living, columns = self._look(THERE)
        return start_draining(self.table, living, columns[OWNER])

    def undrain(self) -> list[int]:
        """Have checks say again how things are; return the ids of those that were to drain.

        :raises OSError: as :meth:`drain`.
        """
        return stop_draining(self.current())

    @property
    def draining(self) -> bool:
        """Whether one of the ready processes is to drain, which then goes for all."""
        draining = draining_rows(self.current())
        return bool(draining) and not set(draining).isdisjoint(self._look(READY)[1])

    def free(self, pid: int) -> None:
        """Give away the slot of a process that is known to be gone, if nobody is to be waited for.

        Else those who look see within a second that it is gone.
        """
        self.table.free(pid)

    def judge(self, load: Load) -> State:
        """Return the state after ``load``, judged from the state that all processes share.

        So at equality, where the state stays what it was, all of them say the same.
        """
        table = self.table
        number = table.words[STATE]
        after = judged(BUSY if number & 1 else FREE, load)
        if (after is BUSY) is not bool(number & 1):
            table.tried(partial(self._change_once, table, number, load))
        return after

    def settle(self) -> None:
        """End a busy state in which all have gone, when they had. For one who is about to join.

        Else the time for which nobody was there would count as busy.
        """
        table = self.current()
        number, until = table.words[STATE], self._last_seen()
        if number & 1 and until < self.now():
            table.tried(partial(self._change_once, table, number, UNKNOWN, until))

    def _change_once(self, table: Table, number: int, load: Load, since: int | None = None) -> None:
        """Note the change, unless somebody else has. For :meth:`.table.Table.tried`."""
        if table.words[STATE] == number:  # else the next look judges from there
            note_change(table.words, number + 1, self.now() if since is None else since, load)

    def _last_seen(self) -> int:
        """Return until when somebody was there: now, or a second after the last beat of all."""
        now, living, columns = self._look(THERE)
        return now if living else min(now, max(columns[BEAT], default=now) + SECOND)

    @property
    def was_ready(self) -> bool:
        """What the damped policy answered last, in whichever process."""
        return not self.table.words[UNREADY]

    @was_ready.setter
    def was_ready(self, ready: bool) -> None:
        if self.was_ready is not ready:
            self.table.words[UNREADY] = not ready

    def absent(self, patience: float) -> bool:
        """Return whether no process is there to serve, and none was for ``patience`` seconds."""
        now, ready, _ = self._look(READY)
        if ready:
            self.note_ready(now)
            return False
        last = self.table.words[LAST_READY]
        # One in the future was written before the host was booted.
        return not last or not 0 <= now - last <= patience * SECOND

    def note_ready(self, now: int) -> None:
        """Note that somebody is there who serves, be it one that finds no slot."""
        self.table.words[LAST_READY] = now

    def expect(self) -> None:
        """Note that a process is about to be made, which will join.

        Until it does, those that are there may all be stopping, and yet nobody is shutting down.
        """
        self.table.words[EXPECTED] = self.now()

    def stopping(self) -> bool:
        """Return whether processes are there and all of them are stopping, and none is expected."""
        now, living, columns = self._look(THERE)
        if not living or not all(columns[OWNER][row] & STOPPING for row in living):
            return False
        return not 0 <= now - self.table.words[EXPECTED] <= JOINING_NS

    def left(self) -> Load:
        """Return what those that are stopping have left to do together."""
        now, going, columns = self._look(STOPPING)
        return summed(columns, going, now) if going else UNKNOWN

    def stalled(self, seconds: float) -> bool:
        """Return whether there are ready processes and none has got on for so long."""
        return self.silent() > seconds

    def silent(self) -> float:
        """Return the seconds since any of the ready processes has beaten; 0 if there is none."""
        now, ready, columns = self._look(READY)
        return (now - max(columns[BEAT][row] for row in ready)) / SECOND if ready else 0.0

    def is_vacant(self, table: Table, row: int, also_the_young: bool) -> bool:
        """Return whether the process of a row is gone; one that beat just now is not looked for."""
        owner, since, beat = (table.words[table.at(word, row)] for word in (OWNER, BORN, BEAT))
        if also_the_young:
            return is_gone(owner >> FLAG_BITS, since)
        now = self.now()
        return not (now - YOUNG_NS < beat <= now or self._is_there(row, owner, since, now))

    def _look(
        self, states: int, most: int = LOAD_COLUMNS
    ) -> tuple[int, list[int], list[list[int]]]:
        """Return the time, the rows of the living in one of these states, and the columns.

        The owners are read first. If a row changes hands in the middle of this, its new process
        has not posted yet, and adds nothing.
        """
        table = self.current()
        columns = [table.column(column) for column in range(most)]
        now = self.now()  # after the beats, so that none of them is in the future
        young = now - YOUNG_NS
        owners = enumerate(zip(columns[OWNER], columns[BEAT], strict=False))
        living = [
            row
            for row, (owner, beat) in owners
            if owner & states
            and (young < beat <= now or self._is_there(row, owner, columns[BORN][row], now))
        ]
        return now, living, columns

    def current(self) -> Table:
        """Return the table that the path names, which is looked at once a second."""
        due, now = self._look_at_path, self.now()
        if self._where is not None and not due - PATH_LOOK_NS <= now < due:
            self._look_at_path = now + PATH_LOOK_NS
            found = self._opened() if self._is_late else self.table.successor(self._where)
            if found is not None:
                self._turn_to(found)
        return self.table

    def _opened(self) -> Table | None:
        try:
            table = Table(self._where, DEFAULT_SLOTS, COLUMNS)
        except (OSError, ValueError):
            return None
        self._is_late = False
        logger.warning("%r could be opened, and is used from now on", self.path)
        return table

    def _is_there(self, row: int, owner: int, since: int, now: int) -> bool:
        pid = owner >> FLAG_BITS
        known = self._believed.get(row)
        if known is not None and known[:2] == (pid, since) and (not known[3] or now < known[2]):
            return known[3]  # the dead stay dead
        there = not is_gone(pid, since)
        self._believed[row] = pid, since, now + BELIEVED_NS, there
        return there

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else f"in {os.fspath(self.path)!r}"
        return f"<Board {where}, {len(self._look(THERE)[1])}/{self.slots} slots>"
