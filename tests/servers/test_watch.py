"""The figures as they change: /load?watch over real connections."""

from __future__ import annotations

import json
import os
import signal
import socket
import time

import pytest
from support.client import Line, ask, eventually, request

from wsgi_busyguard import Gate, Monitor
from wsgi_busyguard.checkport import AgentPort, CheckPort
from wsgi_busyguard.checkport import event_loop as loops
from wsgi_busyguard.checkport.event_loop import MOST_FED, Loop


@pytest.fixture
def gate():
    return Gate(4)


@pytest.fixture
def port(gate):
    port = CheckPort(Monitor(gate), "127.0.0.1:0").start()
    yield port
    port.stop()


class Watch:
    """One who watches."""

    def __init__(self, port, path="/load?watch"):
        self.line = Line(port)
        self.line.send(request("GET", path))
        self.file = self.line._file
        self.head = []
        while text := self.file.readline().decode().strip():
            self.head.append(text)

    def event(self):
        """Return the figures of the next event."""
        while True:
            text = self.file.readline().decode()
            assert text, "the stream ended"
            if text.startswith("data: "):
                assert self.file.readline() == b"\n"
                return json.loads(text[len("data: ") :])

    def ended(self):
        return self.file.read() is not None

    def close(self):
        self.line.close()


@pytest.fixture
def watch(port):
    watches = []

    def watch(path="/load?watch", port=port.address[1]):
        watches.append(Watch(port, path))
        return watches[-1]

    yield watch
    for each in watches:
        each.close()


def test_the_figures_come_once_a_second(watch, gate):
    watching = watch()
    assert watching.head[0] == "HTTP/1.1 200 OK"
    assert "Content-Type: text/event-stream" in watching.head
    assert "Cache-Control: no-store" in watching.head
    first = watching.event()
    shown = json.loads(ask(watching.line.socket.getpeername()[1], path="/load").body)
    assert {**first, "at": 0} == {**shown, "at": 0}
    seen = [watching.event()]
    gate.enter()
    seen += [watching.event() for _ in range(3)]
    # One that was on its way may not know of it.
    assert [event["active"] for event in seen] in ([0, 1, 1, 1], [0, 0, 1, 1])
    times = [event["at"] for event in seen]
    # Each at a whole second of the clock or, where the machine is busy elsewhere, after it; so the
    # first may be late, and the next is at its second all the same.
    assert 2 <= times[-1] - times[0] < 9


def test_all_who_watch_are_told_at_once(watch, port):
    watching = [watch() for _ in range(5)]
    *others, last = watching
    told = [last.event()["at"] for _ in range(3)][1:]  # the first is the answer to its own request
    for each in others:
        heard = [each.event()["at"]]
        while heard[-1] < told[-1]:
            heard.append(each.event()["at"])
        assert heard[-2:] == told


def test_a_head_request_and_a_post_do_not_watch(port):
    assert (
        ask(port.address[1], "HEAD", "/load?watch")
        .headers["content-type"]
        .startswith("application/json")
    )
    assert ask(port.address[1], "POST", "/load?watch").headers.get("transfer-encoding") is None


def test_those_beyond_the_bound_are_told_so_and_find_a_place_when_one_has_gone(watch, port):
    watching = [watch() for _ in range(MOST_FED)]
    answer = ask(port.address[1], path="/load?watch")
    assert (answer.status, answer.text) == (503, "too many are watching")
    assert ask(port.address[1], path="/readyz").status == 200
    watching[0].close()

    def comes_in():
        one = watch()
        return one.head[0] == "HTTP/1.1 200 OK"

    eventually(comes_in, every=0.1)


def test_one_who_does_not_read_is_let_go(watch, port, monkeypatch):
    """Its events would pile up; nobody else waits for it."""
    with socket.socket() as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        idle.connect(port.address)
        idle.sendall(request("GET", "/load?watch"))
        app = port._app
        monkeypatch.setattr(app, "shown", lambda: {"x": "x" * 3_000_000})
        watching = port.loop
        eventually(lambda: any(peer.feed for peer in watching._peers.values()))
        eventually(lambda: not watching._peers)
    assert ask(port.address[1], path="/readyz").status == 200
    assert watching.failures == 0


def test_one_who_leaves_is_forgotten(watch, port):
    watching = watch()
    watching.event()
    watching.close()
    eventually(lambda: not port.loop._peers)


def test_a_look_that_raises_ends_that_stream_alone(watch, port, monkeypatch):
    watching = watch()
    watching.event()

    def broken():
        raise RuntimeError("broken")

    monkeypatch.setattr(port._app, "shown", broken)
    assert watching.ended()
    assert isinstance(port.loop.failure, RuntimeError)
    assert ask(port.address[1], path="/readyz").status == 200


def test_checks_and_agents_are_answered_meanwhile(gate, watch):
    check, agent = (kind(Monitor(gate), "127.0.0.1:0") for kind in (CheckPort, AgentPort))
    loop = Loop(check, agent).start()
    try:
        watching = [watch(port=check.address[1]) for _ in range(10)]
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            assert ask(check.address[1], path="/readyz").status == 200
        assert len(watching[0].event()) > 10
    finally:
        loop.stop()


def test_a_stream_ends_with_its_port(watch, port):
    watching = watch()
    watching.event()
    port.stop()
    assert watching.ended()


def test_a_child_leaves_the_streams_to_its_parent(watch, port):
    watching = watch()
    watching.event()
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    try:
        for _ in range(2):
            watching.event()
        port.stop()
        assert watching.ended()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_stream_that_is_spoken_to_goes_on(watch):
    watching = watch()
    watching.line.send(b"x" * 1000)
    watching.event()
    watching.event()


def test_more_peers_than_there_is_room_for_take_the_place_of_the_oldest(watch, port, monkeypatch):
    monkeypatch.setattr(loops, "MOST_PEERS", 4)
    watching = [watch() for _ in range(4)]
    with Line(port.address[1]) as silent:
        assert watching[0].ended()
        assert watching[3].event()
        silent.send(request("GET", "/readyz"))
        assert silent.answer().status == 200


def test_a_change_that_the_ports_see_is_written_by_another_thread(python):
    """The logging lock may be held by one who waits for them."""
    python("""
        import logging, socket, sys
        from wsgi_busyguard import Load, Monitor
        from wsgi_busyguard.checkport import CheckPort

        class Crowded:
            def read(self):
                return Load(9, 4, 4)

        logging.basicConfig(level=logging.INFO, stream=sys.stdout)
        port = CheckPort(Monitor(Crowded()), "127.0.0.1:0").start()
        with logging._lock, socket.create_connection(port.address, 5) as connection:
            connection.sendall(b"GET /readyz HTTP/1.0\\r\\n\\r\\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 ")
        port.stop()
    """)
