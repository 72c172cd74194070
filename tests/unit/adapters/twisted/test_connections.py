"""Who makes room on a site; with real connections: tests/integration/test_crowded.py."""

from __future__ import annotations

from twisted.internet.error import ConnectionAborted
from twisted.internet.testing import MemoryReactorClock

from wsgi_busyguard.adapters.twisted.connections import Connections


class Descriptor:
    """What the reactor looks at."""

    disconnected = False

    def __init__(self):
        self.lost = []

    def connectionLost(self, reason):  # noqa: N802
        self.lost.append(reason.type)
        self.disconnected = True


class Wrapper:
    """What passes on what it does not do itself, as Twisted's have it; none is told of the end."""

    def __init__(self, transport):
        self.transport = transport
        self.aborted = 0

    def abortConnection(self):  # noqa: N802
        self.aborted += 1

    def __getattr__(self, name):
        if name == "connectionLost":
            raise AssertionError("the reactor tells what it looks at, and that tells the others")
        return getattr(self.transport, name)


class Protocol:
    def makeConnection(self, transport):  # noqa: N802
        self.transport = transport


def test_of_tls_behind_the_proxy_protocol_the_descriptor_itself_is_closed(monkeypatch):
    """It is free at once then, and the protocols hear of the end once."""
    connections = Connections(MemoryReactorClock())
    descriptor = Descriptor()
    transport = Wrapper(Wrapper(descriptor))
    protocol = Protocol()
    connections.attend(protocol)
    monkeypatch.setattr(descriptor, "fileno", lambda: 0, raising=False)
    protocol.makeConnection(transport)
    connections._room.make(1, connections._in_turn)
    assert transport.aborted == 1
    assert descriptor.lost == [ConnectionAborted]
