"""Notices that requests queue in a server, at no cost for those that come while none do.

A few times a second a thread has the next call look at the queue, and does no more than that: the
look is the calling thread's, which has just picked a request up. So whoever reads a server is
always called by it, and a process that nobody calls is not looked at.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .._support.machine import this_machine
from .._support.periodic import BEAT_SECONDS, Periodic
from .._support.switch_interval import SwitchInterval
from ..board.publisher import Publisher
from ..gate import Gate
from ..load import Shares
from .acceptqueue import AcceptQueueAdapter
from .readers.derived import DerivedAdapter
from .readers.gevent_pywsgi import PywsgiAdapter
from .readers.sampling import SamplingAdapter

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..gate.pickup import PickUp
    from ..load import Adapter, Load
    from .next_call import NextCall

# So many times in a row without a call, and the thread ends; the next call starts it again. Ten
# seconds: a process that is hardly called does not start a thread for each request.
IDLE_BEATS = 40

# Share of the processor time that Python code can have, from which on the server's own loop gets
# too little of the interpreter to take requests in: then nobody sees that they queue.
TAKEN_SHARE = 0.8


@runtime_checkable
class Divides(Protocol):
    """An adapter that reads a queue of which this process takes a share, and others the rest."""

    def portion(self) -> Load | None:
        """Return this process's figures, with its share of that queue."""


class CrowdWatch:
    """Has the next call look for a queue, as long as there are calls.

    :param pick_up: looks, and knows then whether there is a crowd.
    :param adaptive: whether threads take short turns at the interpreter while it is used up.
    """

    def __init__(self, pick_up: PickUp, next_call: NextCall, adaptive: bool = False) -> None:
        self._pick_up = pick_up
        self._next_call = next_call
        self._step: object = None  # what the next call does
        self._idle = 0  # beats without a call
        self._interval = SwitchInterval()
        self._usable = this_machine().usable if adaptive else math.inf
        self._had = (time.monotonic(), time.process_time())
        # Turns are as before at the end of the thread, too, which may just be shortening them.
        self._beats = Periodic(
            self._beat,
            BEAT_SECONDS,
            "busyguard-crowd",
            in_children=True,
            at_end=self._interval.restore,
        )

    @property
    def watches(self) -> bool:
        """Whether there is a queue that it looks at."""
        return self._pick_up.read is not None

    def watch(self, adapter: Adapter | None) -> None:
        """Look at the queue that ``adapter`` reads from now on; at none if it is ``None``."""
        if adapter is None or self._pick_up.is_off:
            self._pick_up.read = None
            self._beats.stop()
            self._interval.restore()
            return
        # What knows how long a request takes is not timed by it.
        if not isinstance(adapter, SamplingAdapter):
            adapter = SamplingAdapter(adapter, self._next_call)
        self._pick_up.read = adapter.read
        self._ask()
        self._beats.start()

    def counted(self, adapter: Adapter) -> Adapter:
        """Return what reads the same, and counts who was refused."""
        return DerivedAdapter(adapter.read, adapter, self._pick_up.counts)

    def _beat(self) -> None:
        self._take_turns()
        self._idle = self._idle + 1 if self._next_call.is_next(self._step) else 0
        if self._idle >= IDLE_BEATS:
            self._beats.stop()
        # Afterwards, for a call may have looked in between, and seen that the thread was there.
        self._ask()

    def _take_turns(self) -> None:
        """Have threads take short turns if the process has used the interpreter up of late."""
        (since, before), self._had = self._had, (time.monotonic(), time.process_time())
        now, had = self._had
        if had - before >= TAKEN_SHARE * self._usable * (now - since):
            self._interval.shorten()
        else:
            self._interval.restore()

    def _ask(self) -> None:
        if not self._next_call.is_next(self._step):
            self._step = self._next_call.does(self._look, "could not look at the queue")

    def _look(self, _: WSGIEnvironment) -> None:
        """Look, in a call's thread."""
        if self.watches and not self._beats.running:
            self._idle = 0
            self._beats.start()
        pick_up = self._pick_up
        pick_up.look()
        if pick_up.crowded:  # said again, for another thread may just have set up the contrary
            pick_up.changed()


def own_part(adapter: Adapter) -> Adapter | None:
    """Return what reads the queue that is this process's own; ``None`` if nothing does."""
    while isinstance(adapter, Publisher):  # it reads all processes
        adapter = adapter.adapter
    if isinstance(adapter, Divides):
        return DerivedAdapter(adapter.portion, adapter)
    # What waits in the kernel may be for several processes, and who knows how many. A gate refuses
    # by itself.
    others = (Shares, AcceptQueueAdapter, PywsgiAdapter, Gate)
    return None if isinstance(adapter, others) else adapter
