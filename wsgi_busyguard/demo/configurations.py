"""What the HAProxies of each act are told: text, and nothing else.

With the guard it is what ``busyguard haproxy`` prints. Timeouts, the retry after a failed
connection and the log are the same in every act; only what the guard brings with it differs.
"""

from __future__ import annotations

from string import Template
from typing import TYPE_CHECKING, NamedTuple

from ..haproxy import Server, Setting
from ..haproxy import configuration as guarded

if TYPE_CHECKING:
    from collections.abc import Sequence

BALANCERS = 4

# Bare `option httpchk`: OPTIONS / every 2 s, three failures and it is out, two answers and it is
# back. The queue stands where it falls.
OF_2013 = """\
# HAProxy $number of $balancers in act $act of busyguard demo.
global
    log stdout format raw local0 info
    stats socket fd@$stats level user
    nbthread 1
    maxconn 4000
    spread-checks 10

defaults
    mode http
    log global
    option httplog
    option dontlognull
    option log-health-checks
    timeout connect 1s
    timeout client 30s
    timeout server 30s
    retries 1
    option redispatch 1

frontend web
    bind fd@$listener                       # a socket inherited from the demo; yours: bind :80
    default_backend app

backend app
    balance roundrobin
    option httpchk
    default-server check inter 2s
$servers
"""

# Four of them on one machine, and each with more clients than a thread can have by default.
MORE = ("nbthread 1", "maxconn 4000")


class Address(NamedTuple):
    """Where a server listens."""

    web: int
    agent: int | None = None


def configuration(
    act: str, servers: Sequence[Address], number: int, threads: int, listener: int, stats: int
) -> str:
    """Return the configuration of one balancer.

    :param number: which of the balancers it is, from 1.
    :param threads: of one server.
    :param listener: the file descriptor of the socket it accepts clients on; ``stats``: of the one
        it answers questions on.
    """
    names = [f"web{n}" for n in range(1, len(servers) + 1)]
    where = [f"127.0.0.1:{server.web}" for server in servers]
    if act == "three":
        bind, socket = f"fd@{listener}", f"fd@{stats} level user"
        setting = Setting(threads, BALANCERS, f"lb{number}", bind, socket, MORE)
        agents = [server.agent for server in servers]
        return guarded(map(Server, names, where, agents), setting)
    lines = [f"    server {name} {at}" for name, at in zip(names, where, strict=True)]
    ours = {"act": act, "number": number, "balancers": BALANCERS, "servers": "\n".join(lines)}
    return Template(OF_2013).substitute(ours, listener=listener, stats=stats)
