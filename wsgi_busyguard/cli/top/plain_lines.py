"""A line a host, for what is no terminal: a log, a pipe, a script."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ...dashboard.history import rates
from ...dashboard.sentences import WRONG
from ...load_report import short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .hosts import HostLook, HostWatch

# Seconds between two rounds.
ROUND_SECONDS = 1.0


def tell(hosts: Sequence[HostWatch], once: bool) -> None:
    """Print a line a host, once or once a second, until interrupted."""
    with ThreadPoolExecutor(len(hosts), "top") as pool:
        due = time.monotonic()
        while True:
            for seen in pool.map(lambda host: host.look(), hosts):
                print(line(seen), flush=True)
            if once:
                return
            due = max(due + ROUND_SECONDS, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))


def line(seen: HostLook) -> str:
    """Return what a look has shown, and what is wrong, in one line."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if seen.shown is None:
        return f"{at} {seen.name} {seen.state}: {seen.why}"
    figures = {key: seen.shown[key] for key in ("queued", "active", "capacity", "delay")}
    served, refused = rates(seen.looks[-2:])
    figures |= {"served/s": served[-1], "refused/s": refused[-1]}
    parts = [f"{key}={_short(value)}" for key, value in figures.items() if value is not None]
    wrong = " ".join(sentence.text for sentence in seen.sentences if sentence.kind == WRONG)
    ready = "ready" if seen.shown["ready"] else "not-ready"
    return " ".join([at, seen.name, seen.state, ready, *parts, wrong]).rstrip()


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else short(value)
