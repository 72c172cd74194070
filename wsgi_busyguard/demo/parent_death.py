"""Become another program, one that dies with the process that started us.

``python parent_death.py PID PROGRAM ARGUMENT...``, with the id of that process. Our own programs
notice a closed pipe; HAProxy has no such habit, so the kernel is asked to see to it. Where it can't
(it is Linux's service), the demo still ends its children itself in every way of ending that lets it
do anything at all.
"""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); it outlives exec


def main(parent: int, command: list[str]) -> None:
    """Become ``command``, for as long as ``parent`` lives."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the kernel could know
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
