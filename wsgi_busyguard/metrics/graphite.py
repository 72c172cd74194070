"""The figures for Graphite and for StatsD, sent on a timer.

Plain text both: a line for each figure, over TCP to carbon, in datagrams to statsd.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from .figures import COUNTER, FIGURES, GAUGE, HISTOGRAM, TIME, Figure, Times
from .sender import Sender, part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..load_report import LoadKey, LoadReport

# Seconds in which a daemon has to take a connection, and then what is sent.
CONNECT_SECONDS = 5.0

# What fits into an Ethernet frame with the headers of IPv6 and UDP, as statsd recommends.
LONGEST_DATAGRAM = 1432

# The four figures of the thread pool of 2013, by their names then: threads at work, requests in its
# queue, threads that wait for one, and threads.
THREADPOOL: dict[str, LoadKey] = {
    "working": "active",
    "queue": "queued",
    "waiters": "idle",
    "threads": "capacity",
}


def flat(shown: LoadReport, threadpool: str = "") -> Iterator[tuple[str, str, float]]:
    """Yield each value with its path and its kind, a gauge or a counter.

    A histogram is the counters of its buckets, ``le_0_25`` and so on, each with all that are below
    it, ``count``, and ``sum``, in seconds.

    :param threadpool: the path of the figures of 2013; none for an empty one.
    """
    for figure in FIGURES:
        name = figure.name + ("_seconds" if figure.unit == TIME else "")
        for labels, value in figure.read(shown):
            path = _path(name, figure, labels)
            if figure.kind == HISTOGRAM:
                yield from ((f"{path}.{end}", COUNTER, n) for end, n in _parts(value))
            else:
                yield path, figure.kind, value
    if threadpool:
        for name, key in THREADPOOL.items():
            value = shown[key]
            if value is not None:
                yield f"{threadpool}.{name}", GAUGE, value


def _path(name: str, figure: Figure, labels: Iterable[str]) -> str:
    parts = [part(value) for value in labels]
    if figure.name.startswith("process_"):  # process.3.queued: all of one process together
        return ".".join(["process", *parts, name.removeprefix("process_")])
    return ".".join([name, *parts])


def _parts(times: Times) -> Iterator[tuple[str, float]]:
    below = 0
    for bound, count in zip(times.bounds, times.counts, strict=False):
        below += count
        yield f"le_{part(f'{bound:g}')}", below
    yield "count", sum(times.counts)
    yield "sum", times.total


class Graphite(Sender):
    """Sends the figures to carbon: a line of plain text for each, over one TCP connection.

    Counters are sent as they stand; Graphite's ``nonNegativeDerivative`` or ``perSecond`` makes
    rates of them. See :class:`~wsgi_busyguard.metrics.sender.Sender` for what it takes.
    """

    _connection: socket.socket | None = None

    def send(self, shown: LoadReport) -> None:
        """Send these figures, on a new connection if there is none or it has been closed."""
        begins, at = self.prefix, int(shown["at"])
        lines = [f"{begins}.{path} {n:.9g} {at}\n" for path, _, n in flat(shown, self._threadpool)]
        connection = self._connection
        if connection is None or _is_closed(connection):
            self.close()
            connection = self._connection = socket.create_connection(self.to, CONNECT_SECONDS)
        connection.sendall("".join(lines).encode())

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class StatsD(Sender):
    """Sends the figures to statsd: gauges as they are, counters by what they have grown.

    In datagrams, which nobody has to receive: a daemon that is gone costs nothing and is not
    noticed.
    """

    def _renew(self) -> None:
        super()._renew()
        self._before: dict[str, float] = {}

    def send(self, shown: LoadReport) -> None:
        """Send these figures; of counters nothing at first, for what they stood at was before."""
        lines, after = [], {}
        begins = self.prefix
        for path, kind, value in flat(shown, self._threadpool):
            if kind == GAUGE:
                lines.append(f"{begins}.{path}:{value:.9g}|g")
                continue
            after[path] = value
            grown = value - self._before.get(path, value)
            if grown > 0:
                lines.append(f"{begins}.{path}:{grown:.9g}|c")
        family, _, _, _, where = socket.getaddrinfo(*self.to, type=socket.SOCK_DGRAM)[0]
        with contextlib.closing(socket.socket(family, socket.SOCK_DGRAM)) as sender:
            for datagram in datagrams(lines):
                sender.sendto(datagram, where)
        self._before = after


def datagrams(lines: Iterable[str], longest: int = LONGEST_DATAGRAM) -> Iterator[bytes]:
    """Yield the lines in as few datagrams as they fit into."""
    together = b""
    for line in lines:
        data = line.encode()
        if together and len(together) + 1 + len(data) > longest:
            yield together
            together = b""
        together = together + b"\n" + data if together else data
    if together:
        yield together


def _is_closed(connection: socket.socket) -> bool:
    """Return whether the other end has closed: what is sent then would be lost without a word."""
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(CONNECT_SECONDS)
