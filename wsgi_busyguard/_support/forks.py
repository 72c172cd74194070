"""What is set right in a child process, in an order that is written down here.

Of all threads only the one that forked is in the child; any other may have held a lock, or been in
the middle of something. Knows the order; nothing of what is set right.
"""

from __future__ import annotations

import os
from enum import IntEnum
from itertools import count
from typing import TYPE_CHECKING

from .log import logger
from .weak_calls import weakly

if TYPE_CHECKING:
    from collections.abc import Callable

    Reset = Callable[[], object]


class Stage(IntEnum):
    """What comes before what; within a stage, what was registered first."""

    #: Each thing by itself: locks that another thread may have held, what others were in the middle
    #: of, sockets that are the parent's. Calls nothing that may not have been here yet.
    OWN = 0
    #: The child may be another server than its parent. Every lock is whole by now.
    SERVER = 1
    #: Threads begin again. Everything that they may use is whole by now.
    THREADS = 2


_resets: list[dict[int, Callable[[], Reset | None]]] = [{} for _ in Stage]
_numbers = count()


def after_fork(stage: Stage, reset: Reset) -> None:
    """Have ``reset`` be called in every child process from now on, at its stage.

    A bound method is forgotten with its object.
    """
    resets, number = _resets[stage], next(_numbers)
    # Popped, which is one step: an object may be collected while another one is registered.
    resets[number] = weakly(reset, lambda _: resets.pop(number, None))


def _after_fork_in_child() -> None:
    failed: list[tuple[object, BaseException]] = []
    for stage in Stage:
        for reference in list(_resets[stage].values()):
            reset = None
            # Whatever is raised here, also by a signal handler, is to keep nothing else from being
            # set right: a lock of the parent's would be held for ever.
            try:
                reset = reference()
                if reset is not None:
                    reset()
            except BaseException as error:
                failed.append((reset, error))
    for broken, raised in failed:  # now, for a handler of the log may use what was not yet whole
        logger.error("%r raised after a fork", broken, exc_info=raised)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
