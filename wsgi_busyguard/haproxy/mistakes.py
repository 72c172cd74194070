"""Finds in a configuration of HAProxy what is known to go wrong behind it.

A text in, findings out. Reads the lines that matter here and passes over all others: whether
HAProxy accepts them is for ``haproxy -c`` to say.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SECTIONS = {
    *("global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "mailers"),
    *("userlist", "program", "http-errors", "ring", "log-forward", "cache", "fcgi-app"),
    *("crt-store", "traces", "log-profile", "acme"),
}

# What a server's line may have, and how many words follow each that has any. Only these.
VALUED = {
    *("maxconn", "weight", "inter", "fall", "rise", "port", "agent-port", "agent-inter"),
    *("agent-send", "observe", "error-limit", "on-error", "on-marked-down"),
}

# Ours answer these; everything else that is asked for is the app's.
OURS = {"/", "*", "/readyz", "/healthz", "/livez"}

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

# Seconds that are more than most clients wait.
LONG = 5.0


class Finding(NamedTuple):
    """A mistake: its line, and what is wrong with it and why."""

    line: int
    words: str


class Line(NamedTuple):
    """A line of a configuration, in words."""

    number: int
    words: tuple[str, ...]

    def begins(self, text: str) -> bool:
        """Return whether its first words are these."""
        words = tuple(text.split())
        return self.words[: len(words)] == words


class Server(NamedTuple):
    """A line with ``server``, and all that is said of it there or by ``default-server``."""

    number: int
    name: str
    said: dict[str, str]


class Section(NamedTuple):
    """A section: its own lines, after those of the defaults that it goes by."""

    number: int
    kind: str
    name: str
    lines: tuple[Line, ...]

    def last(self, text: str) -> Line | None:
        """Return the last line that begins so, for that is the one that counts."""
        found = [line for line in self.lines if line.begins(text)]
        off = [line for line in self.lines if line.begins(f"no {text}")]
        if not found or (off and off[-1].number > found[-1].number):
            return None
        return found[-1]

    def servers(self) -> list[Server]:
        """Return its servers."""
        servers: list[Server] = []
        common: dict[str, str] = {}
        for number, words in self.lines:
            if words[0] == "default-server":
                common = {**common, **_said(words[1:])}
            elif words[0] == "server" and len(words) > 2:
                servers.append(Server(number, words[1], {**common, **_said(words[3:])}))
        return servers


def mistakes(text: str) -> list[Finding]:
    """Return what is known to go wrong with this configuration, in the order of its lines."""
    found = {
        finding
        for section in sections(text)
        if section.kind in ("backend", "listen") and section.servers()
        for look in LOOKS
        for finding in look(section, section.servers())
    }
    return sorted(found)


def sections(text: str) -> list[Section]:
    """Return the sections of a configuration, each with the lines of its defaults."""
    found: list[Section] = []
    for number, raw in enumerate(text.splitlines(), 1):
        words = _words(raw)
        if words and words[0] in SECTIONS:
            name = words[1] if len(words) > 1 and words[1] != "from" else ""
            inherited = _inherited(found, words)
            found.append(Section(number, words[0], name, inherited))
        elif words and found:
            found[-1] = found[-1]._replace(lines=(*found[-1].lines, Line(number, tuple(words))))
    return found


def _inherited(before: Sequence[Section], words: Sequence[str]) -> tuple[Line, ...]:
    """Return the lines that a section begins with: those of its defaults, or of the last ones."""
    defaults = [section for section in before if section.kind == "defaults"]
    if "from" in words[1:-1]:
        name = words[words.index("from") + 1]
        defaults = [section for section in defaults if section.name == name]
    elif words[0] == "defaults":
        return ()
    return defaults[-1].lines if defaults else ()


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # HAProxy quotes in ways of its own; what matters here is not quoted
        return line.partition("#")[0].split()


def _said(words: Sequence[str]) -> dict[str, str]:
    said, rest = {}, list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("no-"):
            said[word[3:]] = "off"
        else:
            said[word] = rest.pop(0) if word in VALUED and rest else "on"
    return said


def _on(server: Server, word: str) -> bool:
    return server.said.get(word, "off") != "off"


def _retries(section: Section, _: Sequence[Server]) -> Iterator[Finding]:
    line = section.last("retry-on")
    if line is None or not {"503", "all-retryable-errors"} & set(line.words):
        return
    retries = section.last("retries")
    times = _number(retries.words[1]) if retries and len(retries.words) > 1 else 3
    if times > 1:
        yield Finding(
            (retries or line).number,
            f"retries {times}{'' if retries else ' (by default)'} with retry-on 503: when all are"
            f" busy that is {times + 1} times the load; write retries 1",
        )
    if section.last("option redispatch") is None:
        yield Finding(
            line.number,
            "retry-on 503 without option redispatch: the retry goes to the server that has just"
            " refused; write option redispatch 1",
        )


def _queue(section: Section, servers: Sequence[Server]) -> Iterator[Finding]:
    for server in servers:
        if _number(server.said.get("maxconn", "0")) < 1:
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
    elif len(timeout.words) > 2 and _seconds(timeout.words[2]) > LONG:
        yield Finding(
            timeout.number,
            f"timeout queue {timeout.words[2]}: most clients have left by then, and their requests"
            " are served before those who are there; write about a second",
        )


def _balance(section: Section, servers: Sequence[Server]) -> Iterator[Finding]:
    line = section.last("balance")
    algorithm = line.words[1] if line and len(line.words) > 1 else "roundrobin"
    queues = any(_number(server.said.get("maxconn", "0")) > 0 for server in servers)
    if algorithm == "roundrobin" and len(servers) > 1 and queues:
        yield Finding(
            (line or Line(section.number, ())).number,
            f"balance roundrobin{'' if line else ' (by default)'} with a queue: if all servers are"
            " drained for a moment, 2.6 never serves who waits; write balance leastconn",
        )


def _agent(_: Section, servers: Sequence[Server]) -> Iterator[Finding]:
    for server in servers:
        if not _on(server, "agent-check"):
            continue
        weight = _number(server.said.get("weight", "1"))
        if weight < 100:
            yield Finding(
                server.number,
                f"weight {weight} for {server.name} with an agent: of an agent's N% nothing may be"
                " left, 50% of 1 is 0, out of the rotation; write weight 100",
            )
        if not _on(server, "agent-send"):
            yield Finding(
                server.number,
                f"no agent-send for {server.name}: balancers behind one address are taken for one"
                ' and do not share; write agent-send "lb1\\n", different on each',
            )


def _check(section: Section, servers: Sequence[Server]) -> Iterator[Finding]:
    checked = [server for server in servers if _on(server, "check")]
    line = section.last("option httpchk")
    if checked and line is None:
        yield Finding(
            checked[0].number,
            f"check without option httpchk in {section.name}: it only connects, so a server that"
            " drains or is stuck looks well; write option httpchk",
        )
    if line is not None and checked:
        method, path = _asked(section, line)
        if path.partition("?")[0] not in OURS or (path == "/" and method != "OPTIONS"):
            yield Finding(
                line.number,
                f"the check {method} {path} goes through the app, and waits where its requests"
                " wait; write option httpchk alone: the guard answers OPTIONS /",
            )
        elif path.partition("?")[0] == "/livez":
            yield Finding(
                line.number,
                "the check asks /livez, which is for restarts: it says well while the server"
                " drains; write option httpchk alone",
            )
    stopping = section.last("http-check disable-on-404")
    if stopping is not None:
        yield Finding(
            stopping.number,
            "http-check disable-on-404 has no effect: the guard says 503 while it drains, never"
            " 404; leave it out",
        )


def _asked(section: Section, option: Line) -> tuple[str, str]:
    """Return the method and the path of the checks."""
    words = option.words[2:]
    method, path = "OPTIONS", "/"
    if len(words) == 1:
        path = words[0]
    elif words:
        method, path = words[:2]
    send = section.last("http-check send")
    if send is not None:
        said = dict(zip(send.words[2:], send.words[3:], strict=False))
        method, path = said.get("meth", method), said.get("uri", path)
    return method, path


def _killing(section: Section, servers: Sequence[Server]) -> Iterator[Finding]:
    for server in servers:
        if server.said.get("on-marked-down") == "shutdown-sessions":
            yield Finding(
                server.number,
                f"on-marked-down shutdown-sessions for {server.name}: what runs there is killed,"
                " though a server that fails its check mostly finishes it; leave it out",
            )
        if server.said.get("observe") == "layer7":
            yield Finding(
                server.number,
                f"observe layer7 for {server.name}: every refusal counts as a failure of the"
                " server, or none does with retry-on 503; leave it out",
            )
    if section.last("option forwardfor") is None:
        yield Finding(
            section.number,
            f"no option forwardfor for {section.name}: an OPTIONS / from a client looks like a"
            " check and is not passed to the app; write it into the defaults",
        )


LOOKS: tuple[Callable[[Section, Sequence[Server]], Iterator[Finding]], ...] = (
    *(_retries, _queue, _balance, _agent, _check, _killing),
)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _seconds(text: str) -> float:
    """Return the seconds of HAProxy's times; a bare number is milliseconds."""
    parts = re.fullmatch(r"([0-9]+)(us|ms|s|m|h|d)?", text)
    return int(parts[1]) * UNITS[parts[2] or "ms"] if parts else 0.0
