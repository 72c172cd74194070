"""The board: shared memory in which the processes of a host post their loads.

What is promised
    Whichever process is asked gives the same answer: the sum over all that are ready. A process
    that is killed is out of it within a second. A look takes no lock and waits for nobody,
    whatever the others do, be they stopped in the middle of a store. Nothing here reaches a
    request: a process that finds no slot, no file or no lock serves on without, and tries again.

Why that holds
    A row belongs to one process, and only that one writes there. A word is stored in one go, and
    what has to agree (queued, active, capacity) shares a word. The few words that several
    processes read and write anew, the state and who owns a row, are changed under two locks
    (memory.py); whoever must not wait tries them, and a change that is not noted is noted by the
    next look.

The states of a process
    Nowhere, then starting (it has a slot), ready (it is summed up), stopping (it has work left),
    and nowhere again. It says so itself; others only take the row of a process that is gone, and
    see that by its beats and, once these are late, by its process id and its start.

Who may call from where
    Board and Publisher from any thread; Publisher's ready(), stopping() and leave() also in a
    signal handler. Watcher from one thread, which may be one in a process that must not block or
    log. A child that is forked has no slot until it joins.

From below: processes (is it there?), memory (file and locks), table (whose row is whose), layout
(what the words mean), board (the host), publisher (this process), membership (when it joins).
"""

from __future__ import annotations

from .board import Board, BoardFull
from .row import Row

__all__ = [
    "Board",
    "BoardFull",
    "Row",
]
