"""``busy`` and ``free``: Django's signals for what a guard's ``on_busy`` and ``on_free`` tell.

Receivers get ``sender``, the class :class:`~wsgi_busyguard.Monitor`, and ``transition``, a
:class:`~wsgi_busyguard.Transition`. One that raises is logged, and the others are called.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from django.dispatch import Signal

from ..._support.locks import owned_lock, under
from ...monitor import Monitor

if TYPE_CHECKING:
    from ...load import Transition

_lock = owned_lock()
_unheard: weakref.WeakSet[Monitor] = weakref.WeakSet()  # nobody listens to these yet


class StateSignal(Signal):
    """A signal that listens to the monitors as soon as it has a receiver.

    Not before: to notice, a monitor may have to look at its server four times a second.
    """

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Connect a receiver; see :meth:`django.dispatch.Signal.connect`."""
        super().connect(*args, **kwargs)
        _listen()


busy = StateSignal()
free = StateSignal()


def watch(monitor: Monitor) -> None:
    """Have the signals tell of ``monitor``."""
    under(_lock, _unheard.add, monitor)
    if busy.receivers or free.receivers:
        _listen()


def _listen() -> None:
    for monitor in under(_lock, _all_unheard):
        monitor.on_busy(partial(_send, busy))
        monitor.on_free(partial(_send, free))


def _all_unheard() -> list[Monitor]:
    """Return them, and have them be heard from now on. Requires _lock."""
    monitors = list(_unheard)
    _unheard.clear()
    return monitors


def _send(signal: Signal, transition: Transition) -> None:
    signal.send_robust(sender=Monitor, transition=transition)
