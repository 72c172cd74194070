"""Which requests a site has lost, some of whose processes are killed.

A request belongs to the process that accepted its connection. It is lost if it was not answered,
unless that process was killed meanwhile: what is in flight there is lost in any case.
"""

from __future__ import annotations

import collections
import os
import re
import threading
import time

from support.chaos import lost, outside
from support.client import eventually
from wsgi_busyguard.adapters.front.last_connections import LINGER_SECONDS

# A configuration of gunicorn whose workers say which connections they accept. They say it into a
# FIFO, for no file grows while a disk is full.
ACCEPTING = """
import os, socket, time
def post_worker_init(worker):
    said, accept = os.open({fifo!r}, os.O_WRONLY), socket.socket.accept
    def accepted(listener):
        sock, address = accept(listener)
        os.write(said, b"%d %d %.9f\\n" % (address[1], os.getpid(), time.monotonic()))
        return sock, address
    socket.socket.accept = accepted
"""

# A visitor that has sent nothing for so long may be taken for silent by a worker that ends.
LATE_SECONDS = LINGER_SECONDS / 2

# What a HAProxy is to log of a request: the port it came from, the port it was passed on from, and
# when it came, in milliseconds of the wall clock.
LOG_FORMAT = 'log-format "asked %cp %bp %Ts%ms"'
LOGGED = re.compile(r"asked (\d+) (\d+) (\d+)$")
CLOCKS_DIFFER_SECONDS = 0.1


class Accepts:
    """Which worker of the gunicorns with this configuration accepted which connection.

    :ivar conf: the text of the configuration.
    """

    def __init__(self, fifo):
        self.fifo = fifo
        self.conf = ACCEPTING.format(fifo=str(fifo))
        self._seen = collections.defaultdict(list)
        os.mkfifo(fifo)
        self._fd = os.open(fifo, os.O_RDWR)  # so that there is always somebody who reads
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def _hear(self):
        with open(self._fd, "rb", closefd=False) as lines:
            for line in iter(lines.readline, b"end\n"):
                port, pid, at = line.split()
                self._seen[int(port)].append((float(at), int(pid)))

    def worker(self, port, begin, end):
        """Return who accepted a connection from a port, the last time between these; or none."""
        seen = [(at, pid) for at, pid in self._seen.get(port, []) if begin <= at <= end]
        return max(seen)[1] if seen else None

    def heard(self):
        """Wait until all that has been said is known."""
        before = len(self._seen[0])
        os.write(self._fd, b"0 0 0\n")
        eventually(lambda: len(self._seen[0]) > before)

    def close(self):
        os.write(self._fd, b"end\n")
        self._thread.join()
        os.close(self._fd)

    def lost(self, asked, killed):
        """Return what was lost of this that visitors asked a gunicorn, each with its worker."""
        self.heard()
        in_time = [one for one in asked if one.spoke - one.began < LATE_SECONDS]
        return lost_by_others(
            in_time, killed, lambda one: self.worker(one.port, one.began, one.ended)
        )

    def lost_behind(self, balancers, visitors, killed):
        """Return what visitors lost at HAProxies of one port, each with the worker it went to."""
        self.heard()
        logged = Logged(line for balancer in balancers for line in balancer.lines)
        theirs = {balancer.popen.pid for balancer in balancers}
        others = outside(lost(visitors), [kill for kill in killed if kill.pid in theirs])
        passed_on = [one for one in others if logged.passed_on(one)]
        return [(None, one) for one in others if one not in passed_on] + lost_by_others(
            passed_on, killed, lambda one: self.worker(logged.passed_on(one), 0.0, one.ended)
        )


class Logged:
    """What HAProxies have logged of each request."""

    def __init__(self, lines):
        wall = time.time() - time.monotonic()
        self._seen = collections.defaultdict(list)
        for found in filter(None, map(LOGGED.search, lines)):
            port, passed_on, at = map(int, found.groups())
            self._seen[port].append((at / 1000 - wall, passed_on))

    def passed_on(self, one):
        """Return from which port a request was passed on, the last time; or none."""
        seen = [
            (at, port)
            for at, port in self._seen[one.port]
            if one.began - CLOCKS_DIFFER_SECONDS <= at <= one.ended + CLOCKS_DIFFER_SECONDS
        ]
        return max(seen)[1] if seen else None


def lost_by_others(asked, killed, accepted_by):
    """Return what was lost by none of the processes that were killed, each with its process.

    :param accepted_by: returns the process that accepted a connection, or none that has said so.
        Each that is killed may have accepted one a moment before, and not have said so.
    """
    kills, unsaid, others = {kill.pid: kill for kill in killed}, list(killed), []
    for one in asked:
        pid = accepted_by(one)
        if pid in kills and one.ended >= kills[pid].before:
            continue
        silent = [kill for kill in unsaid if pid is None and outside([one], [kill]) == []]
        if silent:
            unsaid.remove(silent[0])
        else:
            others.append((pid, one))
    return others
