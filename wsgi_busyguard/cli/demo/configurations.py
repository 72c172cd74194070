"""What the HAProxies of each act are told: text, and nothing else.

Timeouts, the retry after a failed connection and the log are the same in every act; only what the
guard brings with it differs.
"""

from __future__ import annotations

from string import Template
from typing import TYPE_CHECKING, NamedTuple

from ...haproxy import share

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMON = """\
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
"""

# Bare `option httpchk`: OPTIONS / every 2 s, three failures and it is out, two answers and it is
# back. The queue stands where it falls.
OF_2013 = """
frontend web
    bind fd@$listener                       # a socket inherited from the demo; yours: bind :80
    default_backend app

backend app
    balance roundrobin
    option httpchk
    default-server check inter 2s
$servers
"""

# Busy is not down: the agent says how many requests this balancer may send at once, the rest wait
# here, where any free server can take them, and not for long. The check is for servers that are
# stuck or going; a refusal promises that the app has not run, so it may be tried once elsewhere.
GUARDED = """\
    option forwardfor               # what comes for a client is no check, not even OPTIONS /
    timeout queue 700ms             # about the latency that is still good, less the service time
    retry-on 503 conn-failure
    http-error status 503 content-type text/plain string "busy, try again\\n" hdr Retry-After 1

frontend web
    bind fd@$listener                       # a socket inherited from the demo; yours: bind :80
    use_backend app_open if { nbsrv(app) lt 1 }     # all down means the checks are wrong
    default_backend app

backend app
    balance leastconn
    option httpchk
    # maxconn: threads / balancers, until the agent has spoken
    default-server check inter 2s maxconn $share weight 100
    default-server agent-check agent-inter 200ms agent-send "lb$number app\\n"
$servers

backend app_open                    # the same servers, no checks, small static limits
    balance leastconn
    default-server maxconn $share
$open_servers
"""


class Address(NamedTuple):
    """Where a server listens."""

    web: int
    agent: int | None = None


def configuration(
    act: str,
    servers: Sequence[Address],
    *,
    number: int,
    balancers: int,
    threads: int,
    listener: int,
    stats: int,
) -> str:
    """Return the configuration of one balancer.

    :param number: which of the ``balancers`` it is, from 1.
    :param threads: of one server.
    :param listener: the file descriptor of the socket it accepts clients on.
    :param stats: of the one it answers questions on.
    """
    lines = [f"    server web{n} 127.0.0.1:{s.web}" for n, s in enumerate(servers, 1)]
    agents = [f" agent-port {s.agent}" if s.agent else "" for s in servers]
    return Template(COMMON + (GUARDED if act == "three" else OF_2013)).substitute(
        act=act,
        number=number,
        balancers=balancers,
        listener=listener,
        stats=stats,
        share=share(threads, balancers),
        servers="\n".join(line + agent for line, agent in zip(lines, agents, strict=True)),
        open_servers="\n".join(lines),
    )
