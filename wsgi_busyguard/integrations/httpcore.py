"""HTTPX's connections, each of whose waits has what is left of its call."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import httpcore

from ..deadlines.deadline import TooLate, call_timeout
from .addresses import addresses

if TYPE_CHECKING:
    import ssl

# What is sent at once. A peer that takes it slowly is looked at as often.
PIECE_BYTES = 65536


class Left(float):
    """The seconds of a timeout, and the monotonic second at which the whole call ends.

    HTTPX reads a timeout once for a whole body, and hands it to each read of the connection.
    """

    deadline: float


def _now(timeout: float | None, late: type[Exception]) -> float | None:
    """Return the timeout for one wait of a call.

    :param late: raised if the call has no time left.
    """
    if not isinstance(timeout, Left):
        return timeout
    left = timeout.deadline - time.monotonic()
    if left <= 0:
        raise late("the client's patience ended before the answer did")
    return min(left, timeout)


def _sends_on(stream: httpcore.NetworkStream) -> socket.socket | None:
    """Return the socket on which a stream sends, if it sends as it is what it is given.

    That of TLS within TLS, which has its socket as well, encrypts first.
    """
    sock = stream.get_extra_info("socket") if type(stream).__name__ == "SyncStream" else None
    return sock if isinstance(sock, socket.socket) else None


def _sent(sock: socket.socket, data: memoryview, timeout: float) -> int:
    """Send what goes at once, and return how much that was."""
    try:
        sock.settimeout(timeout)
        return sock.send(data)
    except TimeoutError as late:
        raise httpcore.WriteTimeout(late) from late
    except OSError as error:
        raise httpcore.WriteError(error) from error


class _Stream(httpcore.NetworkStream):
    """A connection each of whose waits has what is left of its call."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _now(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        rest, sock = memoryview(buffer), _sends_on(self._stream)
        while rest:
            left = _now(timeout, httpcore.WriteTimeout)
            # Whatever is sent of it: a peer that takes it slowly is looked at as often.
            if left is None or sock is None:
                self._stream.write(bytes(rest[:PIECE_BYTES]), left)
                rest = rest[PIECE_BYTES:]
            else:
                rest = rest[_sent(sock, rest, left) :]

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _now(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()


class Backend(httpcore.NetworkBackend):
    """Makes the connections of a pool.

    :param backend: makes them in truth.
    """

    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *rest: Any, **more: Any
    ) -> httpcore.NetworkStream:
        """Connect, within what is left of the call, to the first of its addresses that can be."""
        if not isinstance(timeout, Left):
            return _Stream(self._backend.connect_tcp(host, port, timeout, *rest, **more))
        try:
            known = addresses(host, port)
        except OSError as unknown:
            raise httpcore.ConnectError(unknown) from unknown
        for last, address in enumerate(known, 1 - len(known)):
            try:
                left = _now(timeout, httpcore.ConnectTimeout)
                return _Stream(self._backend.connect_tcp(address, port, left, *rest, **more))
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not last:
                    raise
        raise httpcore.ConnectError(f"{host!r} has no address")

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, *rest: Any, **more: Any
    ) -> httpcore.NetworkStream:
        """Connect, within what is left of the call."""
        left = _now(timeout, httpcore.ConnectTimeout)
        return _Stream(self._backend.connect_unix_socket(path, left, *rest, **more))

    def sleep(self, seconds: float) -> None:
        """Pause between two tries, if there will be time for the next."""
        try:
            call_timeout(least=seconds)
        except TooLate as late:
            raise httpcore.ConnectTimeout(str(late)) from late
        self._backend.sleep(seconds)
