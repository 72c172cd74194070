"""HTTPX with timeouts that end when the client's patience does."""

from __future__ import annotations

from typing import Any

import httpx

from ..deadlines.deadline import TooLate, call_timeout


class NotBegun(httpx.ConnectTimeout, TooLate):
    """Raised in place of a call that would outlive the client it is for; an HTTPX timeout."""


class DeadlineTransport(httpx.BaseTransport):
    """Gives every call the time that the client has left, and never more than its timeout says.

    :param transport: what sends; HTTPX's own with its defaults if not given.
    :param least: what such a call takes at best. With less left it is not begun.

    ``httpx.Client(transport=DeadlineTransport(), timeout=3.0)``.
    """

    def __init__(self, transport: httpx.BaseTransport | None = None, *, least: float = 0.0) -> None:
        self._transport = transport or httpx.HTTPTransport()
        self._least = least

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, if there is time for an answer."""
        _limit(request, self._least)
        return self._transport.handle_request(request)

    def close(self) -> None:
        """Close the transport."""
        self._transport.close()


class AsyncDeadlineTransport(httpx.AsyncBaseTransport):
    """The same for ``httpx.AsyncClient``.

    An async view under WSGI runs in another thread, where the deadline is known if it is carried
    there: see :func:`wsgi_busyguard.deadlines.carrying`.
    """

    def __init__(
        self, transport: httpx.AsyncBaseTransport | None = None, *, least: float = 0.0
    ) -> None:
        self._transport = transport or httpx.AsyncHTTPTransport()
        self._least = least

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, if there is time for an answer."""
        _limit(request, self._least)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()


def _limit(request: httpx.Request, least: float) -> None:
    """Lower the timeouts of a request to what is left."""
    timeouts: dict[str, Any] = dict(request.extensions.get("timeout") or {})
    for kind in ("connect", "read", "write", "pool"):
        try:
            timeouts[kind] = call_timeout(timeouts.get(kind), least=least)
        except TooLate as late:
            raise NotBegun(str(late), request=request) from None
    request.extensions = {**request.extensions, "timeout": timeouts}
