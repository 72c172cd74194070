"""A guard meets its server: what it does at the first call in each process, and never again."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

from .._support.forks import Stage, after_fork
from .._support.locks import under
from .._support.log import logger
from ..board.publisher import Publisher
from ..board.respawn import is_late
from ..counters import Counts
from ..deadlines.deadline import MONITOR
from ..gate.gated_app import Held
from ..load import Shares, Subscribes
from ..monitor import Monitor
from .crowd_watch import own_part
from .detect import BE_THE_QUEUE, Server, behind_a_guard, find, find_early, held_up
from .readers.derived import DerivedAdapter
from .readers.in_flight import InFlight
from .readers.sampling import SamplingAdapter
from .thread_budget import needed, too_few

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sized

    from _typeshed.wsgi import WSGIEnvironment

    from ..gate import Gate
    from ..load import Adapter, Load
    from ..policy import Limits
    from .crowd_watch import CrowdWatch
    from .next_call import NextCall
    from .unread_body import UnreadBodyReader


class FirstRequest:
    """Finds out which server calls: what it reads, and whether it has threads for a gate.

    :param monitor: is given what reads the server.
    :param adapter: what is read until then: a gate, or what has neither queue nor capacity.
    :param in_flight: counts the calls of the guard's app.
    :param count_checks: has checks be counted, and returns as many things as are being answered.
    :param next_call: has this be done at the next call, and in a child process, which may be
        another server, anew; has calls be timed.
    :param leftovers: is told how many threads are left where the gate is full, but for one for
        checks.
    :param crowd: watches the server's queue where the guard is not the queue itself.
    :ivar lacks_room: whether a gate here would serve less than the server without it, so that
        requests are not to go through it.
    :ivar whole_targets: whether the server passes all of an absolute target as PATH_INFO.
    """

    def __init__(
        self,
        monitor: Monitor,
        adapter: Gate | InFlight,
        in_flight: InFlight,
        count_checks: Callable[[], Sized],
        next_call: NextCall,
        leftovers: UnreadBodyReader,
        crowd: CrowdWatch,
    ) -> None:
        self._monitor = monitor
        self._adapter = adapter
        self._in_flight = in_flight
        self._count_checks = count_checks
        self._next_call = next_call
        self._leftovers = leftovers
        self._crowd = crowd
        self._renew()
        self._met = False
        self.lacks_room = self.whole_targets = False
        monitor.serves = False  # whoever imports the app makes its guard
        self._begin()
        after_fork(Stage.OWN, self._renew)
        after_fork(Stage.SERVER, self._after_fork)

    def _begin(self) -> None:
        self._next_call.does(self.meet, "could not find out which server this is")

    def meet(self, environ: WSGIEnvironment) -> None:
        """Do it, unless it is done. Of several first calls at once one does and others wait.

        Raises what goes wrong, once: then nothing more is known of the server.
        """
        try:
            if not self._met:
                self._monitor.serves = True
                under(self._lock, self._meet_first, environ)
        finally:
            self._in_flight.begin()

    def _meet_first(self, environ: WSGIEnvironment) -> None:
        """Do it unless another call has. Requires self._lock."""
        if not self._met:
            try:
                self._look(environ)
            finally:
                self._met = True  # or given up: it would fail at each further call

    def _look(self, environ: WSGIEnvironment) -> None:
        name = environ.get("SERVER_SOFTWARE", "unnamed")
        server = find(environ)
        self.whole_targets = server is not None and server.whole_targets
        self._in_flight.nested = behind_a_guard()
        self._in_flight.is_read = self._adapter is self._in_flight
        if MONITOR in environ:  # another guard stands in front, and knows
            theirs = environ[MONITOR]
            if isinstance(theirs, Monitor) and isinstance(self._adapter, InFlight):
                # Read, and not judged, by which that monitor's listeners would be told.
                reading = DerivedAdapter(lambda: theirs.adapter.read(), theirs.adapter)
                self._turn_to(WithoutChecks(reading, self._count_checks()))
        elif isinstance(self._adapter, InFlight):
            self._find_load(server, name)
        else:
            self._find_room(self._adapter.limits, server or Server(f"this server ({name})"))

    def _find_room(self, limits: Limits, server: Server) -> None:
        """Give the gate up where checks and refusals would not get through the server behind it."""
        wrong: str | None = server.blocks or held_up(server.name)
        if wrong:
            self._give_up_gate(server, wrong)
            return
        threads = server.threads
        if threads is None:
            logger.warning(
                "cannot tell how many threads %s has: with slots=%s and max_queue=%s"
                " checks wait unless it has at least %s",
                *(server.name, *limits[:2], needed(limits)),
            )
            return
        wrong = too_few(limits, threads, server.name, server.start)
        if wrong is not None:
            self._give_up_gate(server, wrong)
            return
        # Of as many as there may be, as many are left, also behind a queue without a bound.
        left = threads - limits.slots - limits.max_queue - 1
        self._leftovers.allow(threads if threads == math.inf else left)

    def _give_up_gate(self, server: Server, wrong: str) -> None:
        """Have no request go through the gate any more. It has an answer to checks still.

        Those who wait at it have the server's threads, and where these are too few they keep out
        requests that the server alone would serve.
        """
        self.lacks_room = True
        until_then = "the guard refuses nothing and answers checks"
        try:
            if server.adapter is None:
                until_then += ", which all say free"
                self._turn_to(self._in_flight)
            else:
                self._turn_to(self._reader(server))
                if self._crowd.watches:
                    until_then = "requests are refused at pick-up only"
        finally:
            logger.error("%s; until then %s", wrong, until_then)

    def _find_load(self, server: Server | None, name: str) -> None:
        if server is None:
            logger.warning(
                "the queue of this server (%s) is not known, so every check says free; %s, for a"
                " server started with at least N + 4 * N + 2 threads",
                *(name, BE_THE_QUEUE),
            )
        elif server.adapter is None:
            logger.warning(
                "this server (%s) %s; every check says free; %s",
                *(server.name, server.why, server.way),
            )
        else:
            adapter = self._reader(server)
            self._turn_to(adapter)
            logger.info("reads the load of %s: %r", server.name, adapter)

    def _reader(self, server: Server) -> Adapter:
        """Return what reads the server for checks, and have its queue be watched."""
        assert server.adapter is not None
        whole = server.adapter()
        own, shown = own_part(whole), self._part_of(whole)
        reader = shown
        if server.counts_checks:
            reader = WithoutChecks(reader, self._count_checks())
        if own is not None and not isinstance(reader, (Counts, Subscribes)):
            reader = self._crowd.counted(reader)
        if not isinstance(reader, Subscribes):  # what tells of changes by itself knows more
            reader = SamplingAdapter(reader, self._next_call)
        if not self._in_flight.nested:  # else the guard in front refuses
            self._crowd.watch(reader if own is shown else own)
        return reader

    def _part_of(self, adapter: Adapter) -> Adapter:
        """Return what reads this process's part, where several post and the queue is one for all.

        Each would post the whole queue otherwise, and the sum be many times what waits.
        """
        publisher = self._monitor.adapter
        if isinstance(publisher, Publisher) and isinstance(adapter, Shares):
            return adapter.share(publisher.board)
        return adapter

    def _turn_to(self, adapter: Adapter) -> None:
        self._in_flight.is_read = adapter is self._in_flight
        publisher = self._monitor.adapter
        if isinstance(publisher, Publisher):  # it stays, and posts what the other one reads
            publisher.adapter = adapter
        else:
            self._monitor.read_from(adapter)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def _after_fork(self) -> None:
        if self._met:
            self._met = self._monitor.serves = False
            if self.lacks_room or isinstance(self._adapter, InFlight):
                self._turn_to(self._adapter)
            self.lacks_room = False
            self._crowd.watch(None)
            self._begin()


class WithoutChecks:
    """Reads what an adapter reads, without the checks that are just being answered.

    They take threads of the server themselves: what waits only because of them does not wait.
    """

    def __init__(self, adapter: Adapter, asking: Sized) -> None:
        self._adapter = adapter
        self._asking = asking

    def read(self) -> Load | None:
        """Return the load without them."""
        load, checks = self._adapter.read(), len(self._asking)
        if load is None or load.capacity is None or not checks:
            return load
        outstanding = max(0, load.queued + load.active - checks)
        active = min(outstanding, load.capacity)
        return load._replace(queued=outstanding - active, active=active)

    def __repr__(self) -> str:
        return repr(self._adapter)


def room_to_start_with(limits: Limits) -> None:
    """Raise :exc:`ValueError` if it is known already that a gate of these limits has no room.

    Not in a process that a server makes when it has long been there, with other settings than it
    began with: gunicorn would end its master. There the first call says what is wrong.
    """
    server = find_early()
    if server is not None and server.threads is not None:
        wrong = too_few(limits, server.threads, server.name, server.start)
        if wrong is not None and not is_late():
            raise ValueError(wrong)


def briefly(body: Iterable[bytes]) -> Iterable[bytes]:
    """Return a body that holds no slot any more, for a caller that may keep it for ever.

    That is what test clients do with a response that a test does not close. They call the app in
    their own thread, so that whoever waited for such a slot would wait for itself.
    """
    if isinstance(body, Held):
        body.release()
    return body
