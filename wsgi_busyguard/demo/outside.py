"""The outside service, and the way to it: a proxy that can be slow. A process of its own.

The proxy delays what the service says, on connections that stood before the blip as well. What is
on its way when the blip ends still comes late: an outside service that is well again does not
finish sooner what it began.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater
from twisted.protocols import portforward
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from .child import obey, say

JITTER = 0.1  # the service takes up to this share more or less

reactor: Any = _reactor


class Service(Resource):
    """Says what the weather is, after thinking about it."""

    isLeaf = True

    def __init__(self, seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seconds = seconds
        self._random = random.Random(2013)

    def render_GET(self, request: Request) -> object:
        """Answer after a while."""
        seconds = self._seconds * self._random.uniform(1 - JITTER, 1 + JITTER)

        def answer(_: object) -> None:
            request.write(b"sunny, 21 degrees\n")
            request.finish()

        request.setHeader(b"Content-Length", b"18")
        later = deferLater(reactor, seconds, lambda: None)
        request.notifyFinish().addErrback(lambda _: later.cancel())
        later.addCallbacks(answer, lambda _: None)
        return NOT_DONE_YET


class Way:
    """The way to the service: how many seconds it takes back."""

    delay = 0.0


class Back(portforward.ProxyClient):
    """The proxy's connection to the service."""

    way: Way

    def dataReceived(self, data: bytes) -> None:
        """Pass on what the service said, in its time."""
        if self.way.delay:
            reactor.callLater(self.way.delay, self._pass_on, data)
        else:
            self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        visitor: Any = self.peer and self.peer.transport
        if visitor is not None and visitor.connected:
            visitor.write(data)


def proxy(way: Way, port: int) -> portforward.ProxyFactory:
    """Return a proxy to a local port, as slow as ``way`` says."""
    back = type("Back", (Back,), {"way": way})
    to = type("To", (portforward.ProxyClientFactory,), {"protocol": back, "noisy": False})
    there: Any = type("There", (portforward.ProxyServer,), {"clientProtocolFactory": to})
    factory = portforward.ProxyFactory("127.0.0.1", port)
    factory.protocol = there
    factory.noisy = False
    return factory


def main() -> None:
    """Serve until the pipe closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    seconds: float = parser.parse_args().seconds
    way = Way()
    service = reactor.listenTCP(0, Site(Service(seconds)), 1024, "127.0.0.1")
    front = reactor.listenTCP(0, proxy(way, service.getHost().port), 1024, "127.0.0.1")

    def become(line: str) -> None:
        way.delay = (float(line) - 1) * seconds  # "20": twenty times slower, "1": well

    obey(become)
    say(port=front.getHost().port)
    reactor.run()


if __name__ == "__main__":
    main()
