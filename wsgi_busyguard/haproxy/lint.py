"""Finds in a configuration of HAProxy what is known to go wrong behind it.

A text in, findings out. Only what is in front of guarded servers is judged: backends in mode http.
What is known of their checks is in :mod:`.lint_checks`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .config_reader import BackendSection, ConfigLine, Finding, Section, number, sections
from .lint_checks import check_mistakes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

# Seconds that are more than most clients wait.
LONG_QUEUE_SECONDS = 5.0

# By any of these the guard knows that a request was passed on for a client.
PASSED_ON = {"x-forwarded-for", "forwarded", "via", "x-real-ip"}


def mistakes(text: str) -> list[Finding]:
    """Return what is known to go wrong with this configuration, in the order of its lines."""
    return sorted({f for backend in backends(text) for look in LOOKS for f in look(backend)})


def backends(text: str) -> list[BackendSection]:
    """Return the backends that are judged: those in mode http that have servers."""
    every = sections(text)
    fronts = [section for section in every if section.kind in ("frontend", "listen")]
    return [
        BackendSection(
            it, it.servers(), [front for front in fronts if front.leads_to & {it.name, "*"}]
        )
        for it in every
        if it.kind in ("backend", "listen") and it.in_http and it.servers()
    ]


def _retries(backend: BackendSection) -> Iterator[Finding]:
    section = backend.section
    line = section.last("retry-on")
    if line is None or not {"503", "all-retryable-errors"} & set(line.words):
        return
    retries = section.last("retries")
    times = number(retries.words[1]) if retries and len(retries.words) > 1 else 3
    if times is not None and times > 1:
        yield Finding(
            (retries or line).number,
            f"retries {times}{'' if retries else ' (by default)'} with retry-on 503: when all are"
            f" busy that is {times + 1} times the load; write retries 1",
        )
    yield from _redispatch(section, line, times)
    if not backend.everywhere(lambda s: s.last("option http-buffer-request") is not None):
        yield Finding(
            line.number,
            "retry-on 503 without option http-buffer-request: a POST whose body comes after its"
            " head is not retried; write option http-buffer-request",
        )


def _redispatch(section: Section, retry_on: ConfigLine, times: int | None) -> Iterator[Finding]:
    line = section.last("option redispatch")
    if line is None:
        yield Finding(
            retry_on.number,
            "retry-on 503 without option redispatch: the retry goes to the server that has just"
            " refused; write option redispatch 1",
        )
        return
    every = line.words[2] if len(line.words) > 2 else "-1"
    step = number(every.removeprefix("-"))
    # Of N, every Nth retry goes elsewhere; of -N, the Nth from the last; of 0 none.
    if step is not None and times is not None and (step == 0 or step > times):
        yield Finding(
            line.number,
            f"option redispatch {every} with retries {times}: the retry goes to the server that has"
            " just refused; write option redispatch 1",
        )


def _queue(backend: BackendSection) -> Iterator[Finding]:
    section = backend.section
    for server in backend.servers:
        # A backup serves when no other can: a page that says sorry, mostly.
        if number(server.settings.get("maxconn", "0")) == 0 and not server.on("backup"):
            yield Finding(
                server.number,
                f"no maxconn for {server.name}: HAProxy sends it everything at once and the queue"
                " stands there; write maxconn, its threads / your balancers",
            )
    timeout = section.last("timeout queue")
    if timeout is None:
        yield Finding(
            section.number,
            f"no timeout queue for {section.name}: then it is timeout connect, which means"
            " something else; write timeout queue 700ms, or what your clients bear",
        )
    elif len(timeout.words) > 2 and _seconds(timeout.words[2]) > LONG_QUEUE_SECONDS:
        yield Finding(
            timeout.number,
            f"timeout queue {timeout.words[2]}: most clients have left by then, and their requests"
            " are served before those who are there; write about a second",
        )


def _balance(backend: BackendSection) -> Iterator[Finding]:
    line = backend.section.last("balance")
    algorithm = line.words[1] if line and len(line.words) > 1 else "roundrobin"
    queues = any(number(server.settings.get("maxconn", "0")) != 0 for server in backend.servers)
    if algorithm == "roundrobin" and len(backend.servers) > 1 and queues:
        yield Finding(
            (line or backend.section).number,
            f"balance roundrobin{'' if line else ' (by default)'} with a queue: if all servers are"
            " drained for a moment, 2.6 never serves who waits; write balance leastconn",
        )


def _agent(backend: BackendSection) -> Iterator[Finding]:
    for server in backend.servers:
        if not server.on("agent-check"):
            continue
        weight = number(server.settings.get("weight", "1"))
        if weight is not None and weight < 100:
            yield Finding(
                server.number,
                f"weight {weight} for {server.name} with an agent: of an agent's N% nothing may be"
                " left, 50% of 1 is 0, out of the rotation; write weight 100",
            )
        if not server.on("agent-send"):
            yield Finding(
                server.number,
                f"no agent-send for {server.name}: balancers behind one address are taken for one"
                ' and do not share; write agent-send "lb1\\n", different on each',
            )


def _killing(backend: BackendSection) -> Iterator[Finding]:
    for server in backend.servers:
        if server.settings.get("on-marked-down") == "shutdown-sessions":
            yield Finding(
                server.number,
                f"on-marked-down shutdown-sessions for {server.name}: what runs there is killed,"
                " though a server that fails its check mostly finishes it; leave it out",
            )
        if server.settings.get("observe") == "layer7":
            yield Finding(
                server.number,
                f"observe layer7 for {server.name}: every refusal counts as a failure of the"
                " server, or none does with retry-on 503; leave it out",
            )


def _clients(backend: BackendSection) -> Iterator[Finding]:
    if not backend.everywhere(_says_for_whom):
        section = backend.section
        yield Finding(
            section.number,
            f"no option forwardfor for {section.name}: an OPTIONS / from a client looks like a"
            " check and is not passed to the app; write it into the defaults",
        )


def _says_for_whom(section: Section) -> bool:
    """Return whether a client's requests can be told from HAProxy's own checks."""
    if section.last("option forwardfor") or section.last("option forwarded"):
        return True
    sets = [*section.all("http-request set-header"), *section.all("http-request add-header")]
    return any(name.lower() in PASSED_ON for line in sets for name in line.words[2:3])


LOOKS: list[Callable[[BackendSection], Iterator[Finding]]]
LOOKS = [_retries, _queue, _balance, _agent, check_mistakes, _killing, _clients]


def _seconds(text: str) -> float:
    """Return the seconds of HAProxy's times; a bare number is milliseconds."""
    parts = re.fullmatch(r"([0-9]{1,18})(us|ms|s|m|h|d)?", text)
    return int(parts[1]) * UNITS[parts[2] or "ms"] if parts else 0.0
