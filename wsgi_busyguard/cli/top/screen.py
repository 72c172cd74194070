"""The terminal: drawn on when something is new, read for keys, given back as it was."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from .view import Order, columns, view

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .hosts import HostWatch

# Seconds within which a key, a new look or another size of the terminal is seen.
KEY_SECONDS = 0.1

QUIT = "qQ\x03\x1b"


def show(hosts: Sequence[HostWatch]) -> None:
    """Show how the hosts are until somebody quits."""
    console = Console(highlight=False)
    order = Order()
    for host in hosts:
        host.start()
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        drawn: object = None
        while True:
            seen = [host.seen for host in hosts]
            size = console.size
            now = ([one.number for one in seen], order, size)
            if now != drawn:
                drawn = now
                live.update(view(seen, order, size.width, size.height), refresh=True)
            for key in pressed():
                if key in QUIT:
                    return
                order = after(order, key, len(columns(len(hosts) > 1, size.width)))


def after(order: Order, key: str, count: int) -> Order:
    """Return the order after a key; there are so many columns."""
    if key in "sS":
        return order._replace(column=(order.column + 1) % count)
    if key in "tT":
        return order._replace(stacks=not order.stacks)
    return order


@contextlib.contextmanager
def _keys() -> Iterator[_Pressed]:
    """Have keys come one by one, unseen; they are those of a terminal or none."""
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):
        yield _Pressed()
        return
    tty.setcbreak(descriptor)
    try:
        yield _Pressed(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class _Pressed:
    """Waits for keys for a moment, and returns those pressed."""

    def __init__(self, *descriptors: int) -> None:
        self._descriptors = descriptors

    def __call__(self) -> str:
        ready, _, _ = select.select(self._descriptors, [], [], KEY_SECONDS)
        if not ready:
            return ""
        data = os.read(ready[0], 64)
        if not data:  # the terminal has gone
            return "q"
        # An arrow key is an escape and more; an escape alone is a key.
        return "" if len(data) > 1 and data[:1] == b"\x1b" else data.decode("ascii", "ignore")
