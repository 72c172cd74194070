"""Asks a server for its state, as a balancer does, and says what its answer means."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from .text_values import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from urllib.parse import SplitResult

#: Exit codes.
FREE, NOT_NOW, NO_ANSWER = 0, 1, 2

#: The states that a guard's answer to a check may name.
STATES = frozenset({"free", "busy", "draining", "absent", "alive", "stalled"})

#: Where the check port is taken to be, unless the environment variable of that name says.
CHECK_PORT, CHECK_VARIABLE = "127.0.0.1:8081", "BUSYGUARD_CHECK"

TIMEOUT_SECONDS = 2.0  # HAProxy's default for a check is its inter, 2 s

# An answer is cut off here. The figures of a thousand processes are a tenth.
LONGEST_BYTES = 4 << 20

# The characters after which what a server says is cut off where it is shown.
LONGEST_SHOWN = 200


class CheckResult(NamedTuple):
    """What comes of a check.

    :param code: the exit code that it amounts to: 0 free, 1 busy or draining, 2 no answer.
    :param text: the state, or what was in the way.
    """

    code: int
    text: str


def default_target(variables: Mapping[str, str] = os.environ) -> str:
    """Return where to ask if nobody says: at the check port."""
    return variables.get(CHECK_VARIABLE) or CHECK_PORT


def ask(target: str, timeout: float = TIMEOUT_SECONDS) -> CheckResult:
    """Ask for the state.

    :param target: ``http://host:port/readyz``; or ``host:port`` or ``port`` of a check port, whose
        figures are shown as well.
    :param timeout: seconds to connect, and seconds for the whole answer.
    :raises ValueError: if the target is none.
    """
    url = split(target)
    try:
        status, content_type, body = fetched(url, timeout)
    except (OSError, http.client.HTTPException) as error:
        return CheckResult(NO_ANSWER, f"no answer from {url.geturl()}: {_reason(error)}")
    if url.path == "/load" and status == 200:
        return _figures(body)
    text = body.decode("utf-8", "replace").strip().splitlines()
    line = _shown(text[0]) if text else ""
    if status == 503:  # also a balancer's own, that no server is there, and a custom refusal
        return CheckResult(NOT_NOW, line)
    if status != 200:
        reason = f"no answer to a check from {url.geturl()}: {status} {line}"
        return CheckResult(NO_ANSWER, reason.rstrip())
    if not _is_a_guards(content_type, text):  # the path is wrong, or no guard is there
        what = f"200 {_shown(content_type)}".rstrip()
        return CheckResult(
            NO_ANSWER, f"{url.geturl()} is no check of a guard (is the path right?): {what}"
        )
    return CheckResult(FREE, line)


def split(target: str) -> SplitResult:
    """Return the URL that a target stands for; for a bare address, its figures."""
    if re.fullmatch(r"[0-9]+", target):
        target = f"127.0.0.1:{target}"
    if "://" not in target:
        target = f"http://{target}" if "/" in target else f"http://{target}/load"
    url = urlsplit(target)
    try:
        known = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        known = False
    if not known:
        raise ValueError(
            "expected a URL such as http://host:8080/readyz, or host:port of a check port,"
            f" not {target!r}"
        )
    return url if url.path else url._replace(path="/readyz")


def fetched(url: SplitResult, timeout: float) -> tuple[int, str, bytes]:
    """Return the status, the content type and the body.

    Redirects are answers: a balancer follows none.

    :param timeout: seconds to connect, and seconds for the whole answer: one that comes in drops
        would keep whoever asks waiting for ever.
    :raises OSError, http.client.HTTPException: if there is no answer, or none in HTTP.
    """
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=timeout)
    try:
        path = f"{url.path}?{url.query}" if url.query else url.path
        headers = {"User-Agent": "busyguard", "Connection": "close"}
        connection.connect()
        with _within(connection.sock, timeout):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type", ""), answer.read(LONGEST_BYTES)
    finally:
        connection.close()


@contextlib.contextmanager
def _within(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Cut the connection off after so many seconds; then an answer is too late."""
    late = threading.Event()

    def cut() -> None:
        late.set()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # of TLS too: no close_notify

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if late.is_set():
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError


def _is_a_guards(content_type: str, text: list[str]) -> bool:
    """Return whether this is a guard's answer to a check: a line of text that begins with a state.

    Behind the state there may be figures (``expose_load=True``). A refusal says ``busy``, too.
    """
    if content_type.partition(";")[0].strip().lower() != "text/plain" or len(text) != 1:
        return False
    state, *figures = text[0].split()
    return state in STATES and all("=" in figure for figure in figures)


def _figures(body: bytes) -> CheckResult:
    try:
        load: Any = json.loads(body)
        state, code = load["state"], FREE if load["ready"] else NOT_NOW
        if state not in STATES:
            raise ValueError(f"expected a state, not {state!r}")
    except (ValueError, KeyError, TypeError, RecursionError):  # the last: lists in lists in lists
        return CheckResult(NO_ANSWER, "no answer to a check: this is no check port's /load")
    named = [(name, load.get(name)) for name in ("queued", "active", "capacity", "delay")]
    figures = [f"{name}={_shown(str(n))}" for name, n in named if isinstance(n, int | float)]
    return CheckResult(code, " ".join([state, *figures]))


def _shown(text: str) -> str:
    """Return what can be shown on a terminal: whoever answers there may be anything."""
    return plain(text[:LONGEST_SHOWN])


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _shown(str(error)) or type(error).__name__
