"""The standard library's own objects, where gevent has put others in their place.

A thread that is not gevent's cannot use gevent's sockets and locks. Nothing here imports gevent.
"""

from __future__ import annotations

import _socket
import importlib
import socket
import sys
import threading
from contextlib import suppress
from typing import Any

# As a part of a socket's type: the object has no timeout, and its descriptor stays as it is. Where
# an app has set a default timeout, Python has each new object wait for so long in every call, even
# one with MSG_DONTWAIT, and makes the descriptor non-blocking, with it all its copies, which their
# owners take for blocking: servers, other processes, libraries in C. Linux alone has this.
NO_TIMEOUT = getattr(socket, "SOCK_NONBLOCK", 0)

# Threads that must not wait for anybody, each with what starts another one.
busy_threads: dict[int, Any] = {}


def elsewhere(work: Any, *arguments: Any) -> None:
    """Do ``work`` here, or on a thread of its own if this is one that must not wait for anybody."""
    if busy_threads:
        start = busy_threads.get(original("_thread", "get_ident")())
        if start is not None:
            with suppress(RuntimeError):  # no thread is to be had: then it is not done
                start(work, arguments)
            return
    work(*arguments)


def begin(thread: threading.Thread) -> None:
    """Start a thread, unless the process is at its end, when nobody needs what it would do.

    From Python 3.12 on none can be started as soon as the main thread has returned, while others,
    which go on for a moment, may be about to.
    """
    try:
        thread.start()
    except RuntimeError as error:
        if "shutdown" not in str(error):
            raise


def original(module: str, name: str) -> Any:
    """Return the standard library's own ``module.name``, whether it has been patched or not."""
    monkey = sys.modules.get("gevent.monkey")
    get_original = getattr(monkey, "get_original", None)  # not there in the middle of its import
    if get_original is not None:
        return get_original(module, name)
    return getattr(importlib.import_module(module), name)


def is_patched(module: str) -> bool:
    """Return whether gevent has put its own in the place of what a module has."""
    patched = getattr(sys.modules.get("gevent.monkey"), "is_module_patched", None)
    return patched is not None and bool(patched(module))


def socket_at(descriptor: int) -> _socket.socket:
    """Return a socket for a descriptor, mostly a copy; nobody who has another one notices.

    :raises OSError: if it is none.
    """
    return _socket.socket(type=socket.SOCK_STREAM | NO_TIMEOUT, fileno=descriptor)


class Bell:
    """What one thread waits for, and any other rings; a ring before the wait is heard, too.

    One lock, which stays what it was when it was made, so make it before the thread. An Event takes
    a new one at every wait: in a thread that was begun after a fork, before gevent put its own in
    their place, that would be one of gevent's, and bring up a hub in that thread. Where the main
    thread brings up its own at that very moment, each of them waits for what the other imports, for
    ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Have the wait, or the next one, end at once."""
        with suppress(RuntimeError):  # it has been rung
            self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Wait for a ring, so long at most; return whether there was one."""
        return self._lock.acquire(timeout=seconds)
