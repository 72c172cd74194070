"""What sends figures on a timer: a thread of its own, which no request ever waits for.

Knows when to send and from which process. In which form, and to whom, is each sender's own.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from .._support.forks import Stage, after_fork
from .._support.listener import address
from .._support.log import Streak, logger
from .._support.periodic import Periodic
from ..policy import DAMPED, DAMPED_PATIENCE, seconds
from .report import look

if TYPE_CHECKING:
    from ..counters import Watched
    from ..load_report import KnowsBalancers, LoadReport

# What Graphite keeps at its finest by default, and when statsd flushes.
SEND_SECONDS = 10.0

# The longest pause between two attempts at a daemon that is not there.
LONGEST_RETRY_SECONDS = 60.0


class Sender:
    """Sends the figures of a guard every few seconds.

    :param monitor: a :class:`~wsgi_busyguard.Monitor`, or what watches several processes.
    :param to: where, as ``HOST:PORT``.
    :param every: seconds between two times.
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
        every: float = SEND_SECONDS,
        agent: KnowsBalancers | None = None,
    ) -> None:
        self.to = address(to)
        self._monitor = monitor
        self._agent = agent
        self._every = seconds("every", every)
        self._unsent = Streak()
        self._sending = Periodic(
            self._send_now,
            self._every,
            "busyguard-sender",
            in_children=True,
            at_end=self.close,
        )
        self._renew()
        after_fork(Stage.OWN, self._after_fork)

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
                self.send(look(self._monitor, self._agent, DAMPED, DAMPED_PATIENCE))
        except Exception as error:
            self.close()
            message = "cannot send to %r: %s; tried again until it can"
            self._unsent.failed(message, self, error, level=logging.WARNING)
            self._sending.pause = min(
                max(self._every, LONGEST_RETRY_SECONDS), 2 * self._sending.pause
            )
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
