from __future__ import annotations

import gc
import json
import logging
import re
import socket
import struct
import threading
import time
from contextlib import suppress

import pytest
from integration.client import Line, ask, eventually, request

from wsgi_busyguard import Load, Monitor
from wsgi_busyguard.checkport import MOST_PEERS, AgentPort, CheckPort, address

# Beside what is measured, the machine may be busy with something else.
SLACK = 0.5

LINE = b"up maxconn:4\n"


class Shown:
    """An adapter that shows what it is told to show."""

    load = Load(0, 0, 4)

    def read(self):
        return self.load


@pytest.fixture
def shown():
    return Shown()


@pytest.fixture
def monitor(shown):
    return Monitor(shown)


@pytest.fixture
def check(monitor):
    port = CheckPort(monitor, "127.0.0.1:0", ready="exact").start()
    yield port.address[1]
    port.stop()


@pytest.fixture
def agent(monitor):
    port = AgentPort(monitor, "127.0.0.1:0").start()
    yield port.address[1]
    port.stop()


def said(line, within=5.0):
    """Read until the peer closes."""
    line.socket.settimeout(within)
    parts = []
    while data := line.socket.recv(1000):
        parts.append(data)
    return b"".join(parts)


def reset(line):
    """Close in a way that throws away what is under way, and tells the peer so."""
    line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line._file.close()
    line.socket.close()


# address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8081", "127.0.0.1", 8081),
        ("localhost:0", "localhost", 0),
        (":8081", "127.0.0.1", 8081),
        ("8081", "127.0.0.1", 8081),
        ("[::1]:8081", "::1", 8081),
        ("[::]:65535", "::", 65535),
        ("tcp:8081", "127.0.0.1", 8081),
        ("tcp:8081:interface=0.0.0.0", "0.0.0.0", 8081),
        (r"tcp:8081:interface=\:\:1", "::1", 8081),
    ],
)
def test_an_address_is_a_host_and_a_port(text, host, port):
    assert address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "here",
        "here:",
        "127.0.0.1",
        "127.0.0.1:http",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1: 80",
        "127.0.0.1:" + "9" * 10_000,
        "127.0.0.1:٣",
        "::1",
        "::1:8081",
        "[::1]",
        "tcp:",
        "tcp:http",
        "tcp:127.0.0.1:80",
        "tcp:80:backlog=5",
        "unix:/run/check.sock",
        "http://127.0.0.1:80",
    ],
    ids=lambda text: text[:24] or "nothing",
)
def test_what_is_no_address_is_told_in_words(text):
    with pytest.raises(ValueError, match="expected HOST:PORT, with a port from 0 to 65535, not "):
        address(text)


def test_an_ipv6_address_can_be_listened_at(monitor):
    port = CheckPort(monitor, "[::1]:0")
    assert port.address[0] == "::1"
    port.stop()


# the check port


def test_the_check_port_answers_every_question(check):
    assert ask(check, path="/readyz").text == "free"
    assert ask(check, path="/healthz").text == "free"
    assert ask(check, path="/livez").text == "alive"
    assert ask(check, "OPTIONS", "/").text == "free"
    assert ask(check, "OPTIONS", "/any/path").text == "free"
    assert ask(check, "OPTIONS", "*").text == "free"
    assert ask(check, "HEAD", "/readyz").headers["content-length"] == "4"
    assert ask(check, path="/nothing").status == 404
    assert ask(check, path="/").status == 404
    wrong = ask(check, "POST", "/readyz")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert ask(check, path="/readyz?ready=never").status == 400


def test_the_check_port_follows_the_policy_and_a_check_may_name_another(check, shown):
    shown.load = Load(3, 4, 4)
    assert ask(check, path="/readyz").status == 503
    assert ask(check, "OPTIONS", "/x").text == "busy"
    assert ask(check, path="/readyz?ready=always").status == 200
    assert ask(check, path="/livez").status == 200


def test_a_check_of_the_check_port_may_come_through_a_proxy(check):
    assert ask(check, "OPTIONS", "/", headers={"X-Forwarded-For": "10.0.0.1"}).text == "free"


def test_draining_is_told_whatever_the_policy(check, monitor):
    monitor.drain()
    assert ask(check, path="/readyz?ready=always").text == "draining"
    assert json.loads(ask(check, path="/load").body)["state"] == "draining"


def test_load_shows_every_figure(check, shown):
    shown.load = Load(3, 4, 4, waited=0.25, service=0.5, lag=0.125)
    answer = ask(check, path="/load")
    assert answer.headers["content-type"].startswith("application/json")
    assert json.loads(answer.body) == {
        "version": 1,
        "state": "busy",
        "ready": False,
        "queued": 3,
        "active": 4,
        "capacity": 4,
        "idle": 0,
        "delay": 0.375,
        "waited": 0.25,
        "service": 0.5,
        "lag": 0.125,
    }


def test_an_adapter_that_raises_is_an_unknown_load_and_no_outage(check, shown):
    shown.read = None
    assert ask(check, path="/readyz").status == 200
    assert json.loads(ask(check, path="/load").body)["capacity"] is None


def test_http_1_0_without_host_is_answered(check):
    with Line(check) as line:
        line.send(b"OPTIONS / HTTP/1.0\r\n\r\n")
        assert line.answer().status == 200
        assert line.closed()


GARBAGE = [
    b"\x00\xff\x16\x03\x01\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\nHost: [\r\n\r\n",
    b"GET / HTTP/1.1\r\n: \x1b[31mred\r\n\r\n",
    b"GET /\x1b[31m%0d%0aforged HTTP/1.1\r\n\r\n",
    b"A" * 70_000,
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"\r\n\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_nobodys_trouble_and_no_log_is_forged(check, caplog, capfd, garbage):
    caplog.set_level(logging.DEBUG)
    with Line(check) as line:
        line.send(garbage)
        line.socket.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):  # closed with the rest of the garbage unread
            said(line)
    assert ask(check, path="/readyz").status == 200
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed
    written = caplog.text + printed
    assert "\x1b" not in written
    assert not [line for line in written.splitlines() if line.startswith("forged")]


def test_silent_and_half_open_clients_hold_up_nobody(check):
    silent = [Line(check) for _ in range(40)]
    for line in silent[::2]:
        line.send(b"GET /readyz HT")
    for line in silent[::4]:
        line.socket.shutdown(socket.SHUT_WR)
    assert max(ask(check, path="/readyz").took for _ in range(5)) < SLACK
    for line in silent:
        reset(line)
    assert ask(check, path="/readyz").status == 200


def test_a_silent_client_is_let_go(check, monkeypatch):
    """Else each would keep a thread for ever."""
    from wsgi_busyguard import checkport

    assert 1 <= checkport.SILENCE <= 10
    monkeypatch.setattr(checkport, "SILENCE", 0.2)
    port = CheckPort(Monitor(Shown()), "127.0.0.1:0").start()
    with Line(port.address[1]) as line:
        line.send(b"GET /readyz HT")
        assert said(line) == b""
    port.stop()


# the agent port


def test_a_balancer_with_a_name_is_answered_at_once(agent):
    with Line(agent) as line:
        began = time.monotonic()
        line.send(b"lb1\n")
        assert said(line) == LINE
        assert time.monotonic() - began < SLACK


def test_a_balancer_without_a_name_is_answered_when_it_has_had_its_time(agent):
    took = []
    for _ in range(5):
        began = time.monotonic()
        with Line(agent) as line:
            assert said(line) == LINE
        took.append(time.monotonic() - began)
    assert min(took) < 0.1  # 20 ms are promised


def test_names_tell_balancers_apart_and_the_address_does_where_there_is_none(agent):
    def asked(name=b""):
        with Line(agent) as line:
            if name:
                line.send(name)
            return said(line)

    assert asked() == LINE
    assert asked() == LINE
    assert asked(b"lb1\n") == b"up maxconn:2\n"
    assert asked(b"lb1 b5/s\n") == b"up maxconn:2\n"
    assert asked(b"lb1\nmore\n") == b"up maxconn:2\n"


@pytest.mark.parametrize(
    "sent",
    [b"\x00\xff\xfe", b"\n", b"\r\n\r\n", b"%s%n\x1b[31m\n", b"x" * 100_000, b"GET / HTTP/1.0\r\n"],
    ids=["bytes", "empty line", "empty lines", "escapes", "very long", "http"],
)
def test_whatever_a_peer_sends_it_gets_the_line(agent, sent, caplog):
    caplog.set_level(logging.DEBUG)
    with Line(agent) as line:
        with suppress(ConnectionError):
            line.send(sent)
        assert said(line) == LINE
    assert caplog.text == ""


def test_a_peer_that_half_closes_gets_the_line(agent):
    with Line(agent) as line:
        line.socket.shutdown(socket.SHUT_WR)
        assert said(line) == LINE


def test_peers_that_reset_are_nobodys_trouble(agent, caplog):
    for _ in range(50):
        line = Line(agent)
        line.send(b"lb")
        reset(line)
    with Line(agent) as line:
        line.send(b"lb\n")
        assert said(line) == LINE
    assert caplog.text == ""


def test_many_silent_peers_at_once_are_all_answered_and_hold_up_nobody(agent):
    silent = [Line(agent) for _ in range(MOST_PEERS - 10)]
    began = time.monotonic()
    with Line(agent) as line:
        line.send(b"lb\n")
        assert said(line).startswith(b"up maxconn:")
    assert time.monotonic() - began < SLACK
    lines = [line.socket.recv(100) for line in silent]
    for line in silent:
        line.close()
    assert set(lines) <= {LINE, b"up maxconn:2\n"}


def test_more_peers_than_there_is_room_for_push_out_the_oldest(agent, caplog):
    crowd = [Line(agent) for _ in range(2 * MOST_PEERS)]
    with Line(agent) as line:
        line.send(b"lb\n")
        assert said(line).startswith(b"up maxconn:")
    for line in crowd:
        reset(line)
    assert caplog.text == ""


def test_a_peer_that_made_room_for_another_is_not_attended_to(monitor, caplog):
    port = AgentPort(monitor, "127.0.0.1:0")
    with socket.socket() as closed_meanwhile:
        port._attend(port._read, closed_meanwhile)
    port.stop()
    assert caplog.text == ""


def test_a_peer_that_never_reads_nor_closes_is_let_go(monitor, monkeypatch):
    from wsgi_busyguard import checkport

    assert checkport.LINGER <= 5
    monkeypatch.setattr(checkport, "LINGER", 0.05)
    port = AgentPort(monitor, "127.0.0.1:0").start()
    with Line(port.address[1]) as line:
        assert line.socket.recv(100) == LINE
        eventually(lambda: not port._peers)
    port.stop()


@pytest.mark.parametrize("sent", [b"lb\n", b""], ids=["named", "silent"])
def test_an_agent_that_cannot_answer_one_peer_answers_the_next(monitor, sent, caplog):
    port = AgentPort(monitor, "127.0.0.1:0").start()
    line_of, port._agent.line = port._agent.line, None
    with Line(port.address[1]) as line:
        line.send(sent)
        assert said(line) == b""
    port._agent.line = line_of
    with Line(port.address[1]) as line:
        line.send(b"lb\n")
        assert said(line) == LINE
    port.stop()
    assert caplog.text.count("gave up on one peer") == 1


def test_an_agent_without_a_file_descriptor_left_does_not_spin(monitor, monkeypatch):
    port = AgentPort(monitor, "127.0.0.1:0")
    tried = []

    class Exhausted:
        def accept(self):
            tried.append(1)
            raise OSError(24, "Too many open files")

        def __getattr__(self, name):
            return getattr(listener, name)

    listener, port._listener = port._listener, Exhausted()
    port._selector.unregister(listener)
    port._selector.register(port._listener, 1)
    port.start()
    line = Line(port.address[1])
    eventually(lambda: len(tried) >= 3)
    before, began = len(tried), time.monotonic()
    time.sleep(0.2)
    assert len(tried) - before <= (time.monotonic() - began) / 0.02 + 2
    port._listener = listener
    port._selector.unregister(listener)
    port._selector.register(listener, 1)
    line.send(b"lb\n")
    assert said(line) == LINE
    line.close()
    port.stop()


# both


@pytest.mark.parametrize("kind", [CheckPort, AgentPort])
def test_stop_frees_the_port_and_ends_the_threads(monitor, kind):
    before = threading.active_count()
    for _ in range(3):
        port = kind(monitor, "127.0.0.1:0").start()
        with Line(port.address[1]) as line:
            line.send(request(path="/readyz"))
            assert said(line)
        port.stop()
        port.stop()
        with pytest.raises(ConnectionRefusedError):
            Line(port.address[1])
        again = kind(monitor, f"127.0.0.1:{port.address[1]}")
        again.stop()
    eventually(lambda: threading.active_count() <= before)


@pytest.mark.parametrize("kind", [CheckPort, AgentPort])
def test_a_port_that_was_never_started_can_be_stopped(monitor, kind):
    port = kind(monitor, "127.0.0.1:0")
    stopping = threading.Thread(target=port.stop, daemon=True)
    stopping.start()
    stopping.join(5)
    assert not stopping.is_alive()


@pytest.mark.parametrize("kind", [CheckPort, AgentPort])
def test_a_port_that_is_taken_raises_where_it_is_made(monitor, kind):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="in use"):
            kind(monitor, where)
    gc.collect()  # a socket left open would warn here


def test_a_policy_that_is_none_raises_where_the_port_is_made(monitor):
    with pytest.raises(ValueError, match=re.escape("ready must be one of")):
        CheckPort(monitor, "127.0.0.1:0", ready="never")
    gc.collect()
