"""Silent connections, more than a server can have at once: they make room for those who ask."""

from __future__ import annotations

import contextlib
import functools
import resource
import socket

import pytest
from support.client import (
    PATIENCE,
    Line,
    ask,
    check,
    eventually,
    figures,
    is_check,
    many,
    request,
    together,
)
from support.gunicorns import Gunicorn
from support.processes import Site, ThreadedSite

from servers.test_serve import Serve, folder
from wsgi_busyguard import Board
from wsgi_busyguard.board.watcher import Watcher

__all__ = ["folder"]  # a fixture

DESCRIPTORS = 256
CROWD = 400

# What the two of each differ in: what a connection has said.
SILENT, HALF = b"", b"GET / HTTP/1.1\r\nHost: ha"


@contextlib.contextmanager
def few_descriptors():
    """Have what is started here have few file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def crowd(port, says=SILENT, count=CROWD):
    """Be so many connected who say this and no more."""
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            with contextlib.suppress(OSError):  # it has made room before that
                sock.sendall(says)
            socks.append(sock)
        yield socks


STARTS = {
    "twisted": lambda start, folder: start(Site, threads=2),
    "waitress": lambda start, folder: start(ThreadedSite, server="waitress", threads=2),
    "cheroot": lambda start, folder: start(ThreadedSite, server="cheroot", threads=2),
    "werkzeug": lambda start, folder: start(Serve, folder, "--server=werkzeug", "--threads=2"),
    "GuardedThreads": lambda start, folder: start(Gunicorn, "--threads", "2"),
    "GuardedGevent": lambda start, folder: start(
        Gunicorn, "--keep-alive", "60", kind="GuardedGevent"
    ),
}


@pytest.mark.parametrize("server", STARTS)
def test_silent_connections_take_the_last_file_descriptor_from_nobody(
    started, folder, tmp_path, held, server
):
    with few_descriptors():
        running = STARTS[server](started, folder)
    with Line(running.port) as kept:
        kept.send(request(path="/sleep/0"))
        assert kept.answer().status == 200
        answers, inside = many(1, running.port, path=held.path)
        eventually(lambda: figures(running.check)["active"] == 1)
        if server.startswith("Guarded"):  # whose app needs a descriptor before it waits
            eventually((tmp_path / "go.in").exists)
        with crowd(running.port):
            for _ in range(5):
                assert ask(running.port, path="/sleep/0", timeout=5).status == 200
                assert is_check(check(running.port, timeout=5))
                assert is_check(ask(running.check, path="/readyz", timeout=5))
            # Under GuardedThreads who has asked before is the first to go.
            if server not in ("GuardedThreads", "werkzeug"):
                kept.send(request(path="/sleep/0"))
                assert kept.answer().status == 200
            held.let_go()
            together(inside)
        assert [answer.status for answer in answers] == [200]
    assert "Traceback" not in running.output


@pytest.mark.parametrize("server", ["twisted", "waitress", "cheroot", "werkzeug"])
def test_so_do_connections_that_stop_in_the_middle_of_a_head(started, folder, server):
    with few_descriptors():
        running = STARTS[server](started, folder)
    with crowd(running.port, HALF):
        for _ in range(5):
            assert ask(running.port, path="/sleep/0", timeout=5).status == 200
            assert is_check(check(running.port, timeout=5))
    assert "Traceback" not in running.output


def test_silent_connections_do_not_reach_the_connection_limit_of_waitress(started):
    site = started(ThreadedSite, server="waitress", threads=2, max_queue=2, connection_limit=30)
    with crowd(site.port, count=60):
        for _ in range(5):
            assert ask(site.port, path="/sleep/0", timeout=5).status == 200
            assert is_check(check(site.port, timeout=5))
    with crowd(site.port, HALF, count=60):
        assert is_check(check(site.port, timeout=5))
    assert "connection limit" not in site.output


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedGevent"])
def test_a_worker_without_a_file_descriptor_is_busy_while_somebody_cannot_get_in(
    started, kind, tmp_path
):
    """By its figures it is idle: one thread is in the app, which has all descriptors."""
    with few_descriptors():
        running = started(Gunicorn, "--threads", "2", kind=kind)
    over = tmp_path / "over"
    with contextlib.ExitStack() as stack:
        hoarder = stack.enter_context(Line(running.port))
        hoarder.send(request(path=f"/hoard{over}"))
        eventually((tmp_path / "over.in").exists)
        eventually(lambda: ask(running.check, path="/readyz?ready=exact").text == "free")
        outside = stack.enter_context(Line(running.port))
        outside.send(request(path="/sleep/0"))
        eventually(lambda: ask(running.check, path="/readyz").status == 503)
        shown = figures(running.check)
        assert (shown["queued"], shown["active"], shown["state"]) == (1, 1, "busy")
        assert shown["lag"] >= 2.0
        over.touch()
        assert outside.answer().status == 200
        assert hoarder.answer().status == 200
    eventually(lambda: ask(running.check, path="/readyz?ready=exact").text == "free")


def left_standing(port):
    """Return a connection that the server has neither accepted nor closed, with its request.

    Twisted closes whoever comes until the guard has seen, a quarter of a second later at most, that
    no descriptor is left.
    """
    line = Line(port, timeout=0.4)
    try:
        line.send(request(path="/sleep/0"))
        closed = line.socket.recv(1, socket.MSG_PEEK) == b""
    except TimeoutError:
        line.socket.settimeout(PATIENCE)
        return line
    except ConnectionError:
        closed = True
    line.close()
    assert closed
    return None


@pytest.mark.parametrize("server", ["twisted", "waitress", "cheroot"])
def test_a_server_without_a_file_descriptor_says_so_on_its_board(started, server, tmp_path):
    """Who comes is seen in the kernel, and is served as soon as can be."""
    path, over = tmp_path / "board", tmp_path / "over"
    which = Site if server == "twisted" else functools.partial(ThreadedSite, server=server)
    with few_descriptors():
        site = started(which, threads=3, board=str(path))
    watcher = Watcher(Board(path))
    with contextlib.ExitStack() as stack:
        hoarder = stack.enter_context(Line(site.port))
        hoarder.send(request(path=f"/hoard{over}"))
        eventually((tmp_path / "over.in").exists)
        outside = [stack.enter_context(eventually(lambda: left_standing(site.port))) for _ in "12"]
        # Of those that it closed Twisted has one descriptor in reserve, which the app may take.
        before = [*site.errors]
        if server == "twisted":
            assert all("/dev/null" in line for line in before if "Too many open files" in line)
        else:
            assert "Traceback" not in "".join(before)
        eventually(lambda: not watcher.check().ready)
        load = watcher.load
        assert (load.queued, load.active) == (2, 1)
        assert load.lag >= 2.0
        over.touch()
        assert [line.answer().status for line in (*outside, hoarder)] == [200] * 3
        eventually(lambda: watcher.check("exact").ready)
    assert "Traceback" not in "".join(site.errors[len(before) :])


def test_silent_connections_do_not_reach_the_worker_connections_of_gevent(started):
    arguments = "--keep-alive", "60", "--worker-connections", "20"
    running = started(Gunicorn, *arguments, kind="GuardedGevent")
    with crowd(running.port, count=40):
        for _ in range(5):
            assert ask(running.port, path="/sleep/0", timeout=5).status == 200
            assert is_check(check(running.port, timeout=5))


@pytest.mark.parametrize("server", ["twisted", "werkzeug"])
def test_silent_peers_of_the_check_port_make_room_when_no_file_descriptor_is_left(
    started, folder, server
):
    with few_descriptors():
        running = STARTS[server](started, folder)
    with crowd(running.check):
        for _ in range(5):
            assert is_check(ask(running.check, path="/readyz", timeout=3))
    with crowd(running.agent), Line(running.agent) as line:
        line.send(b"lb1\n")
        assert line.socket.recv(100).startswith(b"up maxconn:")
