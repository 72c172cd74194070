"""The gate: at most N requests in the application at once, and a bounded queue in front of it.

Nothing in ``gate.py``, ``queue.py`` and ``slots.py`` knows a server, a request or HTTP.
``gated_app.py`` puts a WSGI app behind a gate; ``dry_run.py`` only counts what a gate would refuse.

What is promised
----------------

- Never more than ``slots`` are inside. A slot is free, or has one holder; whoever leaves it may not
  touch it again, for others will hold it.
- First come, first served. No request waits while a slot is free.
- Fewer than ``slots`` may be in circulation (:meth:`Gate.resize`): one that is too many lies aside
  when its holder has left, and nobody inside is sent out. What its holders counted stays counted.
- At most as many wait as the :class:`~wsgi_busyguard.policy.Discipline` says, never more than
  ``max_queue``, and none gets in that has waited for longer than it says (unless it had when it
  came, and found a slot free). It says so when a request joins the queue, or is at its head; when
  an overload begins, those who stand beyond its length are refused, the oldest first.
- A burst is served, an overload is refused: the discipline is tight only while there is no place
  to spare, and no queue header, drain or single refusal makes it so.
- Every request ends up in exactly one count: served, refused (with the reason), or dropped (its
  client had left).
- A slot always comes back, whatever is raised, and wherever.

States
------

A request that comes is *inside* at once if a slot is free and nobody waits. Otherwise it has a
:class:`Ticket` in the queue, which gets one outcome, once: a :class:`Slot` (inside), or a
:class:`~wsgi_busyguard.policy.Reason` (refused). Whoever has a ticket may also withdraw it while it
has no outcome. From inside, a request leaves (served) or forfeits its slot (it has not run).

Who may call from where
-----------------------

Threads call :meth:`Gate.enter` and :meth:`Gate.leave`. Event loops, which cannot wait, use tickets
with :meth:`Gate.offer`, :meth:`Gate.withdraw` and :meth:`Gate.expire`. Both may be mixed, and every
method may be called from any thread. A finalizer calls :meth:`Gate.abandon` only, a signal handler
:meth:`Gate.drain` only. Tickets are woken and listeners called outside the lock.

Why nobody waits for ever
-------------------------

Free slots lie in one deque, tickets in another. Taking or returning a slot is one atomic
operation and needs no lock while nobody waits. A request about to wait first joins the queue and
then looks for a free slot once more; one that leaves first returns the slot and then looks at the
queue. Whichever order these four steps fall into, one of the two sees the other, and slots are
handed over under the lock.

Why a finalizer may leave
-------------------------

A body that was never closed leaves when it is collected. That may interrupt any line of the gate,
one that holds the lock among them. So the thread that has the lock can take it again; a finalizer
sees that it has interrupted a holder and leaves the rest to it; and everybody looks once more,
after letting go, for what an interruption left undone.

Why no slot is lost
-------------------

An exception may arise between any two steps of Python's: a signal handler raises (an app that
limits its time by SIGALRM has one), or a thread is told to by another. Between taking a slot and
noting that it is taken no ``finally`` helps, and what is called in a ``finally`` may be
interrupted before its first step. But somebody refers to a slot at every moment: whoever has it,
or the deque of those that are free. The gate itself refers to no slot that is taken. So one that
nobody refers to any more is lost; that is noticed, and its place gets another slot.
"""

from __future__ import annotations

from .gate import Gate
from .queue import Ticket
from .slots import Slot
from .thread_wait import Refused

__all__ = [
    "Gate",
    "Refused",
    "Slot",
    "Ticket",
]
