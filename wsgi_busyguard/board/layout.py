"""What the words on a board mean, and how the loads of several processes add up.

A value in, a value out: nothing here reads a clock, takes a lock or knows where the words are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..counters import CHECKS, NAMED, SECOND
from ..counters import LENGTH as COUNTED
from ..load import ACTS, LAG_FREE, LIMITED, ORIGINS, GuardLimits, Load
from ..policy import READY_POLICIES
from .bulkheads import COLUMNS as CALL_COLUMNS
from .bulkheads import COUNT_BITS
from .memory import OTHERS, text_in, text_words
from .table import OWNER

if TYPE_CHECKING:
    from collections.abc import Sequence

# Seconds between two beats of a process.
POST_SECONDS = 0.25

# What shares a word with the process id.
STARTING, READY, STOPPING, LOOP, CALLED = 1, 2, 4, 8, 16
THERE = STARTING | READY | STOPPING
# A process has one of them at a time. A word that nobody has posted may have several; then it is
# counted as ready by whoever sums, and so it is called.
STATES = {
    state: "ready" if state & READY else "stopping" if state & STOPPING else "starting"
    for state in range(1, THERE + 1)
}

# The columns after those of every table. Queued, active and capacity share a word, so that they
# always agree. Who waits is known by the moment since when, which goes on counting while the
# process is stuck.
BEAT, FIGURES, WAITING, SERVICE, LAG, LONGEST = range(2, 8)
LOAD_COLUMNS = LONGEST + 1  # the columns before this one are those that make a load

# The server of the process, and whether that is to drain; see draining.py.
SERVER = LOAD_COLUMNS

# What is in force in the guard of the process: slots now, slots at the most and how many may wait
# share a word; then three times; the words that say why; and at last what it does, the policy, and
# where each limit is from.
LIMITS = SERVER + 1
WHY_WORDS = 16
LIMIT_COLUMNS = LIMITS + 5 + WHY_WORDS

# The process's bulkheads, posted together with the limits; see bulkheads.py.
CALLS = LIMIT_COLUMNS

# What has been counted is added to what the row's last process left, so what a process counted
# outlives it, however it ended, and the sum over all rows never goes down. How much of it there was
# when its process came stands in BEFORE, for the counts that are shown by process.
CHECKED = len(CHECKS)
BEFORE = CALLS + CALL_COLUMNS
COUNTS = BEFORE + NAMED
ASKED = COUNTS + COUNTED
COLUMNS = ASKED + CHECKED

# The header's words. The state is how often it has changed: odd is busy. Of several processes that
# see one change at once it is noted by the one that gets the lock. The same goes for BUSY_FROM
# (written when busy begins: the moment, less all busy time before) and BUSY_FOR (written when it
# ends: the moment, less that). All others are only ever written, never read and written anew.
STATE, UNREADY, LAST_READY, EXPECTED, BUSY_FROM, BUSY_FOR, TOOK = range(OTHERS, OTHERS + 7)

# The last changes, each by its number: that, when (monotonic, and as the time of day), and the load
# that caused it.
CHANGES, CHANGE, RECENT = 16, 7, 16

LONGEST_NS = (1 << 63) - 1  # ns; nobody waits for that

# More are taken to be so many; as a capacity it is the unknown one.
MOST_REQUESTS = (1 << COUNT_BITS) - 1


def packed(load: Load, now: int) -> list[int]:
    """Return the words from ``FIGURES`` to ``LONGEST``; :exc:`ValueError` for figures below 0."""
    queued, active, capacity, waited, service, lag, longest = load
    if min(queued, active, capacity or 0, waited, service or 0, lag, longest) < 0:
        raise ValueError(f"expected no figure below 0, not {load!r}")
    room = MOST_REQUESTS if capacity is None else min(capacity, MOST_REQUESTS - 1)
    return [
        min(queued, MOST_REQUESTS) << 2 * COUNT_BITS
        | min(active, MOST_REQUESTS) << COUNT_BITS
        | room,
        max(1, now - int(waited * SECOND)) if waited else 0,
        0 if service is None else max(1, min(int(service * SECOND), LONGEST_NS)),
        min(int(lag * SECOND), LONGEST_NS),
        0 if longest == math.inf else max(1, min(int(longest * SECOND), LONGEST_NS)),
    ]


def packed_limits(limits: GuardLimits | None) -> list[int]:
    """Return the words from ``LIMITS`` on; the last one is 0 where nothing is known."""
    if limits is None:
        return [0] * (LIMIT_COLUMNS - LIMITS)
    bounds = 0
    for bound in (limits.slots, limits.at_most, limits.max_queue):
        bounds = bounds << COUNT_BITS | (
            MOST_REQUESTS if bound is None else min(int(bound), MOST_REQUESTS - 1)
        )
    times = limits.max_wait or 0, limits.client_timeout, limits.patience
    kinds = READY_POLICIES.index(limits.ready)
    for origin in limits.origins:
        kinds = kinds * len(ORIGINS) + ORIGINS.index(origin)
    kinds = kinds * (len(ACTS) + 1) + 1 + ACTS.index(limits.acts)
    nanoseconds = (int(min(time * SECOND, LONGEST_NS)) for time in times)
    return [bounds, *nanoseconds, *text_words(limits.why, WHY_WORDS), kinds]


def limits_in(words: Sequence[int]) -> GuardLimits | None:
    """Return the limits that these words stand for."""
    bounds, *nanoseconds, kinds = *words[:4], words[-1]
    kinds, acts = divmod(kinds, len(ACTS) + 1)
    if not acts:
        return None
    origins = []
    for _ in LIMITED:
        kinds, origin = divmod(kinds, len(ORIGINS))
        origins.append(ORIGINS[origin])
    if kinds >= len(READY_POLICIES):  # not from here: somebody else has written on the board
        return None
    slots, at_most, max_queue = (
        None if (bound := bounds >> shift & MOST_REQUESTS) == MOST_REQUESTS else bound
        for shift in (2 * COUNT_BITS, COUNT_BITS, 0)
    )
    max_wait, client_timeout, patience = (time / SECOND for time in nanoseconds)
    return GuardLimits(
        ACTS[acts - 1],
        slots,
        at_most,
        max_queue,
        max_wait or None,
        client_timeout,
        READY_POLICIES[kinds],
        patience,
        tuple(reversed(origins)),
        text_in(words[4:-1]),
    )


def change(number: int, at: int, wall: int, load: Load) -> list[int]:
    """Return the words of a change of state."""
    figures, _, service, lag, _ = packed(load, at)
    return [number, at, wall, figures, min(int(load.waited * SECOND), LONGEST_NS), service, lag]


def changed(words: Sequence[int]) -> tuple[int, int, int, Load]:
    """Return the number of a change, when it was, the time of day, and its load."""
    number, at, wall, figures, waited, service, lag = words
    room = figures & MOST_REQUESTS
    load = Load(
        figures >> 2 * COUNT_BITS,
        figures >> COUNT_BITS & MOST_REQUESTS,
        None if room == MOST_REQUESTS else room,
        waited / SECOND,
        service / SECOND if service else None,
        lag / SECOND,
    )
    return number, at, wall, load


def summed(columns: Sequence[Sequence[int]], rows: Sequence[int], now: int) -> Load:
    """Return the load of these rows together."""
    words = columns[FIGURES]
    figures = [words[row] for row in rows]
    capacities = [word & MOST_REQUESTS for word in figures]
    waiting = columns[WAITING]
    since = min([waiting[row] for row in rows if waiting[row]], default=now)
    return Load(
        sum([word >> 2 * COUNT_BITS for word in figures]),
        sum([word >> COUNT_BITS & MOST_REQUESTS for word in figures]),
        None if MOST_REQUESTS in capacities else sum(capacities),
        max(0, now - since) / SECOND,
        _service(capacities, [columns[SERVICE][row] for row in rows]),
        _lag(columns, rows, now),
        _longest([columns[LONGEST][row] for row in rows if words[row] >> 2 * COUNT_BITS]),
    )


def _service(capacities: list[int], services: list[int]) -> float | None:
    """Return the seconds that a request takes, from what all together get done in a second."""
    known = [
        (capacity, service)
        for capacity, service in zip(capacities, services, strict=True)
        if service and 0 < capacity < MOST_REQUESTS
    ]
    if not known:
        return None
    rate = sum([capacity / service for capacity, service in known])
    return min(round(sum([capacity for capacity, _ in known]) / rate), LONGEST_NS) / SECOND


def _longest(each: list[int]) -> float:
    """Return the seconds after which one is refused, wherever it waits."""
    return max(each) / SECOND if each and 0 not in each else math.inf


def _lag(columns: Sequence[Sequence[int]], rows: Sequence[int], now: int) -> float:
    """Return the lag of the process that is the least late: new requests go there.

    Where the beats do not come from the loop that takes requests in, only what was posted counts.
    """
    owners, beats, lags = columns[OWNER], columns[BEAT], columns[LAG]
    due = now - int(POST_SECONDS * SECOND)
    late = [max(lags[row], due - beats[row]) if owners[row] & LOOP else lags[row] for row in rows]
    lag = min(late) / SECOND
    return lag if lag >= LAG_FREE else 0.0
