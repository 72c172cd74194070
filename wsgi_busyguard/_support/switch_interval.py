"""The turns that threads take at the interpreter, which can be shorter for a while.

A thread that has let go of the interpreter, as at each system call, gets it back when another one's
turn is over: after 5 ms, if that computes. A server's loop makes some ten system calls for a
connection, so it takes in no more than twenty a second beside a single thread that computes, and a
check takes a twentieth of a second. By shorter turns it takes in what comes. It costs some 10 us
each time that the interpreter changes hands, and it only does when somebody asks for it.

They are the whole process's, and anybody may set them.
"""

from __future__ import annotations

import sys

SHORT_SECONDS = 0.0002


class SwitchInterval:
    """Shortens the turns, and gives back those that there were before. For one thread at a time.

    Several of these may want different turns: whoever wants short ones says so again and again.
    What somebody else has set meanwhile stays.
    """

    def __init__(self) -> None:
        self._before: float | None = None

    def shorten(self) -> bool:
        """Have turns be short from now on; return whether they were not."""
        turn = sys.getswitchinterval()
        if turn <= 2 * SHORT_SECONDS:
            return False
        self._before = turn
        sys.setswitchinterval(SHORT_SECONDS)
        return True

    def restore(self) -> bool:
        """Have turns be as before they were shortened here; return whether they were."""
        before, self._before = self._before, None
        if before is None or sys.getswitchinterval() > 2 * SHORT_SECONDS:
            return False
        sys.setswitchinterval(before)
        return True

    def __del__(self) -> None:
        self.restore()
