"""Requests with timeouts that end when the client's patience does."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import ConnectTimeout, ReadTimeout
from urllib3 import Timeout
from urllib3.exceptions import ReadTimeoutError

from ..bulkhead import BulkheadFull
from ..deadlines.deadline import TooLate, call_timeout
from ..policy import duration, seconds
from .bulkheads import given_back_if_raised, known, taken
from .urllib3 import DeadlineTimeout
from .urllib3 import NotBegun as NoTime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from requests import PreparedRequest, Response

    from ..bulkhead import Bulkhead, Place


class NotBegun(ConnectTimeout, TooLate):
    """Raised in place of a call that would outlive the client it is for; a requests.Timeout."""


class NoPlace(NoConnection, BulkheadFull):
    """Raised in place of a call for which its service's bulkhead has no place."""


class CutShort(ReadTimeout, NoConnection):
    """Raised where a body takes too long: a requests.Timeout.

    Requests itself says ConnectionError here, and what handles that handles this.
    """


class DeadlineAdapter(HTTPAdapter):
    """Gives every call the time that the client has left, and never more than its own limit.

    :param at_most: seconds for calls that are made without ``timeout=``; ``None`` where it is the
        client alone who limits them. A ``timeout=`` of a call is a limit likewise. Both are, as
        Requests has it, for connecting and for each read; the client's deadline is for the whole
        call and the body, also one that is read later (``stream=True``).
    :param least: what such a call takes at best. With less left it is not begun.
    :param bulkhead: holds a place for each call until its body is read or closed; ``True``: one
        for each host.
    :param options: see :class:`requests.adapters.HTTPAdapter`.

    ``session.mount("https://", DeadlineAdapter(3.0))``. Where no deadline is known it limits to
    its own limit alone.
    """

    __attrs__ = (*HTTPAdapter.__attrs__, "at_most", "least", "bulkhead")

    def __init__(
        self,
        at_most: float | None = None,
        *,
        least: float = 0.0,
        bulkhead: Bulkhead | bool | None = None,
        **options: Any,
    ) -> None:
        self.at_most = at_most if at_most is None else seconds("at_most", at_most)
        self.least = duration("least", least)
        self.bulkhead = known(bulkhead)
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
        connect, read = _limits(self.at_most if timeout is None else timeout)
        limit: Any = DeadlineTimeout(connect, read, least=self.least)
        host, refused = urlsplit(request.url or "").hostname, partial(NoPlace, request=request)
        place = taken(self.bulkhead, host, read, refused)
        with given_back_if_raised(place):
            response = self._sent(request, stream, limit, *rest, **more)
        if place is not None:
            _hold(response.raw, place)
        return response

    def _sent(self, request: PreparedRequest, *arguments: Any, **more: Any) -> Response:
        try:
            return super().send(request, *arguments, **more)
        except NoTime as late:  # for a retry: no failure of a try, which Requests would know
            raise NotBegun(str(late), request=request) from late

    def build_response(self, req: PreparedRequest, resp: Any) -> Response:
        """Return a response whose body says that it took too long by Requests' own exception."""
        # Weakly: a response that is dropped unread returns its connection at once.
        resp.stream = partial(_stream, weakref.ref(resp))
        return super().build_response(req, resp)


def _limits(timeout: Any) -> tuple[Any, Any]:
    """Return the seconds for connecting and for a read, of all that Requests takes for a timeout.

    urllib3's own has a total, which is the most that either may take.
    """
    if isinstance(timeout, Timeout):
        total = timeout.total
        parts = ((timeout._connect, total), (timeout._read, total))
        known = ([one for one in pair if isinstance(one, (int, float))] for pair in parts)
        connect, read = (min(pair, default=None) for pair in known)
        return connect, read
    if not isinstance(timeout, tuple):
        return timeout, timeout
    if len(timeout) != 2:
        raise ValueError(f"timeout must be seconds, or a pair (connect, read), not {timeout!r}")
    return timeout


def _hold(raw: Any, place: Place) -> None:
    """Have an answer of urllib3's keep a place until it lets go of its connection."""
    # Weakly: one that is dropped unread is to go at once.
    reference = weakref.ref(raw)

    def released() -> None:
        try:
            answer: Any = reference()
            type(answer).release_conn(answer)
        finally:
            place.give()

    raw.release_conn = released


def _stream(reference: weakref.ref[Any], *args: Any, **more: Any) -> Iterator[bytes]:
    answer: Any = reference()
    try:
        yield from type(answer).stream(answer, *args, **more)
    except ReadTimeoutError as error:
        raise CutShort(error) from error
