"""The WSGI app of the guarded sites for the tests: each path says what is to be done.

A control port on threads of its own says what ran and lets go of requests that hang.
"""

from __future__ import annotations

import collections
import json
import os
import socketserver
import threading
import time
import traceback

from hoarding import hoard

from wsgi_busyguard import remaining, under_pressure

ran = collections.Counter()
began = []
released = threading.Event()
transitions = []


def app(environ, start_response):
    path = environ["SCRIPT_NAME"] + environ["PATH_INFO"]
    ran[path] += 1
    began.append(path)
    _, what, *rest = path.split("/")
    make = globals().get("do_" + what, do_echo)
    return make(environ, start_response, *rest)


def plain(start_response, body=b"done", **headers):
    fields = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    start_response("200 OK", [*fields, *headers.items()])
    return [body]


def do_echo(environ, start_response, *_):
    shown = {
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"],
        "query": environ["QUERY_STRING"],
        "script": environ["SCRIPT_NAME"],
        "scheme": environ["wsgi.url_scheme"],
        "waited": environ.get("busyguard.waited"),
        "remaining": remaining(environ),
        "deadline": environ.get("busyguard.deadline", 0) - time.monotonic(),
        "monitor": repr(environ.get("busyguard.monitor")),
        "pressure": under_pressure(environ),
        "thread": threading.current_thread().name,
    }
    return plain(start_response, json.dumps(shown).encode())


def do_sleep(environ, start_response, seconds):
    time.sleep(float(seconds))
    return plain(start_response)


def do_hang(environ, start_response, *_):
    released.wait(60)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]  # no length: the client sees the end when the server has finished the request


def do_until(environ, start_response, *path):
    """Hang until there is a file."""
    while not os.path.exists("/" + "/".join(path)):
        time.sleep(0.02)
    return plain(start_response)


def do_late(environ, start_response, *_):
    """Hang, then say how it went on arrival."""
    waited = environ["busyguard.waited"]
    left = remaining(environ)
    released.wait(60)
    return plain(start_response, json.dumps({"waited": waited, "remaining": left}).encode())


def do_hoard(environ, start_response, *parts):
    hoard("/" + "/".join(parts))
    return plain(start_response)


def do_cpu(environ, start_response, seconds):
    until = time.thread_time() + float(seconds)
    while time.thread_time() < until:
        sum(range(200))
    return plain(start_response)


def do_length(environ, start_response, *_):
    length = 0
    while chunk := environ["wsgi.input"].read(65536):
        length += len(chunk)
    return plain(start_response, str(length).encode())


def do_big(environ, start_response, size):
    return plain(start_response, b"x" * int(size))


def do_drip(environ, start_response, pieces):
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(int(pieces)):
        yield b"x" * 1000
        time.sleep(0.05)


def do_pieces(environ, start_response, count):
    """As many megabytes, one after the other."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(int(count)):
        yield b"x" * 1_000_000


def do_events(environ, start_response, seconds):
    """Server-sent events, of which the second one comes late."""
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    yield b"data: first\n\n"
    time.sleep(float(seconds))
    yield b"data: second\n\n"


def do_before(environ, start_response, *_):
    raise RuntimeError("before start_response")


def do_midway(environ, start_response, *_):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"some"
    raise RuntimeError("midway")


def do_after(environ, start_response, *_):
    start_response("200 OK", [("Content-Type", "text/plain")])
    raise RuntimeError("after start_response")


class NoClose:
    def __iter__(self):
        return iter([b"no ", b"close"])


def do_noclose(environ, start_response, *_):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return NoClose()


class BadClose(NoClose):
    def close(self):
        raise RuntimeError("close")


def do_badclose(environ, start_response, *_):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return BadClose()


def refusal(name):
    """Return the refusal app of this name."""
    if name == "webob":
        from webob.exc import HTTPServiceUnavailable

        return HTTPServiceUnavailable("come back later")
    if name == "werkzeug":
        from werkzeug.exceptions import TooManyRequests

        return TooManyRequests("come back later")
    known = {"raises": raising, "raises late": RaisingLate, "slow": slow, "odd header": odd_header}
    return known.get(name)


def raising(environ, start_response):
    environ["wsgi.errors"].write("the refusal app says this\n")
    raise RuntimeError("refusal")


class RaisingLate:
    def __init__(self, environ, start_response):
        start_response("503 Later", [("Content-Type", "text/plain")])

    def __iter__(self):
        raise RuntimeError("refusal, late")


def slow(environ, start_response):
    time.sleep(1)
    start_response("503 Later", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"slow"]


def odd_header(environ, start_response):
    start_response("503 Later", [("X-Odd", "\u20ac"), ("Content-Length", "3")])
    return [b"odd"]


class Control(socketserver.StreamRequestHandler):
    def handle(self):
        try:
            what = self.rfile.readline().decode().split()[1].strip("/")
            while self.rfile.readline().strip():
                pass
            name, _, value = what.partition("/")
            body = json.dumps(getattr(self, "on_" + name)(value)).encode()
        except Exception:
            traceback.print_exc()
            body = b"null"
        head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.wfile.write(head + body)

    def on_ran(self, _):
        return dict(ran)

    def on_began(self, _):
        return began

    def on_release(self, _):
        released.set()

    def on_hold(self, _):
        released.clear()

    def on_transitions(self, _):
        return transitions

    def on_threads(self, _):
        return sorted(thread.name for thread in threading.enumerate())

    def on_descriptors(self, _):
        return len(os.listdir("/proc/self/fd"))


def heard(transition):
    """Keep what a listener hears."""
    name = threading.current_thread().name
    transitions.append([transition.state.value, name, transition.load.queued])


def control(kind=Control):
    """Begin to answer on the control port, and return its number."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


if __name__ != "__main__" and os.environ.get("TEST_CONTROL"):  # in a worker of gunicorn
    print("control:", control(), flush=True)
