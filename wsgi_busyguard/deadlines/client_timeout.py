"""How long a client waits, as it says itself in a header. Reads no clock.

Milliseconds, as in ``X-Client-Timeout-Ms`` or Envoy's ``x-envoy-expected-rq-timeout-ms``; or a
number and a unit, as in ``grpc-timeout`` (the protocol's page, "Requests").
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from .._support.request_head import header_key
from .clock_skew import QueueHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9, "": 1e-3}

# Nobody looks at a page that takes longer.
LONGEST_SECONDS = 600.0

# Several values are a proxy's doing, and they are few.
LONGEST_HEADER = 100

_VALUE = re.compile(r"([0-9]{1,8})([HMSmun]?)")  # gRPC allows eight digits


class Client(NamedTuple):
    """What a request tells of its client: seconds it has waited, seconds it waits in all."""

    ago: float
    patience: float


def patience(header: str) -> float | None:
    """Return how many seconds a client waits in all, or ``None`` if the header does not say.

    Of several values the smallest counts. At most 600 s; 0 says nothing, and so does a header of
    more than 100 characters.
    """
    if len(header) > LONGEST_HEADER:
        return None
    matches = [match for value in header.split(",") if (match := _VALUE.fullmatch(value.strip()))]
    seconds = [min(int(match[1]) * UNITS[match[2]], LONGEST_SECONDS) for match in matches]
    return min((value for value in seconds if value > 0), default=None)


def client_reader(
    client_timeout: float, header: str | None, trust_queue_header: bool, is_idle: Callable[[], bool]
) -> Callable[[Mapping[str, Any]], Client] | None:
    """Return a function that says what a request tells of its client; ``None`` to ask nobody.

    :param client_timeout: seconds for those who do not say.
    :param header: where the client says how long it waits.
    :param trust_queue_header: whether a proxy is trusted to tell how long a request has waited.
    :param is_idle: returns whether nobody needs to wait here.
    """
    if header is None and not trust_queue_header:
        return None
    key = None if header is None else header_key(header)
    queue_header = QueueHeader(is_idle, client_timeout) if trust_queue_header else None

    def read(environ: Mapping[str, Any]) -> Client:
        ago = 0.0
        if queue_header is not None:
            ago = queue_header.ago(environ, environ.get("REMOTE_ADDR", ""))
        value = None if key is None else environ.get(key)
        own = patience(value) if isinstance(value, str) else None
        return Client(ago, client_timeout if own is None else own)

    return read
