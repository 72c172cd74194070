"""HTTPX with timeouts that end when the client's patience does."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import httpx

from ..bulkhead import BulkheadFull
from ..deadlines.deadline import TooLate, call_timeout, current_deadline
from ..policy import duration
from .bulkheads import given_back_if_raised, known, taken
from .httpcore import Backend, Left

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..bulkhead import Bulkhead, Place


class NotBegun(httpx.ConnectTimeout, TooLate):
    """Raised in place of a call that would outlive the client it is for; an HTTPX timeout."""


class NoPlace(httpx.ConnectError, BulkheadFull):
    """Raised in place of a call for which its service's bulkhead has no place."""


class DeadlineTransport(httpx.BaseTransport):
    """Gives every call the time that the client has left, and never more than its timeout says.

    :param transport: what sends; HTTPX's own with its defaults if not given.
    :param least: what such a call takes at best. With less left it is not begun.
    :param bulkhead: holds a place for each call until its body is closed; ``True``: one per host.

    ``httpx.Client(transport=DeadlineTransport(), timeout=3.0)``. The timeout is, as HTTPX has it,
    for each wait; the client's deadline is for the whole call and the body, also one that is
    streamed. With a transport that is none of HTTPX's own the deadline is for each wait, too.
    """

    def __init__(
        self,
        transport: httpx.BaseTransport | None = None,
        *,
        least: float = 0.0,
        bulkhead: Bulkhead | bool | None = None,
    ) -> None:
        self._transport = _sends(transport)
        self._least = duration("least", least)
        self._bulkhead = known(bulkhead)
        if isinstance(self._transport, httpx.HTTPTransport):
            pool = self._transport._pool
            pool._network_backend = Backend(pool._network_backend)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, if there is time for an answer."""
        timeout = (request.extensions.get("timeout") or {}).get("read")
        _limit(request, self._least)
        refused = partial(NoPlace, request=request)
        place = taken(self._bulkhead, request.url.host, timeout, refused)
        with given_back_if_raised(place):
            response = self._transport.handle_request(request)
        if place is not None:
            response.stream = _Held(cast("httpx.SyncByteStream", response.stream), place)
        return response

    def close(self) -> None:
        """Close the transport."""
        self._transport.close()


class _Held(httpx.SyncByteStream):
    """A body that has a place in a bulkhead until it is closed."""

    def __init__(self, stream: httpx.SyncByteStream, place: Place) -> None:
        self._stream = stream
        self._place = place

    def __iter__(self) -> Iterator[bytes]:
        with given_back_if_raised(self._place):
            yield from self._stream

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._place.give()


def _sends(transport: httpx.BaseTransport | None) -> httpx.BaseTransport:
    """Return what requests are sent by, if it can send them."""
    if transport is None:
        return httpx.HTTPTransport()
    if isinstance(transport, type) or not hasattr(transport, "handle_request"):
        raise TypeError(f"transport must be one of HTTPX's, not {transport!r}")
    return transport


def _limit(request: httpx.Request, least: float) -> None:
    """Lower the timeouts of a request to what is left."""
    deadline = current_deadline()
    timeouts: dict[str, Any] = dict(request.extensions.get("timeout") or {})
    for kind in ("connect", "read", "write", "pool"):
        try:
            timeouts[kind] = call_timeout(timeouts.get(kind), least=least)
        except TooLate as late:
            raise NotBegun(str(late), request=request) from None
        if deadline is not None:
            timeouts[kind] = Left(timeouts[kind])
            timeouts[kind].deadline = deadline
    request.extensions = {**request.extensions, "timeout": timeouts}
