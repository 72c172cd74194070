"""HAProxy's Runtime API: where it is, and how a command is sent to it.

Knows sockets and HAProxy's words; nothing of loads, and of threads only that each may call.
"""

from __future__ import annotations

import re
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from .._support.listener import address
from .agent import MOST_BALANCERS

if TYPE_CHECKING:
    from collections.abc import Iterable

# A path, or a host and port.
Where = str | tuple[str, int]

# What HAProxy lets a backend and a server be called. Nothing else gets into a command: a ``;``
# would begin another one.
NAMES = re.compile(r"[A-Za-z0-9_.:-]+/[A-Za-z0-9_.:-]+")

# Seconds in which a balancer has to take a command and answer it: it mostly takes a thousandth.
COMMAND_SECONDS = 1.0

# An answer is a line. More is not HAProxy, and is not waited for.
LONGEST_ANSWER = 4096


class Target(NamedTuple):
    """A server's line in one balancer's configuration, and the way there.

    :param server: ``backend/server``.
    """

    where: Where
    server: str


def target(text: str) -> Target:
    """Return what ``unix:/run/haproxy/admin.sock#app/web1`` or ``tcp:HOST:PORT#app/web1`` names.

    :raises ValueError: if it names nothing.
    """
    where, _, server = text.partition("#")
    kind, _, place = where.partition(":")
    if NAMES.fullmatch(server):
        if kind == "unix" and place:
            return Target(place, server)
        if kind == "tcp" and ":" in place:
            return Target(address(place), server)
    raise ValueError(
        f"expected unix:PATH#BACKEND/SERVER or tcp:HOST:PORT#BACKEND/SERVER, not {text!r}"
    )


def targets(texts: Iterable[str] | str) -> list[Target]:
    """Return the targets that these texts name, or one text with commas between.

    :raises ValueError: if one of them names nothing, or there is none.
    """
    if isinstance(texts, str):
        texts = texts.split(",")
    named = [target(text.strip()) for text in texts if text.strip()]
    if not named:
        raise ValueError("expected a balancer to push to, as unix:PATH#BACKEND/SERVER, not none")
    if len({one.where for one in named}) > MOST_BALANCERS:
        raise ValueError(f"expected at most {MOST_BALANCERS} balancers to push to")
    return named


def address_text(where: Where) -> str:
    """Return how an operator writes it."""
    if isinstance(where, str):
        return f"unix:{where}"
    host, port = where
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"


def say(where: Where, command: str) -> str:
    """Say a command and return what HAProxy has to say to that: nothing if all is well.

    A connection for each: one that is kept would go on talking to the old process when HAProxy is
    reloaded, and keep that process from ending.

    :raises OSError: if nobody is there, or does not answer in time.
    """
    until = time.monotonic() + COMMAND_SECONDS
    with _connected(where) as connection:
        connection.sendall(command.encode() + b"\n")
        answer = b""
        while len(answer) < LONGEST_ANSWER:
            connection.settimeout(max(0.001, until - time.monotonic()))
            data = connection.recv(LONGEST_ANSWER)
            if not data:
                break
            answer += data
    if not answer:  # not even the empty line: so it does when it has enough connections
        raise ConnectionError("closed without an answer")
    return answer.decode("ascii", "replace").strip()


def _connected(where: Where) -> socket.socket:
    if isinstance(where, tuple):
        connection = socket.create_connection(where, COMMAND_SECONDS)
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(COMMAND_SECONDS)
        connection.connect(where)
    except BaseException:
        connection.close()
        raise
    return connection
