"""The configuration of HAProxy that measured best, as text, and a small one without an agent.

One text for all who show it: ``busyguard haproxy``, the docs, the demo, the tests and the
benchmarks. Every line says why it is there.
"""

from __future__ import annotations

import re
from string import Template
from typing import TYPE_CHECKING, NamedTuple

from ..policy import share, whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# What HAProxy lets a server be called.
NAME = re.compile(r"[A-Za-z0-9_.:-]+")

BIND = ":80"
SOCKET = "/run/haproxy/admin.sock mode 660 level admin"

# Where the comments begin that stand behind something.
COMMENT_COLUMN = 56

CONFIGURATION = Template("""\
# HAProxy for wsgi_busyguard, $what: requests wait here, not in the servers.
# For servers with $threads threads and $balancers such balancer(s), of which this is '$name'.
# Accepted by 2.6, 2.8, 3.0 and 3.2; in 3.2.0 and 3.2.1 leastconn can loop for ever.

global
    log stdout format raw local0 info  # or: log /dev/log local0
    stats socket $stats  # for operators, and for a push
    # Without the folder of that socket HAProxy does not start: mkdir -p it first.
    spread-checks 10  # so that checks do not come in step
$more
defaults
    mode http  # one request at a time is counted, not a connection
    log global
    option httplog
    option dontlognull
    option log-health-checks  # a line when a server goes or comes
    option forwardfor  # what comes for a client is no check, nor OPTIONS /
    timeout http-request 10s
    timeout http-keep-alive 10s
    timeout connect 1s  # a server that is gone is known in a second
    timeout client 30s
    timeout server 30s  # longer than the slowest honest request
    timeout check 1s  # a check takes a millisecond, or something is wrong
    timeout queue 700ms  # set this: the latency still good, less what a request takes
    retries 1  # never more: N retries are N + 1 times the load
    option redispatch 1  # the retry goes to another server that has room
    retry-on 503 conn-failure  # a refusal promises that the app has not run
    option http-buffer-request  # else only a POST that comes in one piece is retried
    # Drop the 503 there if your app sends its own after it has changed something.
    http-error status 503 content-type text/plain string "busy, try again\\n"\
 hdr Retry-After 1 hdr Cache-Control no-store

frontend web
    bind $bind
    http-request set-header X-Request-Start t=%[date(0,us)]  # the wait here counts
    # The checks are ours alone, however a client spells them: servers decode the path,
    # and some drop slashes and dots. What cannot be decoded, or has no path, is a 400.
    http-request deny deny_status 400 unless { path,url_dec -m found } or { url * }
    http-request return status 404 if { path,url_dec -m reg (^|/[.][.]?)/+(livez|readyz|healthz)$$ }
    # All down means that the checks are wrong, not the servers: then do without them.
    use_backend app_open if { nbsrv(app) lt 1 }
    default_backend app

backend app
    balance leastconn  # roundrobin lost requests for good in 2.6
    option httpchk  # OPTIONS /, which the guard answers, never the app
    # Busy is not down. The check fails only while a server drains or is stuck.
    default-server check inter 2s fall 3 rise 2  # HAProxy's own defaults
    default-server maxconn $each  # threads / balancers, until the agent speaks
    default-server weight 100  # at 1, half of it is 0: out of the rotation
$agent$servers

backend app_open  # the same servers, and no checks
    balance leastconn
    default-server maxconn $each  # without it the queue moves into the servers
$unchecked
""")

AGENT = Template("""\
    # Five times a second the guard says how many requests may be there at once; the
    # rest wait here, where any free server takes them. Each balancer has a name.
    default-server agent-check agent-inter 200ms agent-send "$name\\n"
""")


class Server(NamedTuple):
    """A server as a balancer knows it.

    :param where: ``HOST:PORT`` of the app.
    :param agent: the port of the agent; without it the limit stays what it is in the file.
    :param check: the port of the checks; the app's own if ``None``.
    """

    name: str
    where: str
    agent: int | None = None
    check: int | None = None


class Setting(NamedTuple):
    """What differs from site to site.

    :param threads: requests that one server has in the app at once.
    :param balancers: how many HAProxies send requests to these servers.
    :param name: what this one calls itself; different on each.
    :param bind: where clients come in.
    :param stats: the Runtime API, for operators and for a push.
    :param more: further lines of the section ``global``.
    """

    threads: int = 10
    balancers: int = 1
    name: str = "lb1"
    bind: str = BIND
    stats: str = SOCKET
    more: Sequence[str] = ()


def configuration(
    servers: Iterable[Server], setting: Setting | None = None, *, minimal: bool = False
) -> str:
    """Return the configuration for these servers.

    :param minimal: leave the agent out, for servers without such a port.
    :raises ValueError, TypeError: for servers and settings that are not valid.
    """
    setting = setting or Setting()
    farm = [server._replace(agent=None) if minimal else server for server in servers]
    _judge(farm, setting)
    agent = AGENT.substitute(name=setting.name) if any(server.agent for server in farm) else ""
    text = CONFIGURATION.substitute(
        setting._asdict(),
        what="the small one, without an agent" if minimal else "the whole one",
        each=share(setting.threads, setting.balancers),
        more="".join(f"    {line}\n" for line in setting.more),
        agent=agent,
        servers="\n".join(_checked(server, bool(agent)) for server in farm),
        unchecked="\n".join(f"    server {server.name} {server.where}" for server in farm),
    )
    return "".join(map(_aligned, text.splitlines(keepends=True)))


def _judge(servers: Sequence[Server], setting: Setting) -> None:
    whole("threads", setting.threads, least=1)
    whole("balancers", setting.balancers, least=1)
    if not servers:
        raise ValueError("expected a server: --server NAME=HOST:PORT, once for each")
    names = [server.name for server in servers]
    for name in [*names, setting.name]:
        if not NAME.fullmatch(name):
            raise ValueError(f"expected a name of letters, digits and ._:-, not {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"expected a name of its own for each server, not {', '.join(names)}")


def _checked(server: Server, by_agent: bool) -> str:
    """Return the line of a server, in a farm some of which may have an agent."""
    check = f" port {server.check}" if server.check else ""
    agent = f" agent-port {server.agent}" if server.agent else " no-agent-check"
    return f"    server {server.name} {server.where}{check}{agent if by_agent else ''}"


def _aligned(line: str) -> str:
    text, mark, why = line.partition("  # ")
    return f"{text:{COMMENT_COLUMN - 1}} # {why}" if mark and text.strip() else line
