"""Where to listen: addresses, and sockets that listen there."""

from __future__ import annotations

import _socket
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def address(text: str) -> tuple[str, int]:
    """Return the host and port that ``text`` names.

    ``HOST:PORT``, ``[IPV6]:PORT``, ``:PORT`` and ``PORT`` (both 127.0.0.1), and Twisted's
    ``tcp:PORT`` and ``tcp:PORT:interface=HOST``.

    :raises ValueError, TypeError: if it names none.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected HOST:PORT as a string, not {text!r}")
    if text.startswith("tcp:"):
        port, _, host = text[4:].partition(":interface=")
        host = host.replace("\\", "")
    else:
        host, _, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            port = ""  # an IPv6 address without its brackets: its last part is no port
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"expected HOST:PORT, with a port from 0 to 65535, not {text!r}")
    return host or "127.0.0.1", int(port)


def listening(
    listen: str, share: bool = False, note: Callable[[_socket.socket], object] = bool
) -> _socket.socket:
    """Return a socket that listens at ``listen``, of the class that nobody patches.

    :param share: whether others may listen there too, if they say the same.
    :param note: called with it before it listens.
    """
    where = address(listen)
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    listener = _socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(where)
        note(listener)
        listener.listen(256)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{error.strerror} (while binding to {where!r})") from None
    except BaseException:
        listener.close()
        raise
    return listener


def bound(listen: str) -> socket.socket:
    """Return an ordinary socket that listens at ``listen``, for a server."""
    listener = socket.socket(fileno=listening(listen).detach())
    listener.setblocking(True)
    return listener
