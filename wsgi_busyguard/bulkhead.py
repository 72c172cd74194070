"""Bulkheads: how many requests may be in calls to one outside service at once.

While a service hangs, each request that calls it holds a slot for as long as it waits, and soon
holds them all. Behind a bulkhead such requests hold half of them, and the others fail at once, so
that their views answer something cheaper. Nothing here waits, and nothing here knows HTTP.

Who is inside
-------------

``_held`` says who has a place and since when, in the order in which they came. To add to it, to
take from it and to ask for its length is one step each, so the usual way takes no lock: who finds
itself beyond the limit steps back and asks again under the lock, one after the other. ``with``
gives its object nothing to remember a call by, so a place is known by the frame that has it: its
own, whichever thread or greenlet runs it. A frame that ended without giving its place back (a
signal handler may raise where no ``finally`` helps) is noticed when the bulkhead is full.

When it shuts
-------------

By *slowness*, and never by errors that come fast: see :mod:`wsgi_busyguard.deadlines.slowness`.
Then one call at a time is let through as a probe, after 1, 2, 4 ... 30 s; two good ones open it.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
import time
import weakref
from collections import deque
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ._support.context_decorator import inside
from ._support.forks import Stage, after_fork
from ._support.frames import has_ended
from ._support.locks import owned_lock, under
from ._support.log import logger
from ._support.unpatched import elsewhere
from .board.bulkheads import post_bulkheads_of
from .deadlines import current_guard as guards
from .deadlines.deadline import NotMade, call_timeout, current_deadline
from .deadlines.slowness import Running, Slowness, fill_their_part, is_timeout, too_late
from .load import SMOOTHING
from .load_report import bulkhead_text
from .options import is_disabled
from .policy import calls_at_most, places, seconds, service_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from .load_report import BulkheadFigures

F = TypeVar("F", bound="Callable[..., Any]")

_frame = sys._getframe

QUICK_SECONDS = 0.05  # a call that took less is neither slow nor cut by anything
LOG_INTERVAL_SECONDS = 10.0  # between two lines that say that a bulkhead is full


class BulkheadFull(NotMade):
    """Raised in place of a call: no place is free for it, or the service is too slow."""


class Bulkhead:
    """Lets at most half of a guard's slots be in calls to one outside service, and never waits.

    :param name: of the service, for people.
    :param at_most: how many at once, whatever the slots are, and outside of requests, too.
    :param share: which part of the slots, if not half.
    :param slow: seconds from which on a call is slow. Half of the timeout if not given, see
        :meth:`timeout`; half of the guard's client timeout where there is none.
    :param clock: monotonic seconds.
    :raises ValueError, TypeError: for what is not valid.

    ``with rates:``, ``@rates``, or the deadline clients' ``bulkhead=``. Outside of a request a
    bulkhead without ``at_most`` lets everything through and counts nothing. Several places of one
    function's call are one. In a child process every place is free. From any thread or greenlet.
    """

    def __init__(
        self,
        name: str,
        *,
        at_most: int | None = None,
        share: float | None = None,
        slow: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self._clock = service_name(name), clock
        self._service = Slowness()
        self._given: dict[str, Any] = {"at_most": at_most, "share": share, "slow": slow}
        self.set(**self._given)  # says what is wrong
        self.set(**{**self._given, **_settings.get(name, {})})
        self._logged, self._is_off = -math.inf, is_disabled()
        self._news: deque[str] = deque()
        self._begin()
        _known[next(_numbers)] = self
        after_fork(Stage.OWN, self._begin)

    def _begin(self) -> None:
        """Have nobody inside, as in a new process. What is known of the service stays."""
        self._held: dict[Any, float] = {}  # since when
        self._deeper: dict[Any, int] = {}  # frames that came in again, how often
        self._service.probe = None
        self._made = self._refused = self._slow = 0
        self._fresh, self._usual, self._depth = -math.inf, 0.0, 0  # what the usual way goes by
        self._half = math.inf  # of the slots, which all bulkheads share
        self._others: tuple[dict[Any, float], ...] = ()
        self._code = Bulkhead.__enter__.__code__

    def set(
        self, *, at_most: int | None = None, share: float | None = None, slow: float | None = None
    ) -> None:
        """Have these settings from now on; see the class."""
        self._at_most, self._share = places(at_most, share)
        self._service.given = None if slow is None else seconds("slow", slow)
        self._limit = calls_at_most(None, at_most, self._share)
        self._fresh = -math.inf

    def timeout(self, at_most: float) -> float:
        """Return what the client has left for such a call, at most so many seconds, or raise."""
        self._service.expect(at_most)
        return call_timeout(at_most) or at_most

    def __enter__(self) -> Bulkhead:
        """Take a place.

        :raises BulkheadFull: if there is none.
        """
        frame, held = _frame(1), self._held
        if frame in held:
            self._deeper[frame] = self._deeper.get(frame, 0) + 1
            return self
        # Nothing can be raised after the block here without the place being given back, and a
        # "with" that has not begun is not ended.
        try:
            now = self._clock()
            try:
                if now < self._fresh and _frame(self._depth).f_code is self._code:
                    held[frame] = now
                    n = len(held)
                    if n <= self._limit and (
                        n == 1 or now - next(iter(held.values())) < self._usual
                    ):
                        for other in self._others:
                            n += len(other)
                        if n <= self._half:
                            return self
                    del held[frame]
            except (ValueError, RuntimeError) as error:
                # No stack so deep; one came or left meanwhile. A signal handler's is not ours.
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise
                held.pop(frame, None)
            self._admit(frame, now, frame, usual=True)
            return self
        except BaseException:
            held.pop(frame, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        frame = _frame(1)
        if self._deeper and frame in self._deeper:
            self._deeper[frame] -= 1
            if not self._deeper[frame]:
                del self._deeper[frame]
            return
        since = self._held.pop(frame, None)
        if since is None:  # outside of a request
            return
        now, service = self._clock(), self._service
        took = now - since
        if took < QUICK_SECONDS and kind is None and service.shut is None:
            # Of two threads that do this at once one may lose its sample; a mean can bear that.
            mean = service.mean
            service.mean = took if mean is None else mean + (took - mean) * SMOOTHING
            self._made += 1
            service.good.append(now)
        else:
            self._ended(frame, since, took, error)

    def __call__(self, function: F) -> F:
        """Decorate a function: each call has a place; a generator while it is iterated."""
        return cast("F", inside(self, function))

    def take(self, at_most: float | None = None) -> Place:
        """Take a place that is given back by hand, or when nobody has it any more.

        :param at_most: the timeout of the call, if it has one.
        :raises BulkheadFull: if there is none.
        """
        if at_most:
            self._service.expect(at_most)
        place = Place(self)
        self._admit(place.key, self._clock(), _frame(1))
        return place

    def figures(self) -> BulkheadFigures:
        """Return how it is now."""
        now, shut, limit = self._clock(), self._service.shut, self._limit
        sinces = list(self._held.values())
        return {
            "name": self.name,
            "inside": len(sinces),
            "at_most": None if limit == math.inf else int(limit),
            "oldest": round(now - min(sinces), 3) if sinces else 0.0,
            "shut_for": None if shut is None else round(now - shut.since, 3),
            "made": self._made,
            "slow": self._slow,
            "refused": self._refused,
        }

    def __repr__(self) -> str:
        return f"<Bulkhead {bulkhead_text(self.figures())}>"

    def _admit(self, key: Any, now: float, frame: FrameType, usual: bool = False) -> None:
        """Take a place, or raise.

        :param frame: from which a guard is looked for.
        :param usual: whether it is the one that called ``__enter__``.
        """
        found = guards.current_guard(frame)
        if self._is_off or (found is None and self._at_most is None):
            return
        slots = None
        if found is not None:
            slots = guards.slots_of(found.guard, now)
            self._service.client_timeout = guards.client_timeout_of(found.guard)
        full = under(_lock, self._place, key, now, slots)
        self._tell()
        if full:
            raise BulkheadFull(f"not called: {bulkhead_text(self.figures())}")
        if usual and self._service.shut is None and guards.is_only_guard():
            if self._at_most is not None:
                self._depth, self._code = 0, Bulkhead.__enter__.__code__
            elif found is not None and found.code is not None:
                self._depth, self._code = found.depth + 1, found.code
            else:
                return
            self._fresh = now + guards.FRESH_SECONDS

    def _place(self, key: Any, now: float, slots: int | None) -> bool:
        """Take a place; return whether that was not possible. Requires _lock."""
        held, service = self._held, self._service
        self._limit = limit = calls_at_most(slots, self._at_most, self._share)
        self._half = half = math.inf if slots is None else math.ceil(slots / 2)
        known = bulkheads()
        self._others = tuple(one._held for one in known if one is not self)
        self._usual = service.usual(now)
        if len(held) >= limit:
            self._sweep()
        if late := self._running(now).late:
            all_late = sum(one._running(now).late for one in known)
            hopeless = too_late(late, limit) or too_late(all_late, half)
            self._say(service.judge(now, late, hopeless, _jitter()))
        held[key] = now  # before it is counted, so that of two at once none is overlooked
        if not self._is_full(now, known):
            if service.shut is not None:
                service.probe = key
            return False
        held.pop(key, None)
        self._refused += 1
        if service.shut is None and now - self._logged >= LOG_INTERVAL_SECONDS:
            self._logged = now
            self._say("further calls fail at once")
        return True

    def _is_full(self, now: float, known: list[Bulkhead]) -> bool:
        """Return whether these are too many, the last one included. Requires _lock."""
        shut, full = self._service.shut, len(self._held) > self._limit
        if shut is not None:
            full = now < shut.probe_at or self._service.probe in self._held
        if full or sum(len(one._held) for one in known) <= self._half:
            return full
        each = [one._running(now) for one in known]
        return fill_their_part(self._running(now), each, self._half)

    def _say(self, news: str | None) -> None:
        """Have the log say what has changed, once no lock is held. Requires _lock."""
        if news is not None:
            self._fresh = -math.inf
            self._news.append(f"{bulkhead_text(self.figures())}; {news}")

    def _ended(self, key: Any, since: float, took: float, error: BaseException | None) -> None:
        """Take note of a call that has ended and may have been slow."""
        if isinstance(error, NotMade):
            return
        bad = took >= self._service.slow or is_timeout(error)
        if not bad and took >= QUICK_SECONDS:
            deadline = current_deadline()
            bad = deadline is not None and time.monotonic() >= deadline
        under(_lock, self._note, key, since + took, took, bad)
        self._tell()

    def _note(self, key: Any, now: float, took: float, bad: bool) -> None:
        """Count a call that has ended. Requires _lock."""
        self._made += 1
        self._slow += bad
        self._say(self._service.ended(key, now, took, bad, _jitter()))

    def _running(self, now: float) -> Running:
        """Return what runs now. Requires _lock."""
        return self._service.running(now, list(self._held.values()))

    def _sweep(self) -> None:
        """Take back the places of frames that are gone. Requires _lock."""
        for frame in list(self._held):
            if isinstance(frame, FrameType) and has_ended(frame):
                self._held.pop(frame, None)
                self._deeper.pop(frame, None)

    def _tell(self) -> None:
        with suppress(IndexError):
            while self._news:
                elsewhere(logger.warning, "bulkhead %s", self._news.popleft())


class Place:
    """A place in a bulkhead, until it is given back."""

    __slots__ = ("_bulkhead", "key")

    def __init__(self, bulkhead: Bulkhead) -> None:
        self._bulkhead = bulkhead
        self.key = object()  # what is kept in the bulkhead, so that this can be lost

    def give(self, error: BaseException | None = None) -> None:
        """Give it back; only the first call does anything. ``error`` is what the call raised."""
        bulkhead = self._bulkhead
        since = bulkhead._held.pop(self.key, None)
        if since is not None:
            bulkhead._ended(self.key, since, bulkhead._clock() - since, error)

    def __del__(self) -> None:
        """Give it back; as this may interrupt whatever has the lock, only what is sure counts."""
        bulkhead = self._bulkhead
        since = bulkhead._held.pop(self.key, None)
        if since is not None and not _lock._is_owned():
            took = bulkhead._clock() - since
            if took >= bulkhead._service.slow:
                under(_lock, bulkhead._note, self.key, since + took, took, True)


def bulkheads() -> list[Bulkhead]:
    """Return those of this process, by their names."""
    known = [one for ref in _known.valuerefs() if (one := ref()) is not None]
    return sorted(known, key=lambda one: one.name)


def report() -> list[BulkheadFigures]:
    """Return the figures of those; of several of one name the last one's."""
    return list({one.name: one.figures() for one in bulkheads()}.values())


def configure(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Give bulkheads these settings by their names, before those that the code gives them.

    :param settings: the keyword arguments of :class:`Bulkhead` by its name; for those that there
        are and those that will be.
    :raises ValueError, TypeError: for what is not valid.
    """
    for name, given in settings.items():
        Bulkhead(name).set(**given)  # says what is wrong
        one_limit = {"at_most": None, "share": None} if {"at_most", "share"} & {*given} else {}
        _settings[name] = {**one_limit, **given}
    for bulkhead in bulkheads():
        bulkhead.set(**{**bulkhead._given, **_settings.get(bulkhead.name, {})})


# A finalizer may come in the middle of what is done under it, so it has to know its owner.
_lock = owned_lock()
_known: weakref.WeakValueDictionary[int, Bulkhead] = weakref.WeakValueDictionary()
_numbers = itertools.count()
_random = random.SystemRandom()  # which children of a fork do not share, nor apps that seed theirs
_settings: dict[str, dict[str, Any]] = {}


def _jitter() -> float:
    """Return a factor by which processes do not all probe at once."""
    return _random.uniform(0.8, 1.2)


def _after_fork_in_child() -> None:
    global _lock
    _lock = owned_lock()


after_fork(Stage.OWN, _after_fork_in_child)
post_bulkheads_of(report)
