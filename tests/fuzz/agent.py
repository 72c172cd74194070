"""The agent port: whatever balancers call themselves, each hears a share, and memory has a bound.

Each line of the input is one who asks: the first byte is its address and how much time passes.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

from wsgi_busyguard import Load, Monitor
from wsgi_busyguard.checkport.connection import Peer
from wsgi_busyguard.checkport.ports import AgentPort
from wsgi_busyguard.haproxy import MOST_BALANCERS

CAPACITY = 8
PORT = AgentPort(Monitor(SimpleNamespace(read=lambda: Load(0, 2, CAPACITY))), "127.0.0.1:0")
CLOCK = SimpleNamespace(now=0.0)
PORT.agent._clock = lambda: CLOCK.now


def target(data: bytes) -> None:
    for line in data.split(b"\n\n"):
        first, received = line[0] if line else 0, line[1:]
        CLOCK.now += first >> 4
        peer = Peer(PORT, None, f"10.0.0.{first & 15}", 0.0)
        peer.received = received
        answer = PORT.heard(peer, late=False)
        if answer is None:
            assert b"\n" not in received
            answer = PORT.heard(peer, late=True)
        share = re.fullmatch(rb"up maxconn:([0-9]+)\n", answer)
        assert share is not None, answer
        assert 1 <= int(share[1]) <= CAPACITY
        PORT.answered(peer)
    assert len(PORT.agent.balancers()) <= MOST_BALANCERS
    assert len(PORT._named) <= MOST_BALANCERS
    for balancer in PORT.agent.balancers():
        assert balancer["name"].isascii() or "\ufffd" in balancer["name"]
        assert len(balancer["name"]) <= 64
