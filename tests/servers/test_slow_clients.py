"""Clients that do not get on: where the guard owns the thread, it takes it back from them.

GuardedThreads has tests of its own, see test_gunicorn_stalls.
"""

from __future__ import annotations

import contextlib
import time

import pytest
from support.client import Line, ask, eventually, request
from support.processes import Site, ThreadedSite

from servers.test_gunicorn_hostile import Secret, certificate, secure
from servers.test_gunicorn_stalls import SOON, UPLOAD, cut_off
from servers.test_serve import Serve

__all__ = ["certificate", "secure"]  # fixtures

APP = """
import time

def application(environ, start_response):
    what, _, how = environ["PATH_INFO"].strip("/").partition("/")
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    if what == "length":
        yield str(len(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))).encode()
    elif what == "pieces":
        for _ in range(int(how)):
            yield b"x" * 1_000_000
    elif what == "events":
        yield b"data: first\\n\\n"
        time.sleep(float(how))
        yield b"data: second\\n\\n"
    elif what == "own":
        yield (environ.get("gunicorn.socket") or environ["werkzeug.socket"]).recv(100)
    else:
        yield b"done"
"""

GUNICORN = {
    "GuardedSync": ("--timeout=60",),  # else gunicorn kills the worker, sooner or later
    "GuardedGevent": (),
    "GuardedGevent with slots": (),
}

# waitress and Twisted have the whole upload before they take a thread.
THAT_WAIT_FOR_UPLOADS = ["cheroot", "werkzeug", *GUNICORN]
ALL = ["waitress", *THAT_WAIT_FOR_UPLOADS]


@pytest.fixture
def lines():
    with contextlib.ExitStack() as stack:
        yield lambda port: stack.enter_context(Line(port))


@pytest.fixture
def start(started, gunicorn, tmp_path):
    """Starts a server for two requests at once, one under GuardedSync; the limit is a second."""
    (tmp_path / "app.py").write_text(APP)

    def start(server, limit=SOON):
        if server in ("waitress", "cheroot"):
            return started(ThreadedSite, server=server, threads=2, progress_timeout=limit)
        if server == "werkzeug":
            options = ("--server=werkzeug", "--threads=2", f"--progress-timeout={limit}")
            return Watched(started(Serve, tmp_path, *options))
        kind, with_slots, _ = server.partition(" with slots")
        options = {"slots": 2} if with_slots else {}
        return gunicorn(
            *GUNICORN[server],
            *("--pythonpath", tmp_path),
            kind=kind,
            app="app:application",
            progress_timeout=limit,
            **options,
        )

    return start


class Watched:
    """A ``busyguard serve`` that tells its load as the others do."""

    def __init__(self, served):
        self.port, self.check = served.port, served.check

    load = Site.load
    filled = Site.filled
    at_rest = Site.at_rest


def most(server):
    return 1 if server == "GuardedSync" else 2


def is_served(site):
    answer = ask(site.port, path="/page")
    return answer.status == 200


def pause(seconds):
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > seconds)


@pytest.mark.parametrize("server", THAT_WAIT_FOR_UPLOADS)
def test_an_upload_that_stops_gives_the_thread_back(start, lines, server):
    site = start(server)
    stalled = [lines(site.port) for _ in range(most(server))]
    for line in stalled:
        line.send(UPLOAD + b"b" * 10)
    site.filled(most(server))
    site.at_rest()
    assert all(map(cut_off, stalled))
    assert is_served(site)


@pytest.mark.parametrize("server", THAT_WAIT_FOR_UPLOADS)
def test_a_byte_now_and_then_is_no_progress(start, lines, server):
    """cheroot and Werkzeug grant their own limits anew with each byte."""
    site = start(server)
    line = lines(site.port)
    line.send(UPLOAD)
    site.filled(1)

    def gone():
        with contextlib.suppress(OSError):
            line.send(b"b")
        return site.load["active"] == 0

    eventually(gone, every=0.2)
    assert cut_off(line)
    assert is_served(site)


@pytest.mark.parametrize("server", THAT_WAIT_FOR_UPLOADS)
def test_an_upload_that_is_slow_and_gets_on_arrives(start, lines, server):
    """Three times as long as a silence may be, at twice the rate that is enough."""
    site = start(server)
    line = lines(site.port)
    line.send(UPLOAD.replace(b"100000", b"3000").replace(b"HTTP/1.1", b"HTTP/1.0"))
    for _ in range(30):
        line.send(b"b" * 100)
        pause(0.1)
    assert line.answer().text == "3000"


@pytest.mark.parametrize("server", ALL)
def test_an_answer_that_nobody_reads_gives_the_thread_back(start, lines, server):
    site = start(server)
    stalled = [lines(site.port) for _ in range(most(server))]
    for line in stalled:
        line.send(request(path="/pieces/60", version="1.0"))
    site.filled(most(server))
    site.at_rest()
    assert is_served(site)
    for line in stalled:
        with contextlib.suppress(OSError):
            assert len(line.answer().body) < 60_000_000


@pytest.mark.parametrize("server", ALL)
def test_an_app_that_says_nothing_for_a_while_is_waited_for(start, lines, server):
    """Server-sent events: the client has nothing to read, and so it is not to blame."""
    site = start(server)
    line = lines(site.port)
    line.send(request(path=f"/events/{3 * SOON}", version="1.0"))
    assert line.answer().text == "data: first\n\ndata: second\n\n"


@pytest.mark.parametrize("server", ["werkzeug", "GuardedSync", "GuardedGevent"])
def test_an_app_that_reads_the_socket_itself_may_wait(start, lines, server):
    """A WebSocket over which nobody says anything is none that stalls."""
    site = start(server)
    line = lines(site.port)
    line.send(request(path="/own", version="1.0"))
    site.filled(1)
    pause(3 * SOON)
    assert site.load["active"] == 1
    line.send(b"at last")
    assert line.answer().text == "at last"


@pytest.mark.parametrize("server", ["cheroot", "GuardedSync"])
def test_a_head_that_stops_gives_the_thread_back(start, lines, server):
    site = start(server)
    line = lines(site.port)
    line.send(b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 70_000)  # too large for a peek
    site.filled(1)
    site.at_rest()
    assert cut_off(line)
    assert is_served(site)


@pytest.mark.parametrize("server", ["cheroot", "GuardedGevent"])
def test_who_is_idle_between_two_requests_is_not_cut_off(start, lines, server):
    site = start(server)
    line = lines(site.port)
    for silence in (1.5 * SOON, 0):
        line.send(request(path="/page"))
        assert line.answer().status == 200
        if server == "cheroot":  # gevent's worker keeps nobody for so long
            pause(silence)


@pytest.mark.parametrize("server", ["cheroot", "GuardedSync", "GuardedGevent"])
def test_over_tls_too(started, secure, certificate, server):
    if server == "cheroot":
        options = {"threads": 2, "progress_timeout": SOON, "tls": str(certificate)}
        site = started(ThreadedSite, server=server, **options)
    else:
        site = secure("--timeout=60", kind=server, progress_timeout=SOON)
    for said in (UPLOAD + b"b" * 10, request(path="/big/50000000")):
        with Secret(site.port) as line:
            line.send(said)
            site.filled(1)
            site.at_rest()
            assert cut_off(line) or b"big" in said
    with Secret(site.port) as line:
        line.send(request(path="/page", version="1.0"))
        assert line.answer().status == 200


@pytest.mark.parametrize("server", ["werkzeug", "GuardedSync"])
def test_who_wants_no_limit_has_none(start, lines, server):
    site = start(server, limit="inf")
    line = lines(site.port)
    line.send(UPLOAD.replace(b"HTTP/1.1", b"HTTP/1.0"))
    site.filled(1)
    pause(2 * SOON)
    assert site.load["active"] == 1
    line.send(b"b" * 100_000)
    assert line.answer().text == "100000"


def test_twisted_holds_no_thread_for_either(started, lines):
    """It has the whole upload before, and keeps what is not read."""
    site = started(Site, threads=2)
    stalled = [lines(site.port) for _ in range(4)]
    for line in stalled[:2]:
        line.send(UPLOAD + b"b" * 10)
    for line in stalled[2:]:
        line.send(request(path="/big/50000000"))
    eventually(lambda: site.ran.get("/big/50000000") == 2)
    site.at_rest()
    assert is_served(site)
    assert sum(site.ran.values()) == 3
