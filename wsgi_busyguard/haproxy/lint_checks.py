"""What is known to go wrong with the checks of a backend.

They ask either the app's port, where the guard answers ``OPTIONS /`` and three paths, or a check
port, which answers nothing but checks and shows the figures.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from .config_reader import BackendSection, ConfigLine, Finding, Section, ServerLine, number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Of a guarded app's port; everything else that is asked for is the app's.
OURS = {"/", "*", "/readyz", "/healthz", "/livez"}

# What says on a check port whether a server is to get requests, and what is always 200 there.
READY_PAGES = {"/readyz", "/healthz", "/"}
FIGURES = {"/load", "/metrics"}

WELL, BUSY = "200", "503"

# Words between http-check expect and what is expected, each with one after it.
OPTIONS = {"min-recv", "comment", "ok-status", "error-status", "tout-status", "status-code"}
OPTIONS |= {"on-success", "on-error"}


class Probe(NamedTuple):
    """What a check asks for."""

    method: str
    path: str
    version: str
    has_host: bool


def check_mistakes(backend: BackendSection) -> Iterator[Finding]:
    """Yield what is known to go wrong with the checks of a backend."""
    section = backend.section
    checked = [server for server in backend.servers if server.on("check")]
    line = section.check
    if checked and (line is None or line.words[1] != "httpchk"):
        yield _no_http(section, checked[0], line)
    elif checked and line is not None:
        probe = probed(section, line)
        yield from _asks(section, line, probe, checked)
        if probe.version == "HTTP/1.1" and not probe.has_host:
            yield Finding(
                line.number,
                "option httpchk with HTTP/1.1 and no Host: Apache and uvicorn answer 400,"
                " and are out; write http-check send hdr Host app, or leave HTTP/1.1 out",
            )
        yield from _expects(section)
    stopping = section.last("http-check disable-on-404")
    if stopping is not None:
        yield Finding(
            stopping.number,
            "http-check disable-on-404 has no effect: the guard says 503 while it drains, never"
            " 404; leave it out",
        )


def _no_http(section: Section, server: ServerLine, line: ConfigLine | None) -> Finding:
    is_plain = line is None or line.words[1] == "tcp-check"
    if line is None:
        what = f"check without option httpchk in {section.name}"
    else:
        what = f"option {line.words[1]} in {section.name}, which takes the place of option httpchk"
    why = "it only connects" if is_plain else "it does not ask the guard"
    return Finding(
        (line or server).number,
        f"{what}: {why}, so a server that drains or is stuck looks well; write option httpchk",
    )


def _asks(
    section: Section, line: ConfigLine, probe: Probe, checked: Sequence[ServerLine]
) -> Iterator[Finding]:
    """Yield what is wrong with what is asked for, at the app's port or at a check port."""
    method, path = probe.method, probe.path.partition("?")[0]
    beside = section.last("http-check connect")
    at_check_port = [has_own_port(server) for server in checked]
    if beside is not None and "port" in beside.words:
        at_check_port = [True]
    if path == "/livez" and not (method == "OPTIONS" and all(at_check_port)):
        yield Finding(
            line.number,
            "the check asks /livez, which is for restarts: it says well while the server"
            " drains; write option httpchk alone",
        )
        return
    asks_app = path not in OURS or (path == "/" and method != "OPTIONS")
    if not all(at_check_port) and asks_app:
        yield Finding(
            line.number,
            f"the check {method} {probe.path} goes through the app, and waits where its requests"
            " wait; write option httpchk alone: the guard answers OPTIONS /",
        )
    if any(at_check_port) and method != "OPTIONS" and path not in READY_PAGES:
        says = "always 200" if path in FIGURES else "404, and every server is out"
        yield Finding(
            line.number,
            f"the check {method} {probe.path} at a check port is {says}; write option httpchk"
            " alone, or option httpchk GET /readyz",
        )


def has_own_port(server: ServerLine) -> bool:
    """Return whether the checks of a server go to another port than its requests."""
    return server.settings.get("port", "") not in ("", server.where.rpartition(":")[2])


def probed(section: Section, option: ConfigLine) -> Probe:
    """Return what the checks of a section ask for."""
    words = option.words[2:]
    method, path, version = "OPTIONS", "/", ""
    if len(words) == 1:
        path = words[0]
    elif words:
        method, path = words[:2]
        version = " ".join(words[2:])  # a header may follow it, as in HTTP/1.1\r\nHost:\ app
    has_host = "host:" in version.lower()
    for send in section.all("http-check send"):
        settings, headers = _sent(send.words[2:])
        method, path = (
            settings.get("meth", method),
            settings.get("uri", settings.get("uri-lf", path)),
        )
        version = settings.get("ver", version)
        has_host = has_host or "host" in headers
    return Probe(method, path, version[:8], has_host)


def _sent(words: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """Return what ``http-check send`` says, and the names of its headers."""
    settings, headers, rest = {}, set(), [*words, "", ""]
    while rest[0]:
        word = rest.pop(0)
        value = rest.pop(0)
        if word == "hdr":
            headers.add(value.lower())
            rest = [*rest[1:], ""]
        else:
            settings[word] = value
    return settings, headers


def _expects(section: Section) -> Iterator[Finding]:
    """Yield what takes a server out that is well, or leaves one in that is not."""
    for line in section.all("http-check expect"):
        wrong = _wrong(line.words[2:])
        if wrong is not None:
            yield Finding(
                line.number,
                f"{' '.join(line.words)} {wrong}; write http-check expect status 200, or leave"
                " it out",
            )


def _wrong(words: Sequence[str]) -> str | None:
    rest = list(words)
    while rest and rest[0] in OPTIONS:
        del rest[:2]
    is_not = rest[:1] == ["!"]
    kind, *patterns = [*rest[is_not:], ""]
    if "$" in "".join(patterns):
        return None  # a variable of the environment
    if kind not in ("status", "rstatus"):
        return "does not look at the status: a server that is ready may say busy, and a 503 too"
    takes = [_matches(kind, patterns[0], status) != is_not for status in (WELL, BUSY)]
    if takes == [True, False]:
        return None
    return "takes out who is well: the guard says 200" if not takes[0] else "takes 503 for well"


def _matches(kind: str, pattern: str, status: str) -> bool:
    if kind == "rstatus":
        try:
            return re.search(pattern, status) is not None
        except (re.error, OverflowError, RecursionError):  # {99999999999}, or (((((
            return False
    bounds = [part.partition("-") for part in pattern.split(",")]
    known = [(number(low), number(high if dash else low)) for low, dash, high in bounds]
    return any(a is not None and b is not None and a <= int(status) <= b for a, b in known)
