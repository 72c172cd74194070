"""What a guard does at its next call: what has to wait until a process serves."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from .._support.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIEnvironment

    from .readers.sampling import SamplingAdapter


class Step:
    """What is done at the next call.

    :ivar work: is called with the environ; returns true if the call after that is to do it as well.
    :ivar failed: what to log if it raises.
    :ivar sampled: is told when that call begins and ends.
    """

    __slots__ = ("failed", "sampled", "work")

    def __init__(
        self,
        work: Callable[[WSGIEnvironment], object],
        failed: str,
        sampled: SamplingAdapter | None = None,
    ) -> None:
        self.work = work
        self.failed = failed
        self.sampled = sampled


class NextCall:
    """The steps of a guard's next call.

    :ivar steps: in their order; empty where there is nothing to do. Never another list.

    Several calls may come at once, and each does what it finds.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def does(self, work: Callable[[WSGIEnvironment], object], failed: str) -> object:
        """Have the next call do ``work`` with its environ; ``failed`` is logged if that raises.

        If it returns true the call after that does it as well. Returns what :meth:`is_next` takes.
        """
        step = Step(work, failed)
        self.steps.append(step)
        return step

    def time_next(self, sampled: SamplingAdapter) -> object:
        """Have the next call tell ``sampled`` when it begins and ends; return what is to be it."""
        step = Step(lambda _: None, "", sampled)
        self.steps.append(step)
        return step

    def is_next(self, step: object) -> bool:
        """Return whether the next call is the one that is to do this, or to be timed for it."""
        return step in self.steps

    def begin(self, environ: WSGIEnvironment) -> SamplingAdapter | None:
        """Do it all; return who is to be told when this call begins and ends."""
        timed = None
        for step in tuple(self.steps):
            again: object = False
            try:
                timed = timed or step.sampled
                again = step.work(environ)
            except Exception:  # guarding must never be the outage
                logger.exception(step.failed)
            finally:
                # Whatever is raised, an app's time limit say, no call after this one may fail so.
                if not again:
                    with suppress(ValueError):  # another one's call has done it, too
                        self.steps.remove(step)
        return timed
