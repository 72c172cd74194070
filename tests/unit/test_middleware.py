from __future__ import annotations

import contextlib
import http.client
import inspect
import io
import json
import logging
import math
import os
import random
import socket
import threading
from collections import deque
from wsgiref.handlers import SimpleHandler
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.util import FileWrapper

import pytest
import webob.exc
import werkzeug.exceptions
from webob import Response as WebObResponse

from wsgi_busyguard import BusyGuard, Gate, Load, Monitor, State, remaining, under_pressure
from wsgi_busyguard.adapters.detect import Server
from wsgi_busyguard.deadlines.environ import DEADLINE, MONITOR, WAITED

BUSY_LOAD = Load(4, 4, 4, waited=9.0, service=9.0)


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"app"]


@pytest.fixture
def monitor(telling):
    """A monitor over a dial; such a guard knows its queue and has nothing to warn of."""
    return Monitor(telling)


@pytest.fixture
def guard(lint, monitor):
    return BusyGuard(lint(app), monitor=monitor)


@pytest.fixture
def busy(telling, guard):
    telling.set(BUSY_LOAD)


@pytest.fixture
def draining(guard):
    guard.monitor.drain()


# The table of section 7

READY_CHECKS = [
    ("OPTIONS", "/"),
    *((method, path) for path in ("/healthz", "/readyz") for method in ("GET", "HEAD", "OPTIONS")),
]
LIVE_CHECKS = [(method, "/livez") for method in ("GET", "HEAD", "OPTIONS")]


def text(method, words):
    return "" if method == "HEAD" else words


@pytest.mark.parametrize(("method", "path"), READY_CHECKS)
def test_ready_is_200_while_free(ask, guard, method, path):
    assert ask(guard, method, path)[::3] == (200, text(method, "free"))


@pytest.mark.parametrize(("method", "path"), READY_CHECKS)
def test_ready_is_503_while_busy_for_long(ask, guard, busy, method, path):
    assert ask(guard, method, path)[::3] == (503, text(method, "busy"))


@pytest.mark.parametrize(("method", "path"), READY_CHECKS)
def test_ready_is_503_while_draining(ask, guard, draining, method, path):
    assert ask(guard, method, path)[::3] == (503, text(method, "draining"))


@pytest.mark.parametrize(("method", "path"), LIVE_CHECKS)
def test_live_is_200_while_busy_and_draining(ask, guard, busy, draining, method, path):
    assert ask(guard, method, path)[::3] == (200, text(method, "alive"))


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/livez"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_another_method_on_a_check_path_is_405(ask, guard, method, path):
    response = ask(guard, method, path)
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("HEAD", "/"), ("POST", "/"), ("GET", "/x"), ("OPTIONS", "/x"), ("GET", "/x/")],
)
def test_all_else_is_the_apps(ask, guard, busy, method, path):
    assert ask(guard, method, path)[::3] == (200, text(method, "app"))


# Policies


@pytest.mark.parametrize(
    ("ready", "short_queue", "long_queue"),
    [("exact", 503, 503), ("damped", 200, 503), ("always", 200, 200)],
)
def test_the_policy_is_the_guards_or_the_checks(
    ask, monitor, telling, ready, short_queue, long_queue
):
    by_itself = BusyGuard(app, monitor=monitor, ready=ready)
    other = BusyGuard(app, monitor=monitor, ready="always" if ready == "exact" else "exact")
    for load, status in [
        (Load(0, 0, 4), 200),
        (Load(1, 4, 4, service=0.1), short_queue),
        (BUSY_LOAD, long_queue),
    ]:
        telling.set(load)
        assert ask(by_itself, "OPTIONS").status == status
        assert ask(other, "OPTIONS", query=f"ready={ready}").status == status
        assert ask(other, "GET", "/readyz", f"ready={ready}").status == status
    monitor.drain()
    assert ask(by_itself, "OPTIONS").status == 503


def test_an_unknown_policy_in_a_check_is_400_and_names_the_three(ask, guard):
    response = ask(guard, "GET", "/readyz", "ready=maybe")
    assert response[::3] == (400, "ready must be one of exact, damped, always")


def test_patience_is_the_guards(ask, monitor, telling):
    telling.set(Load(1, 4, 4, waited=3.0, service=0.1))
    assert ask(BusyGuard(app, monitor=monitor), "OPTIONS").status == 503
    assert ask(BusyGuard(app, monitor=monitor, patience=3.1), "OPTIONS").status == 200


# Who is behind it


@pytest.mark.parametrize(
    "header",
    [
        "HTTP_ORIGIN",
        "HTTP_ACCESS_CONTROL_REQUEST_METHOD",
        "HTTP_X_FORWARDED_FOR",
        "HTTP_FORWARDED",
        "HTTP_VIA",
        "HTTP_X_REAL_IP",
    ],
)
def test_options_with_somebody_behind_it_goes_to_the_app(ask, guard, header):
    assert ask(guard, "OPTIONS", "/", **{header: "x"}).text == "app"


def test_without_check_root_options_goes_to_the_app(ask, monitor):
    guard = BusyGuard(app, monitor=monitor, check_root=False)
    assert ask(guard, "OPTIONS").text == "app"
    assert ask(guard, "GET", "/readyz").text == "free"


def test_paths_are_what_the_operator_says(ask, monitor):
    guard = BusyGuard(app, monitor=monitor, ready_paths=["/up"], live_paths=["/ping"])
    assert ask(guard, "GET", "/up").text == "free"
    assert ask(guard, "GET", "/ping").text == "alive"
    assert ask(guard, "GET", "/readyz").text == "app"
    assert ask(guard, "GET", "/livez").text == "app"


# Mounts


@pytest.mark.parametrize(
    ("script", "path"), [("/shop", "/"), ("/shop", ""), ("/shop", "/readyz"), ("/a/b", "/livez")]
)
def test_a_guard_that_is_mounted_leaves_what_is_below_to_the_app(ask, guard, script, path):
    assert ask(guard, "OPTIONS", path, script=script).text == "app"


@pytest.mark.parametrize(
    ("script", "path"),
    [("/shop", "/readyz"), ("", "/shop/readyz"), ("/shop/readyz", "")],
    ids=["mounted", "not mounted", "mounted at the path itself"],
)
def test_a_check_path_is_the_one_that_the_balancer_asked_for(ask, monitor, script, path):
    guard = BusyGuard(app, monitor=monitor, ready_paths=["/shop/readyz"])
    assert ask(guard, "GET", path, script=script).text == "free"


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("OPTIONS", "http://web1/", b"free"),
        ("GET", "http://web1/readyz", b"free"),
        ("GET", "http://web1/page", b"app"),
    ],
)
def test_an_absolute_target_that_a_server_passes_whole(monkeypatch, environ, method, target, body):
    """As wsgiref does; its own validator would not have that."""
    whole = Server("wsgiref", 1, whole_targets=True)
    monkeypatch.setattr("wsgi_busyguard.adapters.first_request.find", lambda environ: whole)
    assert BusyGuard(app)(environ(method, target), lambda *said: None) == [body]
    assert BusyGuard(app, slots=2)(environ(method, target), lambda *said: None) == [body]


def test_an_environ_without_path_is_that_of_the_root(guard, environ):
    """PEP 3333 lets a server leave out what is empty."""
    bare = environ("OPTIONS")
    del bare["PATH_INFO"], bare["SCRIPT_NAME"], bare["QUERY_STRING"]
    started = []
    assert guard(bare, lambda *said: started.append(said)) == [b"free"]


# JSON, figures


@pytest.mark.parametrize("accept", ["application/json", "application/health+json"])
def test_who_asks_for_json_gets_it(ask, guard, accept):
    response = ask(guard, "GET", "/readyz", HTTP_ACCEPT=accept)
    assert response.headers["Content-Type"] == accept
    assert json.loads(response.text) == {"status": "pass", "state": "free"}


def test_garbage_for_accept_is_answered(ask, guard):
    assert ask(guard, "GET", "/readyz", HTTP_ACCEPT="\xff;;=,").text == "free"


def test_no_figures_on_the_traffic_port_unless_asked_for(ask, monitor, telling):
    telling.set(Load(7, 10, 10, waited=0.84, service=0.1))
    assert ask(BusyGuard(app, monitor=monitor), "OPTIONS").text == "busy"
    shown = ask(BusyGuard(app, monitor=monitor, expose_load=True), "OPTIONS").text
    assert shown == "busy queued=7 active=10 capacity=10 delay=0.84"


# Guarding must never be the outage


@pytest.mark.parametrize("rubbish", [RuntimeError("gone"), None, "x", Load(None, 1, 4)], ids=repr)
def test_a_load_that_cannot_be_read_is_200_and_logged_once(ask, guard, telling, rubbish, caplog):
    telling.load = rubbish
    for _ in range(5):
        assert ask(guard, "OPTIONS")[::3] == (200, "free")
        assert ask(guard, "GET", "/x").text == "app"
    assert len(caplog.records) == 1


def test_even_the_figures_survive_rubbish(ask, telling, monitor):
    telling.load = Load(0, 0, 4, waited="long")
    guard = BusyGuard(app, monitor=monitor, expose_load=True)
    assert ask(guard, "OPTIONS").text == "free queued=0 active=0 delay=0.0"


# Pass-through


@pytest.mark.parametrize("options", [{}, {"client_timeout": 3.0}], ids=["plain", "stamping"])
@pytest.mark.parametrize("path", ["/", "/x"])
def test_the_body_of_the_app_is_passed_on_as_it_is(monitor, environ, options, path):
    body, start_response, seen = iter([b"x"]), object(), []

    def app(environ, start_response):
        seen.append((environ, start_response))
        return body

    request = environ("GET", path)
    assert BusyGuard(app, monitor=monitor, **options)(request, start_response) is body
    assert seen[0][0] is request
    assert seen[0][1] is start_response


def test_what_the_app_raises_comes_through(monitor, environ):
    def app(environ, start_response):
        raise KeyError("PATH_INFO")

    with pytest.raises(KeyError, match="PATH_INFO"):
        BusyGuard(app, monitor=monitor)(environ("GET", "/x"), None)


def test_a_plain_guard_stamps_nothing(monitor, environ):
    request = environ()
    BusyGuard(app, monitor=monitor)(request, lambda *said: None)
    assert not {WAITED, MONITOR, DEADLINE} & set(request)
    assert remaining(request) == 5.0


def test_a_guard_that_knows_the_clients_stamps(monitor, environ, telling):
    request = environ()
    BusyGuard(app, monitor=monitor, client_timeout=30.0)(request, lambda *said: None)
    assert request[WAITED] == 0.0
    assert 0.0 < remaining(request) <= 30.0
    assert under_pressure(request) is False
    telling.set(BUSY_LOAD)
    assert under_pressure(request) is True


# A guard that does not know the server


def test_a_guard_on_an_unknown_server_says_so_once_and_is_always_free(ask, caplog):
    guard = BusyGuard(app)
    for _ in range(3):
        assert ask(guard, "GET", "/x", SERVER_SOFTWARE="Peanut/1").text == "app"
        assert ask(guard, "OPTIONS").text == "free"
    [record] = caplog.records
    assert record.name == "wsgi_busyguard"
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "the queue of this server (Peanut/1) is not known, so every check says free;"
        " BusyGuard(app, slots=N) makes the guard the queue, for a server started with"
        " at least N + 4 * N + 2 threads"
    )


def test_the_first_requests_may_all_come_at_once(caplog, start, environ, hurry):
    """Some servers look __call__ up once, or many threads do before the first has answered."""
    call = BusyGuard(app).__call__
    together = threading.Barrier(8)

    def visit():
        together.wait()
        for _ in range(20):
            assert call(environ("GET", "/x"), lambda *said: None) == [b"app"]

    for thread in [start(visit) for _ in range(8)]:
        thread.join(20)
    assert len(caplog.records) == 1


def test_a_guard_that_knows_has_nothing_to_warn_of(ask, monitor, roomy, caplog):
    for guard in (BusyGuard(app, monitor=monitor), BusyGuard(app, slots=2)):
        ask(guard, "GET", "/x")
        ask(guard, "OPTIONS")
    assert caplog.records == []


@pytest.mark.parametrize("options", [{}, {"client_timeout": 9.0}], ids=["plain", "stamping"])
def test_a_guard_on_an_unknown_server_still_counts_who_is_inside(start, until, environ, options):
    go_on = threading.Event()

    def slow(environ, start_response):
        assert go_on.wait(20)
        return []

    guard = BusyGuard(slow, **options)
    for _ in range(3):
        start(guard, environ("GET", "/x"), None)
    until(lambda: guard.monitor.load == Load(0, 3, None))
    go_on.set()
    until(lambda: guard.monitor.load == Load(0, 0, None))
    assert "no queue" in repr(guard)


@pytest.fixture
def roomy(monkeypatch):
    """A server that has threads enough for any gate, so there is nothing to warn of."""
    monkeypatch.setattr(
        "wsgi_busyguard.adapters.first_request.find", lambda environ: Server("Roomy/1", math.inf)
    )


# Nested guards


def test_a_guard_within_a_gate_is_quiet_and_leaves_the_stamps(ask, roomy, caplog):
    seen = {}

    def inner_app(environ, start_response):
        seen.update(environ)
        return app(environ, start_response)

    inner = BusyGuard(inner_app, client_timeout=60.0)
    outer = BusyGuard(inner, slots=1, client_timeout=2.0)
    assert ask(outer, "GET", "/x").text == "app"
    assert ask(outer, "OPTIONS").text == "free"
    assert seen[MONITOR] is outer.monitor
    assert remaining(seen) <= 2.0
    assert outer.monitor.adapter.empty
    assert caplog.records == []


def test_two_gates_in_a_row_hold_and_leave_both(ask):
    inner = BusyGuard(lambda environ, start: iter(app(environ, start)), slots=1)
    outer = BusyGuard(inner, slots=2)
    assert ask(outer, "GET", "/x").text == "app"
    assert inner.monitor.adapter.empty
    assert outer.monitor.adapter.empty


# The gate


@pytest.fixture
def gated():
    """A guard with one slot and no queue; whoever finds it taken is refused at once."""
    return BusyGuard(app, slots=1, max_queue=0)


@pytest.fixture
def taken(gated):
    gate = gated.monitor.adapter
    slot = gate.enter()
    yield
    gate.leave(slot)


def test_a_gate_lets_requests_through(ask, lint):
    guard = BusyGuard(lint(app), slots=2)
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        assert ask(guard, method, "/x").text == text(method, "app")
    assert guard.monitor.adapter.empty


def test_the_gate_has_the_limits_of_the_arguments():
    gate = BusyGuard(app, slots=2).monitor.adapter
    assert isinstance(gate, Gate)
    assert gate.limits == (2, 8, 1.0)
    assert BusyGuard(app, slots=2, client_timeout=10).monitor.adapter.limits == (2, 8, 2.0)
    limits = BusyGuard(app, slots=2, max_queue=3, max_wait=4.0).monitor.adapter.limits
    assert limits == (2, 3, 4.0)


def test_a_queue_without_a_bound_is_fine_where_any_number_of_threads_may_be(ask, roomy, caplog):
    guard = BusyGuard(app, slots=2, max_queue=math.inf)
    assert ask(guard, path="/x").text == "app"
    assert not guard._server.lacks_room
    assert caplog.records == []


def test_a_refusal_is_503_with_the_reason_and_runs_no_app(ask, gated, taken, roomy, caplog):
    ask(gated, "GET", "/livez")  # by which it meets its server
    caplog.set_level(logging.DEBUG)
    for method in ("GET", "POST", "HEAD"):
        response = ask(gated, method, "/x")
        assert response[::3] == (503, text(method, "busy"))
        assert response.headers["Busyguard-Refused"] == "queue-full"
        assert response.headers["Retry-After"] in ("1", "2", "3")
    assert caplog.records == [], "a line for each refusal is the last thing that is needed then"


def test_checks_get_through_a_full_gate(ask, gated, taken):
    assert ask(gated, "OPTIONS").status == 200
    assert ask(gated, "GET", "/livez").text == "alive"


def test_one_who_waits_too_long_is_refused_for_its_age(ask):
    guard = BusyGuard(app, slots=1, max_wait=0.01)
    slot = guard.monitor.adapter.enter()
    assert ask(guard, "GET", "/x").headers["Busyguard-Refused"] == "queue-age"
    guard.monitor.adapter.leave(slot)
    assert ask(guard, "GET", "/x").text == "app"


def test_a_draining_gate_refuses_and_a_draining_monitor_does_not(ask):
    """A balancer needs its time to see it."""
    guard = BusyGuard(app, slots=1)
    guard.monitor.drain()
    assert ask(guard, "GET", "/x").text == "app"
    assert ask(guard, "OPTIONS")[::3] == (503, "draining")
    guard.monitor.adapter.drain()
    assert ask(guard, "GET", "/x").headers["Busyguard-Refused"] == "draining"


def test_retry_after_is_jittered_upwards_from_the_argument(ask):
    guard = BusyGuard(app, slots=1, max_queue=0, retry_after=10)
    guard.monitor.adapter.enter()
    assert {ask(guard, "GET", "/x").headers["Retry-After"] for _ in range(200)} == {
        "10",
        "11",
        "12",
    }


@pytest.mark.parametrize(
    "refusal",
    [webob.exc.HTTPServiceUnavailable(), werkzeug.exceptions.ServiceUnavailable()],
    ids=["WebOb", "Werkzeug"],
)
def test_the_refusal_may_be_the_frameworks_own(ask, refusal):
    guard = BusyGuard(app, slots=1, max_queue=0, refusal=refusal)
    guard.monitor.adapter.enter()
    response = ask(guard, "GET", "/x")
    assert response.status == 503
    assert len(response.text) > len("busy")
    assert response.headers["Busyguard-Refused"] == "queue-full"
    assert "Retry-After" in response.headers


def test_a_refusal_app_that_raises_is_replaced(ask, roomy, caplog):
    def broken(environ, start_response):
        raise RuntimeError("no template")

    guard = BusyGuard(app, slots=1, max_queue=0, refusal=broken)
    guard.monitor.adapter.enter()
    for _ in range(3):
        assert ask(guard, "GET", "/x")[::3] == (503, "busy")
    assert len(caplog.records) == 1


def test_the_listeners_hear_of_the_gate(environ, start, until):
    heard, go_on = [], threading.Event()

    def slow(environ, start_response):
        assert go_on.wait(20)
        return []

    guard = BusyGuard(slow, slots=1, max_wait=60.0, on_busy=heard.append, on_free=heard.append)
    for _ in range(3):
        start(guard, environ("GET", "/x"), None)
    until(lambda: guard.monitor.load[:3] == (2, 1, 1))
    assert guard.monitor.state is State.BUSY
    go_on.set()
    until(lambda: guard.monitor.adapter.empty)
    until(lambda: len(heard) == 2)
    assert [change.state for change in heard] == [State.BUSY, State.FREE]


# Apps of every kind behind the gate

HEADERS = [("Content-Type", "text/plain")]


class Closing:
    def __init__(self, chunks):
        self.chunks = chunks
        self.closed = 0

    def __iter__(self):
        return iter(self.chunks)

    def close(self):
        self.closed += 1


def generator(environ, start_response):
    start_response("200 OK", HEADERS)
    yield b"ge"
    yield b"nerated"


def writing(environ, start_response):
    write = start_response("200 OK", HEADERS)
    write(b"writ")
    return [b"ten"]


def closing(environ, start_response):
    start_response("200 OK", HEADERS)
    return Closing([b"clo", b"sed"])


def webob_app(environ, start_response):
    return WebObResponse("webob")(environ, start_response)


KINDS = {
    generator: b"generated",
    writing: b"written",
    closing: b"closed",
    webob_app: b"webob",
}


class Raised(Exception):
    pass


def raises_before(environ, start_response):
    raise Raised


def raises_after(environ, start_response):
    start_response("200 OK", HEADERS)
    raise Raised


def raises_halfway(environ, start_response):
    start_response("200 OK", HEADERS)
    yield b"half"
    raise Raised


def raises_on_close(environ, start_response):
    start_response("200 OK", HEADERS)
    body = Closing([b"x"])
    body.close = _raise
    return body


def _raise():
    raise Raised


def returns_none(environ, start_response):
    start_response("200 OK", HEADERS)


BROKEN = [raises_before, raises_after, raises_halfway, raises_on_close, returns_none]


class Handler(SimpleHandler):
    """The handler of wsgiref: a real server's loop, without the socket."""

    def log_exception(self, exc_info):
        pass


def serve(application, environ):
    """Serve one request and return what went over the wire."""
    out = io.BytesIO()
    handler = Handler(io.BytesIO(), out, io.StringIO(), environ, multithread=True)
    handler.http_version = "1.1"
    handler.run(application)
    return out.getvalue()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_the_client_gets_is_the_same_with_and_without_the_gate(environ, kind):
    guard = BusyGuard(kind, slots=1)

    def without_date(wire):
        return [line for line in wire.split(b"\r\n") if not line.startswith(b"Date")]

    bare = without_date(serve(kind, environ("GET", "/x")))
    assert without_date(serve(guard, environ("GET", "/x"))) == bare
    assert bare[-1].replace(b"\r\n", b"").endswith(KINDS[kind][-3:])
    assert guard.monitor.adapter.empty


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_an_app_that_breaks_leaves_the_gate_empty(environ, kind):
    guard = BusyGuard(kind, slots=1)
    with contextlib.suppress(Raised, TypeError):  # of its own, where wsgiref is at a loss
        serve(guard, environ("GET", "/x"))
    assert guard.monitor.adapter.empty


def test_the_slot_is_held_until_the_body_is_closed_and_that_happens_once(environ):
    made = []

    def application(environ, start_response):
        made.append(closing(environ, start_response))
        return made[0]

    guard = BusyGuard(application, slots=1)
    body = guard(environ("GET", "/x"), lambda *said: None)
    assert list(body) == [b"clo", b"sed"]
    assert not guard.monitor.adapter.empty
    body.close()
    body.close()
    assert guard.monitor.adapter.empty
    assert made[0].closed == 1


# Files


class Sendfile(Handler):
    """A handler that can send a file by itself, as wsgiref is made to be extended."""

    wsgi_file_wrapper = FileWrapper
    sent_by_itself = False

    def sendfile(self):
        self.sent_by_itself = True
        self.send_headers()
        self._write(self.result.filelike.read())
        return True


@pytest.mark.parametrize("options", [{}, {"slots": 1}], ids=["pass-through", "gate"])
def test_a_server_still_recognises_its_file_wrapper(environ, monitor, tmp_path, options):
    path = tmp_path / "file"
    path.write_bytes(b"the file")
    opened = []

    def application(environ, start_response):
        start_response("200 OK", [*HEADERS, ("Content-Length", "8")])
        opened.append(path.open("rb"))
        return environ["wsgi.file_wrapper"](opened[0])

    guard = BusyGuard(application, **(options or {"monitor": monitor}))
    out = io.BytesIO()
    handler = Sendfile(io.BytesIO(), out, io.StringIO(), environ("GET", "/x"))
    handler.run(guard)
    assert handler.sent_by_itself
    assert out.getvalue().endswith(b"\r\n\r\nthe file")
    assert b"Content-Length: 8\r\n" in out.getvalue()
    assert opened[0].closed
    if "slots" in options:
        assert guard.monitor.adapter.empty


# A real socket


@pytest.fixture
def server(start):
    """Serve an app by wsgiref on a real socket; return its address."""
    servers = []

    class Quiet(WSGIRequestHandler):
        def log_message(self, format, *args):
            pass

    def server(application):
        server = WSGIServer(("127.0.0.1", 0), Quiet)
        server.set_app(application)
        servers.append(server)
        start(server.serve_forever, 0.01)
        return server.server_address

    yield server
    for server in servers:
        server.shutdown()
        server.server_close()


def say(address, wire):
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(wire)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    "line",
    [
        "OPTIONS / HTTP/1.0",
        "OPTIONS * HTTP/1.0",
        "OPTIONS * HTTP/1.1\r\nHost: x",
        "OPTIONS / HTTP/1.1",
    ],
    ids=["bare httpchk", "asterisk", "asterisk in 1.1", "slash in 1.1, no Host"],
)
@pytest.mark.parametrize("slots", [None, 1], ids=["pass-through", "gate"])
def test_a_balancers_check_is_answered_on_a_real_socket(server, monitor, line, slots):
    options = {"monitor": monitor} if slots is None else {"slots": slots}
    wire = say(server(BusyGuard(app, **options)), line.encode() + b"\r\n\r\n")
    head, _, body = wire.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"Content-Length: 4" in head
    assert b"Allow: GET, HEAD, OPTIONS" in head
    assert body == b"free"


@pytest.mark.parametrize("path", ["/readyz", "/livez", "/x"])
def test_head_sends_the_headers_and_no_body_on_a_real_socket(server, path):
    connection = http.client.HTTPConnection(*server(BusyGuard(app, slots=1)), timeout=20)
    connection.request("HEAD", path)
    response = connection.getresponse()
    assert response.status == 200
    assert int(response.headers["Content-Length"]) > 0
    assert response.read() == b""
    connection.close()


@pytest.mark.parametrize("slots", [None, 1], ids=["pass-through", "gate"])
def test_wsgiref_measures_a_list_of_one_for_itself(server, monitor, slots):
    """So a gate must pass on the very list, or a body that has its length."""

    class Sized(list):
        pass

    def unmeasured(kind):
        def application(environ, start_response):
            start_response("200 OK", HEADERS)
            return kind([b"measured"])

        return application

    options = {"monitor": monitor} if slots is None else {"slots": slots}
    for kind in (list, tuple, Sized):
        address = server(BusyGuard(unmeasured(kind), **options))
        assert b"Content-Length: 8" in say(address, b"GET /x HTTP/1.0\r\n\r\n")


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"app": None}, TypeError, "app must be a WSGI app, not None"),
        (
            {"monitor": 3},
            TypeError,
            "monitor must be a Monitor, not 3: Monitor(adapter) is one",
        ),
        ({"slots": 0}, ValueError, "slots must be at least 1, not 0"),
        ({"slots": "8"}, TypeError, "slots must be a whole number, not '8'"),
        (
            {"slots": 1, "monitor": "M"},
            ValueError,
            "give slots or monitor, not both: with slots the guard is the queue",
        ),
        ({"slots": 1, "max_queue": -1}, ValueError, "max_queue must be at least 0, not -1"),
        ({"slots": 1, "max_queue": 1.5}, TypeError, "max_queue must be a whole number, not 1.5"),
        (
            {"max_queue": 3},
            ValueError,
            "max_queue needs slots: without them requests queue in the server, and max_wait says"
            " for how long",
        ),
        (
            {"slots": 1, "max_wait": -1.0},
            ValueError,
            "max_wait must be more than 0 seconds, not -1.0",
        ),
        (
            {"ready": "perhaps"},
            ValueError,
            "ready must be one of exact, damped, always, not 'perhaps'",
        ),
        ({"patience": 0}, ValueError, "patience must be more than 0 seconds, not 0"),
        ({"patience": "2"}, TypeError, "patience must be a number of seconds, not '2'"),
        ({"check_root": "no"}, TypeError, "check_root must be True or False, not 'no'"),
        (
            {"ready_paths": "/readyz"},
            TypeError,
            "ready_paths must be a list of paths, not the string '/readyz': ['/readyz']",
        ),
        (
            {"live_paths": ["livez"]},
            ValueError,
            "live_paths must hold paths that begin with '/', not 'livez'",
        ),
        (
            {"live_paths": ["/readyz"]},
            ValueError,
            "'/readyz' cannot be both in ready_paths and in live_paths",
        ),
        ({"on_busy": 3}, TypeError, "on_busy must be a function that takes a Transition, not 3"),
        ({"on_free": 3}, TypeError, "on_free must be a function that takes a Transition, not 3"),
        ({"refusal": "busy"}, TypeError, "refusal must be a WSGI app, not 'busy'"),
        ({"retry_after": -1}, ValueError, "retry_after must be at least 0, not -1"),
        ({"retry_after": 1.5}, TypeError, "retry_after must be a whole number, not 1.5"),
        (
            {"client_timeout": 0},
            ValueError,
            "client_timeout must be more than 0 seconds, not 0",
        ),
        (
            {"client_timeout": True},
            TypeError,
            "client_timeout must be a number of seconds, not True",
        ),
        ({"expose_load": 1}, TypeError, "expose_load must be True or False, not 1"),
    ],
    ids=str,
)
def test_wrong_arguments_say_what_was_expected_and_what_came(monitor, arguments, error, words):
    arguments = {"app": app, **arguments}
    if arguments.get("monitor") == "M":
        arguments["monitor"] = monitor
    with pytest.raises(error) as caught:
        BusyGuard(**arguments)
    assert str(caught.value) == words


def test_its_repr_shows_the_state():
    guard = BusyGuard(app, slots=2)
    assert repr(guard) == "<BusyGuard <Monitor free, reads <Gate 0/2 with 0 waiting>>>"


# The count

REQUESTS = int(os.environ.get("BUSYGUARD_TEST_REQUESTS", "100000"))
THREADS = 8


def mixed(environ, start_response):
    """An app of every kind, sound and broken, as the request says."""
    return environ["test.kind"](environ, start_response)


def lost(guard, environ):
    """A server whose client leaves after the first chunk."""
    body = guard(environ, lambda *said: lambda data: None)
    try:
        for _ in body:
            break
    finally:
        if hasattr(body, "close"):
            body.close()


def careless(guard, environ):
    """A server that closes nothing."""
    for _ in guard(environ, lambda *said: lambda data: None):
        pass


def sound(guard, environ):
    body = guard(environ, lambda *said: lambda data: None)
    try:
        for _ in body:
            pass
    finally:
        if hasattr(body, "close"):
            body.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_after_many_requests_of_every_kind_the_gate_is_exactly_empty(start, hurry, until):
    heard, done = [], deque()
    guard = BusyGuard(
        mixed,
        slots=3,
        max_queue=4,
        max_wait=60.0,
        adaptive=False,
        on_busy=heard.append,
        on_free=heard.append,
    )
    kinds = [*KINDS, *BROKEN, app]
    servers = [sound, sound, lost, careless]

    def client(seed):
        choice = random.Random(seed)
        for _ in range(REQUESTS // THREADS):
            environ = {
                "PATH_INFO": "/x",
                "REQUEST_METHOD": "GET",
                "wsgi.url_scheme": "http",
                "test.kind": choice.choice(kinds),
            }
            with contextlib.suppress(Raised, TypeError):
                choice.choice(servers)(guard, environ)
        done.append(seed)

    gate = guard.monitor.adapter
    slots = [gate.enter() for _ in range(3)]
    threads = [start(client, seed) for seed in range(THREADS)]
    until(lambda: heard)
    for slot in slots:
        gate.leave(slot)
    for thread in threads:
        thread.join(600)
    assert sorted(done) == list(range(THREADS))
    assert gate.empty
    assert {slot.place for slot in gate._free} == set(gate._places)
    assert all(slot.since is None for slot in gate._free)
    assert guard.monitor.state is State.FREE
    states = [change.state for change in heard]
    assert states == [State.BUSY, State.FREE] * (len(states) // 2)


def test_a_busy_app_on_many_threads_is_entered_by_as_many_as_there_are_slots(start, environ, hurry):
    inside, most, lock = [0], [0], threading.Lock()

    def counting(environ, start_response):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        start_response("200 OK", HEADERS)
        yield b"x"
        with lock:
            inside[0] -= 1

    guard = BusyGuard(counting, slots=2, max_queue=99, max_wait=60.0)

    def client():
        for _ in range(200):
            sound(guard, {"PATH_INFO": "/x", "REQUEST_METHOD": "GET"})

    for thread in [start(client) for _ in range(6)]:
        thread.join(60)
    assert most[0] <= 2
    assert inside[0] == 0
    assert guard.monitor.adapter.empty


# Subclasses


def test_a_subclass_may_override_call_and_call_what_it_overrides(ask, monitor):
    seen = []

    class Noting(BusyGuard):
        def __call__(self, environ, start_response):
            seen.append(environ["PATH_INFO"])
            return super().__call__(environ, start_response)

    guard = Noting(app, monitor=monitor)
    assert (ask(guard, "GET", "/x").text, ask(guard, "GET", "/readyz").text) == ("app", "free")
    assert seen == ["/x", "/readyz"]


def test_a_guards_signature_is_that_of_a_wsgi_app(monitor):
    guard = BusyGuard(app, monitor=monitor)
    assert list(inspect.signature(guard).parameters) == ["environ", "start_response"]
