"""SIGTERM and Ctrl-C, for servers that stop hard by themselves."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .threaded import ThreadedFront

USUAL: dict[int, Any] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}


@contextmanager
def draining_at_signals(front: ThreadedFront, grace: float) -> Iterator[None]:
    """Drain at SIGTERM and Ctrl-C; the second of them does what it always did.

    Only in the main thread, and only where nobody else has said what these signals do.
    """
    found = [number for number, usual in USUAL.items() if signal.getsignal(number) == usual]
    taken = found if threading.current_thread() is threading.main_thread() else []

    def give_back() -> None:
        for number in taken:
            signal.signal(number, USUAL[number])

    def drain(*_: object) -> None:
        front.drain(grace)
        give_back()

    for number in taken:
        signal.signal(number, drain)
    try:
        yield
    finally:
        give_back()
