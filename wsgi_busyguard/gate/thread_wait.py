"""How a thread waits at a gate."""

from __future__ import annotations

import math
import threading
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING

from ..policy import Reason
from .queue import Ticket
from .slots import Slot

if TYPE_CHECKING:
    from collections.abc import Callable

    from .gate import Gate


class Refused(Exception):
    """The gate did not let this one in; nothing has run."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def wait(gate: Gate, clock: Callable[[], float], ago: float) -> Slot:
    """Return a slot for which this thread has waited.

    :raises Refused: if there is none for it.
    """
    woken = threading.Lock()  # each waits at a lock of his own and is woken alone
    woken.acquire()
    ticket = Ticket(lambda _: woken.release(), ago)
    try:
        outcome = gate.offer(ticket) or _outcome(gate, clock, ticket, woken)
    except BaseException:  # raised into the wait, as gevent's timeouts are
        gate.withdraw(ticket)
        if isinstance(ticket.outcome, Slot):
            gate.forfeit(ticket.outcome)
        raise
    if isinstance(outcome, Slot):
        return outcome
    raise Refused(outcome)


def _outcome(
    gate: Gate, clock: Callable[[], float], ticket: Ticket, woken: threading.Lock
) -> Slot | Reason:
    """Wait until the ticket has its outcome or is too old for one."""
    left = gate.discipline.in_force.max_wait - (clock() - ticket.arrived)
    woken.acquire(timeout=-1 if left == math.inf else min(max(left, 0), TIMEOUT_MAX))
    gate.withdraw(ticket, Reason.QUEUE_AGE)
    return ticket.outcome or Reason.QUEUE_AGE
