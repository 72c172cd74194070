"""``busyguard agent``: answers checks for the processes on a board, from a process of its own.

It shares no interpreter with those it speaks for, so it answers at once whatever they compute, and
knows what none of them can say of itself: that it makes no progress.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from .._support.usage_error import UsageError
from ..board.board import Board
from ..board.watcher import Watcher
from ..checkport.event_loop import Loop
from ..options import OPTIONS, GuardOptions
from .arguments import AGENT, add_options, read
from .ports import ports_of, say_where
from .usage_errors import usage_errors

if TYPE_CHECKING:
    import argparse

ENDING = (signal.SIGTERM, signal.SIGINT)

TAKEN = ("check", "agent", "ready", "patience", "stall_after")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``busyguard agent``."""
    parser.add_argument(
        "--board",
        required=True,
        metavar="FILE",
        help="the file that the server was given as its board; made if it is missing",
    )
    add_options(parser, [OPTIONS[name] for name in TAKEN])


def run(arguments: argparse.Namespace) -> int:
    """Answer until SIGTERM or Ctrl-C."""
    with usage_errors():
        options = GuardOptions(**read(AGENT, vars(arguments)))
        if options.check is None and options.agent is None:
            raise UsageError("give --check or --agent, or both: an address to answer at")
        board = Board(arguments.board)
    watcher = Watcher(board, stall_after=options.stall_after)
    ports = ports_of(watcher, options)
    # No handler: Python calls it when the main thread gets to it. One that has looked for signals
    # and has not begun to wait yet, because it hands the interpreter over, would wait for ever.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    # One thread for both, as the watcher has it.
    answering = Loop(*ports.values()).start()
    where = {what: port.address for what, port in ports.items()}
    say_where(f"watching the board {arguments.board}", where)
    signal.sigwait(ENDING)
    answering.stop()
    return 0
