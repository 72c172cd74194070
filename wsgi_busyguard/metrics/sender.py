"""What sends figures on a timer: a thread of its own, which no request ever waits for.

Knows when to send and from which process. In which form, and to whom, is each sender's own.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from typing import TYPE_CHECKING, TypeVar

from .._support.forks import Stage, after_fork
from .._support.listener import address
from .._support.log import Streak, logger
from .._support.periodic import Periodic
from ..board.row import HasRows
from ..monitor import ReadsSeveral
from ..policy import seconds
from .report import look

if TYPE_CHECKING:
    from ..counters import Watched
    from ..load_report import KnowsBalancers, LoadReport

# What Graphite keeps at its finest by default, and when statsd flushes.
SEND_SECONDS = 10.0

# The longest pause between two attempts at a daemon that is not there.
LONGEST_RETRY_SECONDS = 60.0

# What a part of a path may not be; a dot would begin the next part.
_OTHERS = re.compile(r"[^A-Za-z0-9_-]+")


def part(text: str) -> str:
    """Return ``text`` as one part of a path: ``web-1.example`` is ``web-1_example``."""
    return _OTHERS.sub("_", text).strip("_") or "_"


class Sender:
    """Sends the figures of a guard every few seconds.

    :param monitor: a :class:`~wsgi_busyguard.Monitor`, or what watches several processes.
    :param to: where, as ``HOST:PORT``.
    :param prefix: what the path of every figure begins with; ``{host}`` and ``{pid}`` are filled
        in. If not given, ``busyguard.{host}``, and the process's id behind that where no board
        knows all processes of the host, for each then sends for itself.
    :param every: seconds between two times.
    :param threadpool: the path behind the prefix under which the load is sent once more, by the
        names of the thread pool's figures of 2013: ``working``, ``queue``, ``waiters`` (idle
        threads) and ``threads``. Not sent if not given.
    :param agent: knows the balancers that ask.
    :raises ValueError, TypeError: for what is not valid.

    Where processes share a board one of them sends for all, and the next takes over when it is
    gone; each may start one. What cannot be sent is dropped, logged once until it can be
    again, and tried again with longer and longer pauses. After a fork the child goes on by itself.
    """

    def __init__(
        self,
        monitor: Watched,
        to: str,
        *,
        prefix: str | None = None,
        every: float = SEND_SECONDS,
        threadpool: str = "",
        agent: KnowsBalancers | None = None,
    ) -> None:
        self.to = address(to)
        if prefix is None:
            shared = monitor.shared if isinstance(monitor, ReadsSeveral) else None
            alone = shared is None and not isinstance(monitor, HasRows)
            prefix = "busyguard.{host}.{pid}" if alone else "busyguard.{host}"
        self._prefix = prefix
        self.prefix  # noqa: B018  # raises now for what cannot be filled in
        self._threadpool = threadpool
        self._monitor = monitor
        self._agent = agent
        self._every = seconds("every", every)
        self._unsent = Streak()
        send, end = self._send_now, self.close
        name = "busyguard-sender"
        self._sending = Periodic(send, self._every, name, in_children=True, at_end=end)
        self._renew()
        after_fork(Stage.OWN, self._after_fork)

    @property
    def prefix(self) -> str:
        """What every path begins with, in this process."""
        try:
            return self._prefix.format(host=part(socket.gethostname()), pid=os.getpid()).strip(".")
        except (LookupError, ValueError):
            raise ValueError(
                f"prefix may have {{host}} and {{pid}} in it and no other braces, not"
                f" {self._prefix!r}"
            ) from None

    def start(self: SomeSender) -> SomeSender:
        """Begin to send, on a thread of its own, and return itself."""
        if self._sending.wanted:
            raise RuntimeError("expected a sender that was not started: make one")
        self._renew()
        self._sending.start()
        return self

    def stop(self) -> None:
        """Send no more. Waits for nobody."""
        self._sending.stop()

    def send(self, shown: LoadReport) -> None:
        """Send these figures; :exc:`OSError` if that fails."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what is open, after what could not be sent and at the end."""

    def _send_now(self) -> None:
        """Send if it is this process's turn, and see to it when to send next."""
        try:
            if self._monitor.is_leader():
                self.send(look(self._monitor, self._agent))
        except Exception as error:
            self.close()
            message = "cannot send to %r: %s; tried again until it can"
            self._unsent.failed(message, self, error, level=logging.WARNING)
            longest = max(self._every, LONGEST_RETRY_SECONDS)
            self._sending.pause = min(longest, 2 * self._sending.pause)
            return
        self._sending.pause = self._every
        if self._unsent.over():
            logger.warning("sending to %r again", self)

    def _renew(self) -> None:
        """Begin as if nothing had been sent."""
        self._unsent.over()
        self._sending.pause = self._every

    def _after_fork(self) -> None:
        self.close()
        self._renew()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        host, port = self.to
        return f"<{type(self).__name__} at {host}:{port}>"


SomeSender = TypeVar("SomeSender", bound=Sender)
