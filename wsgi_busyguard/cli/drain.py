"""``busyguard drain``: has every check of a host say draining, while its requests are served."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .._support.usage_error import UsageError
from ..board.board import Board
from .usage_errors import usage_errors

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``busyguard drain``."""
    parser.description = (
        "Tell the server whose processes are on a board to drain: from now on every check says"
        " draining, and requests are served as before. Wait until the balancers have taken the"
        " server out, then stop it. A server that is started anew does not drain."
    )
    parser.add_argument(
        "--board",
        required=True,
        metavar="FILE",
        help="the file that the server was given as its board",
    )
    off = "take it back: checks say again whether the server is free or busy"
    parser.add_argument("--off", action="store_true", help=off)


def run(arguments: argparse.Namespace) -> int:
    """Store it on the board, and print whom it reaches."""
    path = arguments.board
    with usage_errors():
        if not os.path.exists(path):
            raise UsageError(f"no board at {path!r}: name the file that the server was given")
        board = Board(path)
        pids = board.undrain() if arguments.off else board.drain()
    if arguments.off:
        print("no longer draining:", _processes(pids) if pids else "no process was")
        return 0
    if not pids:
        raise UsageError(f"no process is on the board {path!r}: there is nothing to drain")
    print("draining:", _processes(pids))
    return 0


def _processes(pids: list[int]) -> str:
    many = "process" if len(pids) == 1 else "processes"
    return f"{len(pids)} {many} ({', '.join(map(str, pids))})"
