"""The WSGI app that the tests serve with gunicorn; each request says what it does."""

from __future__ import annotations

import ctypes
import json
import os
import threading
import time
from pathlib import Path

import hoarding

RAN = []  # what ran in this worker: path, and the instants of begin and end


def app(environ, start_response):
    path = environ["PATH_INFO"]
    what, _, how = path.strip("/").partition("/")
    RAN.append(path)
    body = DOES.get(what, page)(how, environ)
    if isinstance(body, str):
        body = body.encode()
    if not isinstance(body, bytes):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "100")])
        return body
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def coming(scope, receive, send):
    """An ASGI app."""


def page(how, environ):
    return f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"


def sleep(how, environ):
    time.sleep(float(how))
    return f"slept {how}"


def compute(how, environ):
    """Keep the interpreter busy for so many seconds of this thread's own time."""
    end = time.thread_time() + float(how)
    count = 0
    while time.thread_time() < end:
        count += sum(range(100))
    return f"computed {how}"


def seize(how, environ):
    """Keep the interpreter's lock for so many seconds: a call into C that does not let go of it."""
    ctypes.PyDLL(None).usleep(int(float(how) * 1_000_000))
    return f"seized for {how}"


def until(how, environ):
    """Say that it runs, by a file, and wait for another one to appear."""
    Path(f"/{how}.in").touch()
    while not os.path.exists(f"/{how}"):
        time.sleep(0.02)
    return f"waited for {how}"


def hoard(how, environ):
    """Have every file descriptor that is left until there is a file."""
    hoarding.hoard(f"/{how}")
    return f"had them until {how}"


def stamps(how, environ):
    time.sleep(float(how or 0))
    return json.dumps(
        {
            "waited": environ.get("busyguard.waited"),
            "left": environ.get("busyguard.deadline", 0) - time.monotonic(),
            "state": environ["busyguard.monitor"].state.value,
        }
    )


def ran(how, environ):
    return json.dumps(RAN)


def pid(how, environ):
    return str(os.getpid())


def own(how, environ):
    """Read the connection without gunicorn, as what serves WebSockets does."""
    sock = environ["gunicorn.socket"]
    return sock.recv(100)


def length(how, environ):
    return str(len(environ["wsgi.input"].read()))


def big(how, environ):
    return b"b" * int(how)


def breaks(how, environ):
    """Raise when half of the answer is out."""
    yield b"b" * 50
    raise RuntimeError("breaks, as it was asked to")


def inside(how, environ):
    """Show what the guarded worker keeps; this request is one of its connections."""
    worker = environ["busyguard.monitor"].adapter._worker
    return json.dumps(
        {
            "connections": worker.nr_conns,
            "silent": len(worker._silent),
            "lingering": len(worker._lingering),
            "known": len(worker._pool._connections),
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),
        }
    )


def version(how, environ):
    import gunicorn

    return gunicorn.__version__


DOES = {
    "big": big,
    "breaks": breaks,
    "inside": inside,
    "sleep": sleep,
    "hoard": hoard,
    "compute": compute,
    "seize": seize,
    "until": until,
    "stamps": stamps,
    "ran": ran,
    "pid": pid,
    "version": version,
    "length": length,
    "own": own,
}
