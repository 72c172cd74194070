"""``busyguard agent``: answers checks for the processes on a board, from a process of its own.

It shares no interpreter with those it speaks for, so it answers at once whatever they compute, and
knows what none of them can say of itself: that it makes no progress.
"""

from __future__ import annotations

import signal
from queue import SimpleQueue
from typing import TYPE_CHECKING

from .._support.usage_error import Mistake
from ..board.board import Board
from ..board.watcher import Watcher
from ..checkport.event_loop import Loop
from ..checkport.ports import AgentPort, CheckPort, address, introduce
from ..haproxy import Push
from ..haproxy.runtime_api import targets
from ..policy import DAMPED, PATIENCE, READY_POLICIES, seconds
from .mistakes import opening, said_in_one_line
from .serve.command import add_push

if TYPE_CHECKING:
    import argparse

    from ..checkport.event_loop import Port
    from ..load import Load, State

STALL_AFTER = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``busyguard agent``."""
    add = parser.add_argument
    add(
        "--board",
        required=True,
        metavar="FILE",
        help="where the server's processes post their load; made if it is missing",
    )
    add("--check", metavar="ADDR", help="where checks are answered")
    add("--agent", metavar="ADDR", help="where HAProxy's agent-check is answered")
    policy = "what ready checks follow (%(default)s)"
    add("--ready", choices=READY_POLICIES, default=DAMPED, help=policy)
    bears = "seconds of delay that damped bears (%(default)s)"
    add("--patience", type=float, default=PATIENCE, metavar="S", help=bears)
    stuck = "seconds without progress after which all processes are stuck (%(default)s)"
    add("--stall-after", type=float, default=STALL_AFTER, metavar="S", help=stuck)
    add_push(add)


def run(arguments: argparse.Namespace) -> int:
    """Answer until SIGTERM or Ctrl-C."""
    listens = {"--check": arguments.check, "--agent": arguments.agent}
    with said_in_one_line():
        if listens == {"--check": None, "--agent": None}:
            raise Mistake("give --check or --agent, or both: an address to answer at")
        for listen in filter(None, listens.values()):
            address(listen)
        seconds("patience", arguments.patience)
        seconds("stall_after", arguments.stall_after)
        if arguments.push:
            targets(arguments.push)
        board = Board(arguments.board)
    watcher = Watcher(board, stall_after=arguments.stall_after)
    ports = _ports(watcher, arguments)
    # Not an Event: a signal may come while wait() has its lock, in the thread that set() would take
    # the same lock in, and then nothing ends this process any more. put() is made for that.
    told: SimpleQueue[None] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.put(None))
    # One thread for both, as the watcher has it.
    answering = Loop(*ports.values()).start()
    where = {what: port.address for what, port in ports.items()}
    print(
        f"watching the board {arguments.board}",
        *(f"{what}://{host}:{port}" for what, (host, port) in where.items()),
        sep="\n",
        flush=True,
    )
    # The loop's thread has a watcher of its own: one is for one thread.
    pushing = Push(Watched(Watcher(board)), arguments.push).start() if arguments.push else None
    told.get()
    answering.stop()
    if pushing is not None:
        pushing.stop()
    return 0


class Watched:
    """A watcher as a push knows a monitor: looked at, for it tells of no changes."""

    adapter = shared = None

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    @property
    def load(self) -> Load:
        """The load of the host now."""
        return self._watcher.load

    @property
    def draining(self) -> bool:
        """Whether the host is shutting down."""
        return self._watcher.draining

    @property
    def state(self) -> State:
        """The state of the host now."""
        return self._watcher.board.judge(self.load)

    def is_leader(self) -> bool:
        """Return whether this process speaks for the host."""
        return self._watcher.is_leader()

    def on_busy(self, listener: object) -> None:
        """Call nobody."""

    def on_free(self, listener: object) -> None:
        """Call nobody."""


def _ports(watcher: Watcher, arguments: argparse.Namespace) -> dict[str, Port]:
    """Return the ports that are asked for, by what is said of them."""
    ports: dict[str, Port] = {}
    if arguments.check is not None:
        with opening(arguments.check):
            port = CheckPort(watcher, arguments.check, arguments.ready, arguments.patience)
            ports["checks at http"] = port
    if arguments.agent is not None:
        with opening(arguments.agent):
            ports["agent at tcp"] = AgentPort(watcher, arguments.agent)
    introduce(ports.values())
    return ports
