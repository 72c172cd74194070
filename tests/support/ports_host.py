"""A process that has a check port and an agent port, and does what it is told.

By lines on the file descriptor that is its first argument. The second may be ``gevent``: then the
modules are patched before anything is imported. Two more are where to listen.
"""

from __future__ import annotations

import sys

if "gevent" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import os
import select
import signal
import threading
import time

from wsgi_busyguard import Load
from wsgi_busyguard.checkport import AgentPort, CheckPort
from wsgi_busyguard.checkport.event_loop import Loop
from wsgi_busyguard.policy import Verdict


class Watching:
    """Knows a load, and takes no lock to tell it."""

    load = Load(0, 0, 4)
    draining = False

    def check(self, ready, patience, count=True):
        return Verdict("free", True, self.load)

    def alive(self):
        return True


def fork(seconds=60):
    """Fork a worker that lives on its own, and return its process id."""
    child = os.fork()
    if child == 0:
        time.sleep(seconds)
        os._exit(0)
    return child


def forking(orders, least=30):
    """Fork workers that end at once, as fast as it goes; return how many, and how many failed.

    Until there were enough of them, and there is another order.
    """
    count = failed = 0
    while count < least or not select.select([orders], [], [], 0)[0]:
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # one that hangs is one that failed
            threading.Thread(target=list).start()
            os._exit(0)
        failed += os.waitpid(child, 0)[1] != 0
        count += 1
    return count, failed


def main():
    watching = Watching()
    where = iter(sys.argv[3:])
    check = CheckPort(watching, next(where, "127.0.0.1:0"), share=True)
    agent = AgentPort(watching, next(where, "127.0.0.1:0"), share=True)
    loop = Loop(check, agent)
    early = fork()
    loop.start()
    print("ports:", check.address[1], agent.address[1], flush=True)
    print("early:", early, flush=True)
    orders = os.fdopen(int(sys.argv[1]))
    for line in orders:
        command, *arguments = line.split()
        if command == "fork":
            print("forked:", fork(), flush=True)
        elif command == "forking":
            print("forks:", *forking(orders), flush=True)
        elif command == "hog":
            print("hogging", flush=True)
            until = time.monotonic() + float(arguments[0])
            while time.monotonic() < until:
                sum(range(100))
            print("hogged", flush=True)
        elif command == "copies":  # as a child has that was forked at just the wrong moment
            for descriptor in [*loop._ports, *loop._peers]:
                os.dup(descriptor)
            print("copied", flush=True)
        elif command == "stop":
            loop.stop()
            print("stopped", loop.failures, loop.failure, flush=True)


main()
