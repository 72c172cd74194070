"""How a process of the demo talks with the one that started it: lines in, lines of JSON out.

Knows nothing of what the lines say.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def say(**figures: object) -> None:
    """Write one line of JSON to whoever started us."""
    # In one write: several threads may say something at once.
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def obey(command: Callable[[str], object]) -> None:
    """Call ``command`` with each line that comes, in a thread of its own; end when no more can.

    The pipe closes when the process that started us is gone, however it went.
    """
    threading.Thread(target=_obey, args=(command,), name="demo-obey", daemon=True).start()


def _obey(command: Callable[[str], object]) -> None:
    try:
        for line in sys.stdin:
            command(line.strip())
    finally:
        os._exit(0)  # stuck threads are what this demo is about: don't wait for any
