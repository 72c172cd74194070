"""The system calls of the loop: they return at once, and raise what a socket's methods raise.

A socket's method lets go of the interpreter's lock, for the call might block, and then has to get
it back, which takes long beside threads that compute. These calls cannot block, so where the C
library can be called without letting go, that is what is done. Beside four such threads the median
check took 45 to 57 ms by the methods, and takes 3 to 12 ms by the library.
"""

from __future__ import annotations

import _socket
import os
import select
import socket
import sys
from typing import Any

from .unpatched import NO_TIMEOUT

CHUNK_BYTES = 8192

# O_NONBLOCK would be one more call a peer. macOS has no MSG_NOSIGNAL.
AT_ONCE = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


class Plain:
    """The methods of a socket."""

    def accept(self, listener: _socket.socket) -> tuple[_socket.socket, str]:
        """Return the next connection and the host that it comes from."""
        # What socket.socket.accept() does, but its result is of the class that gevent puts there.
        descriptor, where = listener._accept()  # type: ignore[attr-defined]
        return _connection(listener, descriptor), str(where[0])

    def receive(self, connection: _socket.socket) -> bytes:
        """Return what there is, a chunk at most; nothing at the end."""
        return connection.recv(CHUNK_BYTES, AT_ONCE)

    def send(self, connection: _socket.socket, data: bytes) -> int:
        """Send as much as goes, and return how many bytes went."""
        return connection.send(data, AT_ONCE)

    def shut(self, connection: _socket.socket, how: int) -> None:
        """Shut a connection down."""
        connection.shutdown(how)

    def close(self, connection: _socket.socket) -> None:
        """Close a socket."""
        connection.close()


class Quick(Plain):
    """The functions of Linux's C library, for one thread: it has one buffer.

    :raises ImportError: if there is no ``ctypes``; likewise :exc:`OSError`, :exc:`AttributeError`.
    """

    def __init__(self) -> None:
        import ctypes  # not everywhere there

        library = ctypes.PyDLL(None, use_errno=True)
        whole, size, count, any_ = ctypes.c_int, ctypes.c_size_t, ctypes.c_ssize_t, ctypes.c_void_p

        def function(name: str, result: Any, *arguments: Any) -> Any:
            found = getattr(library, name)
            found.restype, found.argtypes = result, arguments
            return found

        self._accept = function("accept4", whole, whole, any_, any_, whole)
        self._recv = function("recv", count, whole, any_, size, whole)
        self._send = function("send", count, whole, ctypes.c_char_p, size, whole)
        self._shutdown = function("shutdown", whole, whole, whole)
        self._close = function("close", whole, whole)
        self._buffer = ctypes.create_string_buffer(CHUNK_BYTES)
        self._where = ctypes.create_string_buffer(128)  # sockaddr_storage
        self._length = whole()
        self._length_at = ctypes.addressof(self._length)
        self._errno = ctypes.get_errno
        self._bytes_at = ctypes.string_at

    def accept(self, listener: _socket.socket) -> tuple[_socket.socket, str]:
        """Return the next connection and the host that it comes from."""
        self._length.value = len(self._where)
        descriptor = self._checked(
            self._accept(listener.fileno(), self._where, self._length_at, socket.SOCK_CLOEXEC)
        )
        return _connection(listener, descriptor), _host(self._where.raw)

    def receive(self, connection: _socket.socket) -> bytes:
        """Return what there is, a chunk at most; nothing at the end."""
        count = self._recv(connection.fileno(), self._buffer, CHUNK_BYTES, AT_ONCE)
        return self._bytes_at(self._buffer, self._checked(count))

    def send(self, connection: _socket.socket, data: bytes) -> int:
        """Send as much as goes, and return how many bytes went."""
        return self._checked(self._send(connection.fileno(), data, len(data), AT_ONCE))

    def shut(self, connection: _socket.socket, how: int) -> None:
        """Shut a connection down."""
        self._checked(self._shutdown(connection.fileno(), how))

    def close(self, connection: _socket.socket) -> None:
        """Close a socket."""
        self._close(connection.detach())  # -1 if it was closed before, which is nobody's

    def _checked(self, result: int) -> int:
        if result < 0:
            number = self._errno()
            raise OSError(number, os.strerror(number))
        return result


def system_calls() -> Plain:
    """Return the quickest that there are here."""
    if sys.platform == "linux" and sys.implementation.name == "cpython":
        try:
            return Quick()
        except (ImportError, OSError, AttributeError):
            pass  # a Python without ctypes, or another C library
    return Plain()


def _connection(listener: _socket.socket, descriptor: int) -> _socket.socket:
    try:
        kind = listener.type | NO_TIMEOUT
        return _socket.socket(listener.family, kind, listener.proto, descriptor)
    except BaseException:
        _socket.close(descriptor)
        raise


def _host(where: bytes) -> str:
    """Return the host in a ``sockaddr`` as Linux lays it out (ip(7), ipv6(7))."""
    family = int.from_bytes(where[:2], sys.byteorder)
    begins, ends = (8, 24) if family == socket.AF_INET6 else (4, 8)
    return socket.inet_ntop(family, where[begins:ends])


def ready(sock: _socket.socket, event: int) -> bool:
    """Return whether what ``poll()`` calls ``event`` would not wait on a socket."""
    poller = select.poll()
    poller.register(sock, event)
    return bool(poller.poll(0))


def readable(sock: _socket.socket) -> bool:
    """Return whether something can be read of a socket, or its end, as of one that is closed."""
    try:
        return ready(sock, select.POLLIN)
    except ValueError:  # another thread has just closed it
        return True
