"""urllib3 with timeouts that end when the client's patience does."""

from __future__ import annotations

from typing import Any

from urllib3 import Timeout
from urllib3.exceptions import ConnectTimeoutError

from ..deadlines.deadline import TooLate, call_timeout


class NotBegun(ConnectTimeoutError):
    """Raised in place of a call that would outlive the client it is for.

    No :exc:`TooLate` itself, which is an OSError: urllib3 takes those for lost connections.
    """


class DeadlineTimeout(Timeout):
    """A timeout for a pool or a call: what the client has left, and never more than is said.

    :param connect: seconds that connecting may take, as :class:`urllib3.Timeout` has it.
    :param read: seconds between two bytes of the answer.
    :param least: what such a call takes at best. With less left it is not begun.

    Asked anew for each attempt, so one object serves a whole pool, and retries have less and less:
    ``PoolManager(timeout=DeadlineTimeout(connect=1, read=3))``. As with any timeout of urllib3, an
    answer that comes byte by byte may take longer than the whole.
    """

    def __init__(self, connect: Any = None, read: Any = None, *, least: float = 0.0) -> None:
        super().__init__(connect=connect, read=read)
        self._least = least

    def clone(self) -> DeadlineTimeout:
        """Return a copy for one attempt, which has not begun."""
        return DeadlineTimeout(self._connect, self._read, least=self._least)

    @property
    def connect_timeout(self) -> Any:
        """The seconds that connecting may take now."""
        return self._left(super().connect_timeout)

    @property
    def read_timeout(self) -> Any:
        """The seconds that one read may take now."""
        return self._left(super().read_timeout)

    def _left(self, said: Any) -> Any:
        at_most = said if isinstance(said, (int, float)) else None
        try:
            left = call_timeout(at_most, least=self._least)
        except TooLate as late:
            raise NotBegun(str(late)) from late
        return said if left is None else left
