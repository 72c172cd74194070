"""Requests with timeouts that end when the client's patience does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectTimeout

from ..deadlines.deadline import TooLate, call_timeout
from .urllib3 import DeadlineTimeout

if TYPE_CHECKING:
    from requests import PreparedRequest, Response


class NotBegun(ConnectTimeout, TooLate):
    """Raised in place of a call that would outlive the client it is for; a requests.Timeout."""


class DeadlineAdapter(HTTPAdapter):
    """Gives every call the time that the client has left, and never more than is said.

    :param at_most: seconds for calls that are made without ``timeout=``; ``None`` where it is the
        client alone who limits them. A ``timeout=`` of a call is a limit likewise.
    :param least: what such a call takes at best. With less left it is not begun.
    :param options: see :class:`requests.adapters.HTTPAdapter`.

    ``session.mount("https://", DeadlineAdapter(3.0))``. Where no deadline is known it limits to
    what is said alone.
    """

    __attrs__ = (*HTTPAdapter.__attrs__, "at_most", "least")

    def __init__(self, at_most: float | None = None, *, least: float = 0.0, **options: Any) -> None:
        self.at_most = at_most
        self.least = least
        super().__init__(**options)

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        *rest: Any,
        **more: Any,
    ) -> Response:
        """Send a request, if there is time for an answer."""
        try:
            call_timeout(least=self.least)
        except TooLate as late:
            raise NotBegun(str(late), request=request) from None
        said = self.at_most if timeout is None else timeout
        connect, read = said if isinstance(said, tuple) else (said, said)
        limit = DeadlineTimeout(connect, read, least=self.least)
        return super().send(request, stream, limit, *rest, **more)  # type: ignore[arg-type]
