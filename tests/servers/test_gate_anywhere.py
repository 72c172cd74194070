"""The middleware on servers of every kind: as a gate, and finding what there is to read.

4 slots, a queue of 20, and 40 requests at once: 24 are served and 16 refused, exactly, and
meanwhile checks get through on the spare threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from functools import partial

import pytest
from support.client import (
    Line,
    ask,
    check,
    eventually,
    figures,
    free_port,
    many,
    of_forty_24_are_served,
    request,
    shows,
    together,
)
from support.processes import HERE, IMPORTS, Process, environment
from support.versions import folders

SLOTS, QUEUE, REQUESTS = 4, 20, 40
GATE = {"slots": SLOTS, "max_queue": QUEUE, "max_wait": 60}
ROOM = SLOTS + QUEUE + 2


class Anywhere(Process):
    """The app of anywhere_app.py on a server of this name and so many threads."""

    def __init__(self, name, threads, guard=GATE, *arguments, path=()):
        env = environment(GUARD=json.dumps(guard))
        self.port = self._server = None
        command = getattr(self, f"_{name.split()[0]}", self._site)(name, str(threads))
        if path or self._server is None:
            env["PYTHONPATH"] = os.pathsep.join([str(HERE), *path, env["PYTHONPATH"]])
        command = [sys.executable, *command, *arguments]
        super().__init__(command, env=env, server=self._server)
        try:
            self.port = self.port or self._port()
            self.check = int(self.line("check: "))
            eventually(self._is_up)
        except BaseException:
            self.reap()  # nobody else has it yet
            raise

    def _site(self, name, threads):
        if not name.startswith("pywsgi"):
            self._server = name if name in IMPORTS else "checks"
        return [HERE / "anywhere_site.py", name, threads]

    def _gunicorn(self, name, threads):
        kind = name.split()[1]
        bind = ["--bind", "127.0.0.1:0", "-k", kind, "--threads", threads, "--no-control-socket"]
        return ["-m", "gunicorn", *bind, "anywhere_app:application"]

    def _granian(self, name, threads):
        self.port = free_port()
        where = ["--port", str(self.port), "--interface", "wsgi"]
        return ["-m", "granian", *where, "--blocking-threads", threads, "anywhere_app:application"]

    def _hypercorn(self, name, threads):
        self.port = free_port()
        return ["-m", "hypercorn", "-b", f"127.0.0.1:{self.port}", "wsgi:anywhere_app:application"]

    def _port(self):
        says = re.compile(r"(?:port: |Listening at: http://127\.0\.0\.1:)(\d+)")
        eventually(lambda: says.search(self.output) or self.popen.poll() is not None)
        if self.popen.poll() is not None:
            self.ended()
        found = says.search(self.output)
        assert found, self.output
        return int(found[1])

    def _is_up(self):
        with contextlib.suppress(OSError):
            return ask(self.port).status == 200
        return False

    @property
    def load(self):
        return figures(self.check)

    @property
    def logged(self):
        """What the guard has logged, but for changes of state."""
        lines = [line.strip() for line in self.errors if line.startswith("wsgi_busyguard: ")]
        return [line for line in lines if not re.match(r"wsgi_busyguard: (busy|free)\b", line)]


@pytest.fixture
def anywhere(started):
    return lambda *arguments: started(Anywhere, *arguments)


SERVERS = {
    "waitress": ROOM,
    "cheroot": ROOM,
    "gunicorn gthread": ROOM,
    "granian": ROOM,
    "paste": ROOM,
    "twisted": ROOM,
    "a2wsgi": ROOM,
    "tornado": ROOM,
    # These start a thread or a greenlet for each connection.
    "werkzeug": 9,
    "wsgiref": 9,
    "django": 9,
    "pywsgi_greenlets": 0,
    "gunicorn gevent": 1,
}


@pytest.mark.parametrize("name", SERVERS)
def test_the_gate_is_exact_and_checks_get_through(anywhere, held, name):
    server = anywhere(name, SERVERS[name])
    full = {"queued": QUEUE, "active": SLOTS, "capacity": SLOTS}

    def is_full():
        return shows(server.load, **full)

    of_forty_24_are_served(server.port, held, is_full, [server.port], "busy")
    eventually(lambda: (server.load["active"], server.load["queued"]) == (0, 0))
    assert server.logged == []


READ = {
    "waitress": (4, "<WaitressAdapter of TcpWSGIServer>"),
    "cheroot": (4, "<CherootAdapter of Server>"),
    "gunicorn gthread": (4, "<GunicornAdapter of <Worker "),
    "gunicorn sync": (1, "<GunicornAdapter of <Worker "),
    "paste": (5, "<PasteAdapter of 5 threads>"),
    "twisted": (4, "<TwistedAdapter "),
    "a2wsgi": (4, "<ThreadPoolAdapter of WSGI>"),
    "asgiref": (1, "<ThreadPoolAdapter of "),
    "hypercorn": (min(32, (os.cpu_count() or 1) + 4), "<ThreadPoolAdapter of asyncio"),
    "pywsgi_greenlets": (4, "<PywsgiAdapter of WSGIServer>"),
}


@pytest.mark.parametrize("name", READ)
def test_without_slots_the_servers_own_queue_is_found_and_read(anywhere, held, name):
    threads, reads = READ[name]
    server = anywhere(name, threads, {})
    assert server.load["reads"].startswith(reads)
    assert server.load["capacity"] == threads
    _, sent = many(threads + 6, server.port, path=held.path)
    full = (6, threads, "busy")
    eventually(lambda: tuple(map(server.load.get, ("queued", "active", "state"))) == full)
    held.let_go()
    together(sent)
    eventually(lambda: (server.load["queued"], server.load["active"]) == (0, 0))
    assert server.load["state"] == "free"
    assert server.logged == []


UNREADABLE = {
    "wsgiref": (9, "starts a thread for each connection"),
    "werkzeug": (9, "starts a thread for each connection"),
    "pywsgi_greenlets": (0, "starts a greenlet for each connection"),
    "granian": (
        4,
        "has a queue that cannot be read from here; every check says free; BusyGuard(app, s",
    ),
    "gunicorn gevent": (1, "-k wsgi_busyguard.adapters.gunicorn.GuardedGevent guards it"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_said_in_one_line_and_checks_say_free(anywhere, name):
    threads, words = UNREADABLE[name]
    server = anywhere(name, threads, {})
    for _ in range(3):
        assert check(server.port).text == "free"
    [line] = eventually(lambda: server.logged)
    assert words in line
    assert server.load["reads"].startswith("<InFlight")


UNTIL_THEN = "; until then requests are refused at pick-up only"
NOTHING = "; until then the guard refuses nothing and answers checks"
UNREAD = f"{NOTHING}, which all say free"
TOO_FEW = {
    "waitress": (8, "waitress-serve --threads=26"),
    "cheroot": (8, "cheroot --threads 26"),
    "paste": (8, "threadpool_workers = 26"),
    "twisted": (8, "ThreadPool(maxthreads=26)"),
    "a2wsgi": (8, "max_workers=26; in a2wsgi workers=26"),
    "pywsgi_greenlets": (8, "WSGIServer(spawn=26)"),
    "granian": (8, "granian --blocking-threads 26"),
}


@pytest.mark.parametrize("name", TOO_FEW)
def test_with_too_few_threads_the_gate_serves_what_the_server_serves_alone(anywhere, held, name):
    """Of 20 at once on eight threads a gate with room for two others refused fourteen."""
    threads, command = TOO_FEW[name]
    server = anywhere(name, threads)
    [line] = eventually(lambda: server.logged)
    until_then = {"granian": UNREAD, "pywsgi_greenlets": NOTHING}.get(name, UNTIL_THEN)
    assert line == (
        f"wsgi_busyguard: threads={threads} is too few for slots=4 and max_queue=20: start the"
        f" server with at least 26 threads ({command}), or leave slots out{until_then}"
    )
    answers, sent = many(20, server.port, path=held.path)
    if until_then is not UNREAD:
        eventually(lambda: (server.load["queued"], server.load["active"]) == (12, 8))
        assert server.load["capacity"] == 8
    held.let_go()
    together(sent)
    assert {answer.status for answer in answers} == {200}
    eventually(lambda: check(server.port).text == "free")
    assert server.logged == [line]


@pytest.mark.parametrize("more", [(), ("--preload",)], ids=["in the worker", "preloaded"])
@pytest.mark.parametrize(
    ("kind", "threads", "words"),
    [
        ("gthread", 8, r"threads=8 is too few for slots=4 .*\(gunicorn --threads=26\), or leave"),
        ("sync", 1, "slots=4 makes no sense on gunicorn sync, which runs one request at a time"),
    ],
)
def test_gunicorn_refuses_to_start_with_too_few_threads(started, kind, threads, words, more):
    with pytest.raises(AssertionError, match=words):
        started(Anywhere, f"gunicorn {kind}", threads, GATE, *more)


@pytest.mark.parametrize("options", [{}, GATE], ids=["plain", "gate"])
def test_in_a_guarded_worker_there_is_nothing_to_say(anywhere, options):
    """It bounds by itself, and knows more."""
    server = anywhere("gunicorn wsgi_busyguard.adapters.gunicorn.GuardedThreads", 4, options)
    assert server.logged == []
    assert ask(server.port, path="/sleep/0").status == 200
    assert server.load["capacity"] == 4
    assert "InFlight" not in server.load["reads"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pywsgi_unpatched", "slots= needs gevent.monkey.patch_all()"),
        ("tornado", "slots= makes no sense on this server (unnamed), which calls the app in its"),
    ],
)
def test_where_a_loop_calls_the_app_there_is_no_gate(anywhere, name, words):
    """One who waited at it would hold up those who could leave it; nobody is refused either."""
    server = anywhere(name, 0, {"slots": 2})
    [line] = eventually(lambda: server.logged)
    assert line.startswith("wsgi_busyguard: " + words)
    assert line.endswith(UNREAD)
    answers, threads = many(12, server.port, path="/drip/10")
    together(threads)
    assert {answer.status for answer in answers} == {200}


def test_a_file_that_waitress_sends_without_a_thread_holds_no_slot(anywhere):
    """Four clients who did not read their downloads had everybody else refused."""
    server = anywhere("waitress", ROOM)
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(Line(server.port)) for _ in range(SLOTS)]
        for line in lines:
            line.send(request(path="/file/40000000", version="1.0"))
            assert line.socket.recv(1) == b"H"
        eventually(lambda: (server.load["queued"], server.load["active"]) == (0, 0))
        page = ask(server.port, path="/sleep/0")
        assert page.status == 200
        assert page.took < 1
        assert ask(server.port, path="/readyz?ready=exact").text == "free"
        body = b"H" + b"".join(iter(partial(lines[0].socket.recv, 1 << 20), b""))
    assert body.endswith(b"\0" * 1000)


def stamps(server, ago):
    """Return what a request that came to the proxy so long ago has waited and has left, as it says.

    And the seconds since.
    """
    began = time.monotonic()
    headers = {"X-Request-Start": f"t={time.time() - ago:.6f}"}
    waited, deadline, now = json.loads(ask(server.port, path="/stamps", headers=headers).body)
    return waited, deadline - now, time.monotonic() - began


def test_the_proxys_time_counts_where_it_is_trusted(anywhere, held):
    gate = {**GATE, "max_wait": 1.0, "trust_queue_header": True}
    server = anywhere("waitress", ROOM, gate)
    waited, left, took = stamps(server, ago=0.5)
    assert 0.499 <= waited <= 0.501 + took
    assert 4.999 - took <= waited + left <= 5.001
    endless = ask(server.port, path="/stamps", headers={"X-Queue-Start": "t=9" + "0" * 400})
    assert json.loads(endless.body)[0] == 0.0
    _, threads = many(SLOTS, server.port, path=held.path)
    eventually(lambda: server.load["active"] == SLOTS)
    old = ask(server.port, headers={"X-Request-Start": f"t={time.time() - 2:.3f}"})
    assert (old.status, old.headers["busyguard-refused"]) == (503, "queue-age")
    held.let_go()
    together(threads)


def test_a_clock_of_the_proxy_that_is_wrong_is_no_wait(anywhere):
    """An idle server refused all, and called itself free: cases/clock_skew.py."""
    server = anywhere("waitress", ROOM, {**GATE, "max_wait": 1.0, "trust_queue_header": True})
    for skew in (1.5, 30.0, 300.0):
        answers = [
            ask(server.port, headers={"X-Request-Start": f"t={time.time() - skew:.6f}"})
            for _ in range(30)
        ]
        assert {answer.status for answer in answers} == {200}
        waited, left, took = stamps(server, ago=skew)
        assert waited <= took
        assert left >= 4.999 - took


def test_by_default_nobody_can_age_a_request(anywhere):
    server = anywhere("waitress", ROOM, {**GATE, "max_wait": 1.0})
    assert stamps(server, ago=2.0)[0] == 0.0


BJOERN = "bjoern>=3.2"


@pytest.fixture
def bjoern(started, tmp_path_factory):
    """Starts a bjoern with these options of the guard."""
    needs = "a C compiler and libev: apt-get install gcc libev-dev"
    path = [folders(tmp_path_factory, [BJOERN], needs=needs)[BJOERN]]
    return lambda guard: started(Anywhere, "bjoern", 1, guard, path=path)


def test_on_bjoern_checks_are_answered_between_requests_and_one_line_says_what_is_not_read(bjoern):
    server = bjoern({})
    for answer in (
        *(check(server.port), ask(server.port, "OPTIONS"), ask(server.port, path="/readyz")),
        ask(server.check, path="/readyz"),
    ):
        assert (answer.status, answer.text) == (200, "free")
    head = ask(server.port, "HEAD", "/readyz")
    assert (head.status, head.headers["content-length"]) == (200, "4")
    assert ask(server.port, "POST", "/readyz").status == 405
    assert server.load["reads"].startswith("<InFlight")
    assert eventually(lambda: server.logged) == [
        "wsgi_busyguard: this server (bjoern) runs one request at a time, and the others wait in"
        " the kernel; every check says free; fork more processes, which all accept from the same"
        " socket"
    ]


def test_there_is_no_gate_on_bjoern_where_one_who_waits_would_hold_up_all(bjoern):
    """And whom it served beside two slow downloads was refused, with slots for two."""
    server = bjoern({"slots": 2})
    assert eventually(lambda: server.logged) == [
        "wsgi_busyguard: slots= makes no sense on bjoern, which calls the app in its loop: one who"
        f" waits at the gate holds up all others, so leave it out{UNREAD}"
    ]
    with Line(server.port) as one, Line(server.port) as other:
        for line in (one, other):
            line.send(request(path="/pieces/5"))
        assert one.socket.recv(1) == other.socket.recv(1) == b"H"
        for _ in range(3):
            assert ask(server.port).status == 200
        assert check(server.port).text == "free"


def test_bjoern_answers_who_is_inside_before_it_ends(bjoern, held):
    server = bjoern({})
    answers, threads = many(1, server.port, path=held.path)
    eventually(lambda: server.load["active"] == 1)
    server.signal()
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200]
    assert server.ended() == 0
