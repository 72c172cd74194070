"""An app's request that takes every file descriptor, for the servers of these tests."""

from __future__ import annotations

import contextlib
import os
import time


def hoard(over):
    """Have every file descriptor that is left, say so by a folder, and wait for a file."""
    held = []
    while not os.path.exists(over):
        with contextlib.suppress(OSError):  # others let go of one now and then
            while True:
                held.append(os.open("/", os.O_RDONLY))
        time.sleep(0.005)
        os.makedirs(f"{over}.in", exist_ok=True)
    for descriptor in held:
        os.close(descriptor)
