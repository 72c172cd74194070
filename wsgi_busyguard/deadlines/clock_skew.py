"""How long a request has waited in the proxy, though the proxy's clock is not this machine's.

A proxy's header says when the request came, by the proxy's clock; how long ago that was is read
from the clock here. Where the two differ, every request seems older than it is by the difference.
So an age that all requests of a proxy have while this server has nothing to do is no wait.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from .queue_header import AHEAD_SECONDS, proxied, queued_here

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Requests that must have been older than their proxy's offset, one after the other while the server
# was idle, before it grows: more than a browser asks for at once, so that one that comes after a
# pause of the proxy does not teach it.
ENOUGH_REQUESTS = 20

# Proxies that have an offset each. Where servers give the client's address for the proxy's, as
# behind nginx's uwsgi_params, there are more addresses than proxies; those that come later share
# one offset.
MOST_PEERS = 16


class Offset:
    """What is taken off the ages that one proxy's requests seem to have.

    Nobody has waited for less than nothing, so it is never more than the least age of all. It only
    grows while the server is idle: when the server is full requests do wait in the proxy.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._least = math.inf  # of the ages since it was last changed
        self._idle = 0  # how many of these came to an idle server

    def take(self, age: float, idle: bool, implausible: float) -> float:
        """Return what is left of an age, and learn from it.

        :param idle: whether the server has nothing to do, so that nobody should have waited.
        :param implausible: seconds for which nobody waits for an idle server: a clock is wrong.
        """
        beyond = age - self.seconds
        if beyond < 0:  # by a little it was too much; by more, a clock was set or it never was true
            self._change(age if beyond > -AHEAD_SECONDS or age >= implausible else 0.0)
        elif idle and beyond >= implausible:
            self._change(age)
        else:
            self._least = min(self._least, age)
            self._idle += idle
            if self._idle >= ENOUGH_REQUESTS:
                self._change(self._least)
        return max(0.0, age - self.seconds)

    def _change(self, seconds: float) -> None:
        self.seconds = seconds
        self._least = math.inf
        self._idle = 0


class QueueHeader:
    """Says how long requests have waited before they came here, by the headers of proxies.

    :param is_idle: whether the server has nothing to do.
    :param client_timeout: seconds after which clients give up.
    :param wall: seconds since 1970.

    Called in any thread. Two that learn at once may lose what one of them saw; the next request
    says it again.
    """

    def __init__(
        self,
        is_idle: Callable[[], bool],
        client_timeout: float,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._is_idle = is_idle
        self._implausible = client_timeout
        self._wall = wall
        self._offsets: dict[str, Offset] = {}

    def ago(self, headers: Mapping[str, Any], peer: str) -> float:
        """Return how many seconds a request has waited; 0.0 if nobody says.

        :param headers: as environ has them.
        :param peer: the address that it came from.
        """
        now = self._wall()
        here = queued_here(headers, now)  # by this machine's own clock
        age = proxied(headers, now)
        if age is None:
            return here
        if peer not in self._offsets and len(self._offsets) >= MOST_PEERS:
            peer = ""
        offset = self._offsets.get(peer) or self._offsets.setdefault(peer, Offset())
        return max(here, offset.take(age, self._is_idle(), self._implausible))
