"""When a request arrived at the proxy, as the proxy's header says. Reads no clock.

A client can send such a header, too. So what cannot be is ignored, and of several values the
earliest counts: whoever adds one can only make his request older.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Where such a time may stand in an environ.
HEADERS = ("HTTP_X_REQUEST_START", "HTTP_X_QUEUE_START")

#: Where mod_wsgi says when the request came to this machine, by this machine's clock.
HERE = "mod_wsgi.queue_start"

# No proxy that is alive keeps a request for longer (New Relic's .NET agent has the same limit).
OLDEST_SECONDS = 600.0

# Two clocks that are kept by NTP differ by less; a time later than that is not from this request.
AHEAD_SECONDS = 1.0

# No request is from before 2000, so what would be is in another unit.
NOT_BEFORE = 946684800.0
UNITS = (1e9, 1e6, 1e3, 1.0)  # Render says ns, Apache us, Heroku ms, nginx s

# A proxy appends its own at the end; a client may have put any number in front of it.
MOST_VALUES = 8

_TIME = re.compile(r"[0-9]{9,20}(?:\.[0-9]{0,9})?")


def arrived(header: object, wall_now: float) -> float | None:
    """Return how many seconds ago a request arrived, or ``None`` if the header does not say.

    :param header: its value: ``t=1700000000.123``, ``1700000000123``, with or without ``t=``, in
        s, ms, us or ns, several with commas in between; or a float, as mod_wsgi 6 has it.
    :param wall_now: seconds since 1970.
    :returns: from 0 to 600.
    """
    if isinstance(header, float):
        return _ago(header, wall_now)
    if not isinstance(header, str):
        return None
    values = header.rsplit(",", MOST_VALUES)[-MOST_VALUES:]
    ages = [_seconds_ago(value, wall_now) for value in values]
    return max((ago for ago in ages if ago is not None), default=None)


def proxied(environ: Mapping[str, Any], wall_now: float) -> float | None:
    """Return how many seconds ago a request came to the first proxy that says so.

    ``None`` if none does. By two clocks: see :mod:`wsgi_busyguard.deadlines.clock_skew`.
    """
    ages = [arrived(environ.get(header), wall_now) for header in HEADERS]
    return max((ago for ago in ages if ago is not None), default=None)


def queued_here(environ: Mapping[str, Any], wall_now: float) -> float:
    """Return how many seconds ago a request came to this machine; 0.0 if nobody says."""
    return arrived(environ.get(HERE), wall_now) or 0.0


def _seconds_ago(value: str, wall_now: float) -> float | None:
    """Return what one value says; nginx writes ``t=...``, others ``server=a t=...``."""
    time = value.rpartition("t=")[2].strip()
    return _ago(float(time), wall_now) if _TIME.fullmatch(time) else None


def _ago(time: float, wall_now: float) -> float | None:
    for unit in UNITS:
        if time / unit >= NOT_BEFORE:
            ago = wall_now - time / unit
            return max(0.0, ago) if -AHEAD_SECONDS <= ago <= OLDEST_SECONDS else None
    return None
