from __future__ import annotations

import gc
import json
import logging
import os
import re
import socket
import struct
import threading
import time
from contextlib import suppress

import pytest
from support.client import Line, Stopwatch, ask, eventually, request

from wsgi_busyguard import BusyGuard, Load, Monitor, __version__
from wsgi_busyguard._support.listener import address
from wsgi_busyguard._support.socket_calls import Plain, system_calls
from wsgi_busyguard.board import Row
from wsgi_busyguard.checkport import event_loop as loop
from wsgi_busyguard.checkport import ports as checkport
from wsgi_busyguard.checkport.event_loop import MOST_PEERS, Loop
from wsgi_busyguard.checkport.ports import AgentPort, CheckPort
from wsgi_busyguard.policy import Verdict

# Seconds within which an answer comes for which nobody is waited; a few milliseconds are usual.
SLACK = 0.5

LINE = b"up maxconn:4\n"

HTML = "text/html; charset=utf-8"
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def at_once(port, path="/readyz"):
    """Assert that an answer waits for nobody else."""
    with Stopwatch() as watch:
        assert ask(port, path=path).status == 200
    assert watch.seconds < SLACK


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


@pytest.fixture(params=[Plain, system_calls], ids=["by methods", "by the library"])
def calls(request, monkeypatch):
    monkeypatch.setattr(loop, "system_calls", request.param)


@pytest.fixture
def check(monitor, calls):
    port = CheckPort(monitor, "127.0.0.1:0", ready="exact").start()
    yield port.address[1]
    port.stop()


@pytest.fixture
def agent(monitor, calls):
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


def test_a_number_is_no_address(monitor):
    with pytest.raises(TypeError, match=r"^expected HOST:PORT as a string, not 8081$"):
        CheckPort(monitor, 8081)


@pytest.mark.parametrize("port", [CheckPort, AgentPort])
def test_a_guard_in_place_of_its_monitor_is_told_at_once(port):
    """Every check got a closed connection for an answer, and no line in a log said why."""
    with pytest.raises(TypeError, match=r"^monitor must be a Monitor, .*: guard\.monitor is one$"):
        port(BusyGuard(print), "127.0.0.1:0")


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
    assert ask(check, path="/").text == "free"
    assert ask(check, path="/", headers=BROWSER).headers["content-type"] == HTML
    wrong = ask(check, "POST", "/readyz")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert ask(check, path="/readyz?ready=never").status == 400


def test_the_check_port_follows_the_policy_and_a_check_may_name_another(check, shown):
    shown.load = Load(3, 4, 4)
    assert ask(check, path="/readyz").status == 503
    assert ask(check, "OPTIONS", "/x").text == "busy"
    assert ask(check, path="/readyz?ready=always").status == 200
    assert ask(check, path="/livez").status == 200


def test_the_check_port_tells_envoy_who_is_slow_but_still_ready(check, shown):
    """As an app's port does with expose_load=True: here the figures can be seen anyway."""
    name = "x-envoy-degraded"
    shown.load = Load(3, 4, 4, 1.0, 0.1)
    answer = ask(check, path="/readyz?ready=damped")
    assert (answer.status, answer.text, answer.headers[name]) == (200, "busy", "true")
    assert name in ask(check, "OPTIONS", "/?ready=always").headers
    assert name not in ask(check, path="/readyz").headers
    shown.load = Load(3, 4, 4, 0.9, 0.1)
    assert name not in ask(check, path="/readyz?ready=always").headers
    shown.load = Load(0, 4, 4)
    assert name not in ask(check, path="/readyz").headers


def test_a_check_of_the_check_port_may_come_through_a_proxy(check):
    assert ask(check, "OPTIONS", "/", headers={"X-Forwarded-For": "10.0.0.1"}).text == "free"


@pytest.mark.parametrize("headers", [{}, {"Accept": "*/*"}], ids=["no Accept", "any"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_root_is_a_ready_check_for_what_is_no_browser(method, headers, check, shown, monitor):
    """Many balancers ask for / by default; a page that is always 200 would be no check."""
    assert ask(check, method, "/", headers=headers).status == 200
    shown.load = Load(3, 4, 4)
    assert ask(check, method, "/", headers=headers).status == 503
    assert ask(check, method, "/?ready=always", headers=headers).status == 200
    monitor.drain()
    answer = ask(check, method, "/", headers=headers)
    assert (answer.status, answer.headers["content-type"]) == (503, "text/plain; charset=utf-8")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_browser_gets_the_page_whatever_the_state(method, check, monitor):
    """It would not run the script of an error page the same way, nor reload it."""
    monitor.drain()
    answer = ask(check, method, "/", headers=BROWSER)
    assert (answer.status, answer.headers["content-type"]) == (200, HTML)


def test_draining_is_told_whatever_the_policy(check, monitor):
    monitor.drain()
    assert ask(check, path="/readyz?ready=always").text == "draining"
    assert json.loads(ask(check, path="/load").body)["state"] == "draining"


def test_load_shows_every_figure_and_where_they_come_from(check, shown):
    shown.load = Load(3, 4, 4, waited=0.25, service=0.5, lag=0.125)
    answer = ask(check, path="/load")
    assert answer.headers["content-type"].startswith("application/json")
    shows = json.loads(answer.body)
    assert shows.pop("at") == pytest.approx(time.time(), abs=60)
    assert shows.pop("busy_seconds") >= 0
    [change] = shows.pop("changes")
    assert (change["state"], change["queued"], change["active"]) == ("busy", 3, 4)
    assert {check["count"] for check in shows.pop("checks")} == {0}  # nobody has asked
    [row] = shows.pop("processes")
    assert (row["pid"], row["queued"], row["served"]) == (os.getpid(), 3, None)
    assert shows.pop("since") == pytest.approx(time.time(), abs=60)
    assert (shows.pop("host"), shows.pop("release")) == (socket.gethostname(), __version__)
    assert shows.pop("port").startswith("127.0.0.1:")
    assert shows.pop("app") is None  # a monitor alone has none
    assert shows == {
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
        "utilisation": 1.75,
        "reads": repr(shown),
        "counts": None,
        "transitions": {"busy": 1, "free": 0},
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


@pytest.mark.parametrize(
    "target", ["/readyz", "/%72eadyz", "http://h/readyz", "HTTP://h:1/r%65adyz?ready=exact"]
)
@pytest.mark.parametrize("host", [b"", b"Host: a\r\n"], ids=["without a Host", "with a Host"])
def test_a_check_is_one_with_any_target_and_without_a_host(check, target, host):
    """HAProxy's checks of HTTP/1.1 have no Host unless they are told to (issue 12)."""
    with Line(check) as line:
        line.send(f"GET {target} HTTP/1.1\r\n".encode() + host + b"\r\n")
        answer = line.answer()
    assert (answer.status, answer.text) == (200, "free")


def test_a_head_may_have_eight_kilobytes_and_no_more(check):
    """Also one that comes in one piece: of 64 kB of short headers each cost 1 us."""
    for size, status in ((8190, 200), (8300, 431)):
        head = b"GET /readyz HTTP/1.1\r\nCookie: " + b"c" * (size - 37) + b"\r\n\r\n"
        with Line(check) as line:
            line.send(head)
            assert line.answer().status == status


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
    for _ in range(5):
        at_once(check)
    for line in silent:
        reset(line)
    assert ask(check, path="/readyz").status == 200


def test_a_silent_client_is_let_go(check, monkeypatch):
    """Else each would keep a thread for ever."""
    assert 1 <= checkport.REQUEST_SECONDS <= 10
    monkeypatch.setattr(checkport, "REQUEST_SECONDS", 0.2)
    port = CheckPort(Monitor(Shown()), "127.0.0.1:0").start()
    with Line(port.address[1]) as line:
        line.send(b"GET /readyz HT")
        assert said(line) == b""
    port.stop()


def test_a_byte_now_and_then_buys_no_time(monitor, monkeypatch):
    monkeypatch.setattr(checkport, "REQUEST_SECONDS", 0.3)
    port = CheckPort(monitor, "127.0.0.1:0").start()
    with Line(port.address[1]) as line:
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() < began + 20:
                line.send(b"X")
                line.socket.settimeout(0.05)
                with suppress(TimeoutError):
                    assert line.socket.recv(100) == b""
                    break
        assert time.monotonic() - began < 10
    port.stop()


def test_a_head_may_come_byte_by_byte(check):
    with Line(check) as line:
        line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request(path="/readyz", headers={"Accept": "application/json"}):
            line.send(bytes([byte]))
        assert json.loads(line.answer().body)["state"] == "free"


def test_a_head_without_end_is_told_so(check):
    with Line(check) as line:
        line.send(b"GET /readyz HTTP/1.1\r\n" + b"A: b\r\n" * 2000)
        answer = line.answer()
        assert (answer.status, answer.text) == (431, "expected the short head of an HTTP/1 request")


def test_what_is_no_request_is_told_so(check):
    with Line(check) as line:
        line.send(b"GET /readyz HTTP/2.0\r\n\r\n")
        assert line.answer().status == 400


def test_every_answer_ends_its_connection_and_says_how_long_it_is(check):
    for path in ("/readyz", "/livez", "/load", "/nothing"):
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            with Line(check) as line:
                line.send(request(method, path) + request(method, path))
                answer = line.answer(method)
                assert answer.headers["connection"] == "close"
                assert int(answer.headers["content-length"]) > 0
                assert line.closed()


@pytest.mark.parametrize("size", [1, 1000, 500_000])
def test_a_body_does_not_cost_its_sender_the_answer(check, size):
    """A connection closed with something unread is reset, and what was sent may be lost."""
    assert ask(check, "POST", "/readyz", body=b"b" * size).status == 405
    with Line(check) as line:
        line.send(request("POST", "/readyz", headers={"Transfer-Encoding": "chunked"}))
        with suppress(ConnectionError):
            for _ in range(size // 1000 + 1):
                line.send(b"3e8\r\n" + b"b" * 1000 + b"\r\n")
        assert line.answer().status == 405
        assert line.closed()


def test_who_may_talk_on_is_listened_to_and_nobody_else(monitor, monkeypatch):
    monkeypatch.setattr(loop, "LINGER_SECONDS", 300.0)
    port = CheckPort(monitor, "127.0.0.1:0").start()
    with Line(port.address[1]) as line:
        line.send(request(path="/readyz"))
        assert line.answer().status == 200
        eventually(lambda: not port.loop._peers)
    with Line(port.address[1]) as line:
        line.send(request("POST", "/readyz", headers={"Content-Length": "5"}))
        assert line.answer().status == 405
        assert line.closed()
        assert port.loop._peers
        line.send(b"bo")
        line.send(b"dy.")
        line.socket.shutdown(socket.SHUT_WR)
        eventually(lambda: not port.loop._peers)
    port.stop()


def test_a_body_without_end_is_not_drained_for_ever(check):
    with Line(check) as line:
        line.send(request("POST", "/readyz", headers={"Transfer-Encoding": "chunked"}))
        with pytest.raises(ConnectionError):
            line.send(b"b" * 30_000_000)


def test_peers_that_reset_the_check_port_are_nobodys_trouble(check, caplog):
    for sent in (b"", b"GET /rea", request(path="/readyz"), request("POST", body=b"b" * 9000)):
        for _ in range(20):
            line = Line(check)
            line.send(sent)
            reset(line)
    assert ask(check, path="/readyz").status == 200
    assert caplog.text == ""


def test_more_peers_than_there_is_room_for_push_the_oldest_out_of_the_check_port(check):
    crowd = [Line(check) for _ in range(MOST_PEERS + 50)]
    at_once(check)
    assert said(crowd[0]) == b""
    for line in crowd:
        reset(line)


# several processes


class Watching(Monitor):
    """Watches several processes."""

    word = None
    alive_now = True
    load_of_each = Load(1, 2, 4, waited=0.5, service=0.25)
    count = 2

    def check(self, ready="damped", patience=2.0, count=True):
        verdict = super().check(ready, patience, count)
        return verdict if self.word is None else Verdict(self.word, False, verdict.load)

    def alive(self):
        return self.alive_now

    def rows(self):
        load = self.load_of_each
        return [Row(100 + n, "ready", load, 0.12345, 7, 8, 9) for n in range(self.count)]


@pytest.fixture
def watching(shown):
    return Watching(shown)


@pytest.fixture
def watched(watching):
    port = CheckPort(watching, "127.0.0.1:0").start()
    yield port.address[1]
    port.stop()


def test_load_has_a_row_for_each_process(watched):
    rows = json.loads(ask(watched, path="/load").body)["processes"]
    assert [row["pid"] for row in rows] == [100, 101]
    assert rows[0] == {
        "pid": 100,
        "slot": 0,
        "state": "ready",
        "queued": 1,
        "active": 2,
        "capacity": 4,
        "idle": 2,
        "delay": 0.5,
        "waited": 0.5,
        "service": 0.25,
        "lag": 0.0,
        "beat": 0.123,
        "admitted": 0,
        "served": 7,
        "refused": 8,
        "dropped": 9,
    }


def test_live_is_503_when_no_process_makes_progress(watched, watching):
    assert ask(watched, path="/livez").text == "alive"
    watching.alive_now = False
    answer = ask(watched, path="/livez")
    assert (answer.status, answer.text) == (503, "stalled")
    assert ask(watched, path="/readyz").text == "free"


def test_a_check_can_be_told_that_nobody_is_there(watched, watching):
    watching.word = "absent"
    answer = ask(watched, path="/readyz")
    assert (answer.status, answer.text) == (503, "absent")
    assert ask(watched, "OPTIONS", "/").text == "absent"


@pytest.mark.slow
def test_an_answer_larger_than_any_buffer_arrives_in_whole_and_holds_up_nobody(watched, watching):
    watching.count = 50_000  # 8 MB
    with Line(watched) as slow:
        slow.send(request(path="/load"))
        first = slow.socket.recv(1000)
        assert first.startswith(b"HTTP/1.1 200 OK")
        watching.count = 1
        at_once(watched, "/load")
        data = first + said(slow)
    head, _, body = data.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}\r\n".encode() in head
    assert len(json.loads(body)["processes"]) == 50_000


@pytest.mark.slow
def test_a_peer_that_never_takes_its_answer_is_let_go(watching, monkeypatch):
    monkeypatch.setattr(loop, "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(checkport, "REQUEST_SECONDS", 60.0)
    watching.count = 50_000
    port = CheckPort(watching, "127.0.0.1:0").start()
    with Line(port.address[1]) as line:
        line.send(request(path="/load"))
        eventually(lambda: port.loop._peers)
        eventually(lambda: not port.loop._peers)
        with suppress(ConnectionError):
            assert len(said(line)) < 50_000 * 100
    port.stop()


# the agent port


def test_a_balancer_with_a_name_is_answered_at_once(agent):
    with Line(agent) as line:
        with Stopwatch() as watch:
            line.send(b"lb1\n")
            assert said(line) == LINE
        assert watch.seconds < SLACK


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


@pytest.mark.parametrize("leave", [Line.close, reset], ids=["closes", "resets"])
def test_who_only_looks_whether_the_port_is_open_takes_no_share(monitor, leave):
    """A TCP probe every second would halve what every balancer is told."""
    port = AgentPort(monitor, "127.0.0.1:0")
    lines = [Line(port.address[1]) for _ in range(10)]
    for line in lines:
        leave(line)
    port.start()  # all have left before it looks
    with Line(port.address[1]) as line:
        line.send(b"lb\n")
        assert said(line) == LINE
    port.stop()


def test_a_balancer_without_a_name_takes_a_share_beside_one_with_a_name(agent):
    for _ in range(2):  # the first time, its name may only be late
        with Line(agent) as line:
            assert said(line) == LINE
    with Line(agent) as line:
        line.send(b"lb\n")
        assert said(line) == b"up maxconn:2\n"


def test_a_first_name_that_comes_late_makes_no_second_balancer(agent):
    with Line(agent) as line:
        assert said(line) == LINE
    with Line(agent) as line:
        line.send(b"lb\n")
        assert said(line) == LINE


def test_a_name_that_comes_late_makes_no_second_balancer_of_one_that_is_known(agent):
    for _ in range(2):  # from then on it is
        with Line(agent) as line:
            line.send(b"lb\n")
            assert said(line) == LINE
    for _ in range(3):
        with Line(agent) as line:
            assert said(line) == LINE  # says its name too late, as on a machine that is busy
    with Line(agent) as line:
        line.send(b"lb\n")
        assert said(line) == LINE


@pytest.fixture
def wide_agent():
    """The agent port of a server of eight threads, that is asked from several addresses."""
    port = AgentPort(Monitor(Wide()), "0.0.0.0:0").start()

    def line_for(name, host="127.0.0.1"):
        with socket.create_connection(port.address, 5, (host, 0)) as peer:
            peer.sendall(f"{name}\n".encode())
            return int(peer.makefile().readline().removeprefix("up maxconn:"))

    line_for.agent = port.agent
    yield line_for
    port.stop()


class Wide:
    def read(self):
        return Load(0, 0, 8)


def test_made_up_names_take_no_share_from_a_balancer(wide_agent):
    """Seventy that are said once would lower maxconn to 1 for everybody (issue 12)."""
    assert [wide_agent("lb1"), wide_agent("lb1")] == [8, 8]
    for number in range(70):
        wide_agent(f"name {number}", "127.0.0.2")
    assert wide_agent("lb1") == 8
    assert [balancer["name"] for balancer in wide_agent.agent.balancers()] == ["lb1"]


def test_of_names_that_ask_twice_four_of_an_address_count(wide_agent):
    assert [wide_agent("lb1"), wide_agent("lb1")] == [8, 8]
    for number in range(70):
        for _ in range(2):
            wide_agent(f"name {number}", "127.0.0.2")
    assert wide_agent("lb1") == 2  # 8 for five, rounded up
    assert len(wide_agent.agent.balancers()) == 5


def test_a_balancer_of_another_address_is_counted_beside_made_up_names(wide_agent):
    for number in range(70):
        for _ in range(2):
            wide_agent(f"name {number}", "127.0.0.2")
    assert [wide_agent("lb1"), wide_agent("lb1")] == [2, 2]
    assert "lb1" in [balancer["name"] for balancer in wide_agent.agent.balancers()]


def test_four_balancers_behind_one_address_share_from_their_second_question_on(wide_agent):
    names = [f"lb{number}" for number in range(4)]
    assert [wide_agent(name) for name in names] == [8, 4, 3, 2]
    assert [wide_agent(name) for name in names] == [8, 4, 3, 2]
    assert [wide_agent(name) for name in names] == [2, 2, 2, 2]


def test_many_silent_peers_at_once_are_all_answered_and_hold_up_nobody(agent):
    silent = [Line(agent) for _ in range(MOST_PEERS - 10)]
    with Stopwatch() as watch, Line(agent) as line:
        line.send(b"lb\n")
        assert said(line).startswith(b"up maxconn:")
    assert watch.seconds < SLACK
    lines = [line.socket.recv(100) for line in silent]
    for line in silent:
        line.close()
    assert set(lines) <= {LINE, b"up maxconn:2\n"}


@pytest.mark.slow
def test_more_peers_than_there_is_room_for_push_out_the_oldest(agent, caplog):
    crowd = [Line(agent) for _ in range(2 * MOST_PEERS)]
    with Line(agent) as line:
        line.send(b"lb\n")
        assert said(line).startswith(b"up maxconn:")
    for line in crowd:
        reset(line)
    assert caplog.text == ""


def test_a_peer_that_made_room_for_another_is_not_attended_to(monitor, monkeypatch):
    monkeypatch.setattr(loop, "MOST_PEERS", 1)
    port = AgentPort(monitor, "127.0.0.1:0")
    turned = Loop(port)  # by hand
    with Line(port.address[1]) as first:
        turned._turn()
        first.send(b"first\n")
        with Line(port.address[1]) as second:
            turned._turn()  # there is news from both, and the new one comes first
            with suppress(ConnectionResetError):
                assert said(first) == b""
            second.send(b"second\n")
            turned._turn()
            turned.stop()
            assert said(second) == LINE
    assert turned.failures == 0


def test_a_peer_that_never_reads_nor_closes_is_let_go(monitor, monkeypatch):
    assert loop.LINGER_SECONDS <= 5
    monkeypatch.setattr(loop, "LINGER_SECONDS", 0.05)
    port = AgentPort(monitor, "127.0.0.1:0").start()
    with Line(port.address[1]) as line:
        assert line.socket.recv(100) == LINE
        eventually(lambda: not port.loop._peers)
    port.stop()


@pytest.mark.parametrize("sent", [b"lb\n", b""], ids=["named", "silent"])
def test_an_agent_that_cannot_answer_one_peer_answers_the_next(monitor, sent, caplog):
    port = AgentPort(monitor, "127.0.0.1:0").start()
    agent, port.agent = port.agent, None
    with Line(port.address[1]) as line:
        line.send(sent)
        assert said(line) == b""
    port.agent = agent
    with Line(port.address[1]) as line:
        line.send(b"lb\n")
        assert said(line) == LINE
    port.stop()
    assert port.loop.failures == 1
    assert isinstance(port.loop.failure, AttributeError)
    assert caplog.text == "", "the lock of a handler may be held by a thread that forks"


def exhausted(looping):
    """Have a loop accept one more, and then find no descriptor left; return its tries."""
    tried, accept = [], looping._calls.accept

    def accepted(listener):
        tried.append(1)
        if len(tried) > 1:
            raise OSError(24, "Too many open files")
        return accept(listener)

    looping._calls.accept = accepted
    return tried


def test_a_port_without_a_file_descriptor_left_lets_a_silent_peer_go_and_does_not_spin(monitor):
    port = CheckPort(monitor, "127.0.0.1:0")
    looping = Loop(port)
    accept, tried = looping._calls.accept, exhausted(looping)
    port.start()
    with Line(port.address[1]) as there, Line(port.address[1]) as line:
        eventually(lambda: len(tried) >= 3)
        assert said(there) == b""
        before, began = len(tried), time.monotonic()
        eventually(lambda: len(tried) >= before + 5)
        assert len(tried) - before <= (time.monotonic() - began) / loop.ACCEPT_RETRY_SECONDS + 2
        looping._calls.accept = accept
        line.send(request(path="/readyz"))
        assert said(line)
    port.stop()


def test_it_lets_nobody_go_who_has_just_connected(monitor, monkeypatch):
    monkeypatch.setattr(loop, "FIRST_BYTE_SECONDS", 1000.0)
    port = CheckPort(monitor, "127.0.0.1:0")
    tried = exhausted(Loop(port))
    port.start()
    with Line(port.address[1]) as there, Line(port.address[1]):
        eventually(lambda: len(tried) >= 5)
        there.send(request(path="/readyz"))
        assert said(there).startswith(b"HTTP/1.1 200 ")
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


def threads():
    return set(os.listdir("/proc/self/task"))


def test_both_ports_on_one_loop_take_one_thread(monitor):
    before = threads()
    check, agent = CheckPort(monitor, "127.0.0.1:0"), AgentPort(monitor, "127.0.0.1:0")
    both = Loop(check, agent).start()
    silent = [Line(port.address[1]) for port in (check, agent) for _ in range(10)]
    assert ask(check.address[1], path="/readyz").status == 200
    with Line(agent.address[1]) as line:
        line.send(b"lb\n")
        assert said(line).startswith(b"up maxconn:")
    assert len(threads() - before) == 1
    both.stop()
    for line in silent:
        line.close()
    for port in (check, agent):
        with pytest.raises(ConnectionRefusedError):
            Line(port.address[1])
    eventually(lambda: threads() <= before)


def test_a_port_can_be_shared_with_another_process_that_says_so_too(monitor):
    first = CheckPort(monitor, "127.0.0.1:0", share=True)
    where = f"127.0.0.1:{first.address[1]}"
    second = AgentPort(monitor, where, share=True)
    with pytest.raises(OSError, match="in use"):
        CheckPort(monitor, where)
    first.stop()
    second.stop()


@pytest.mark.parametrize("kind", [CheckPort, AgentPort])
def test_a_port_starts_once(monitor, kind):
    port = kind(monitor, "127.0.0.1:0").start()
    with pytest.raises(RuntimeError, match="neither started nor stopped"):
        port.start()
    port.stop()
    with pytest.raises(RuntimeError, match="neither started nor stopped"):
        port.start()
    with pytest.raises(RuntimeError, match="is in a loop already"):
        Loop(port)
    gc.collect()


def test_who_has_left_is_not_looked_out_for(monitor):
    """A closed descriptor among those that are polled would have the thread spin."""
    port = CheckPort(monitor, "127.0.0.1:0")
    looping = Loop(port)  # by hand
    for sent in (request(path="/readyz"), request("POST", body=b"b"), b"garbage\r\n\r\n"):
        with Line(port.address[1]) as line:
            line.send(sent[:3])
            looping._turn()
            line.send(sent[3:])
            looping._turn()
            assert line.answer().status
        while looping._peers:
            looping._turn()
    assert looping._poll.poll(0) == []
    looping.stop()


def test_a_listener_may_stop_the_port_whose_check_it_hears_from(shown, monitor, until):
    port = CheckPort(monitor, "127.0.0.1:0")
    stopped = []
    monitor.on_busy(lambda transition: (port.stop(), stopped.append(transition)))
    monitor.interval = 60.0
    port.start()
    shown.load = Load(3, 4, 4)
    with suppress(ConnectionError), Line(port.address[1]) as line:
        line.send(request(path="/readyz"))
        said(line)
    until(lambda: stopped)
    port.stop()
    with pytest.raises(ConnectionRefusedError):
        Line(port.address[1])


def test_a_turn_that_fails_is_not_the_last(monitor, monkeypatch):
    port = CheckPort(monitor, "127.0.0.1:0")
    looping = Loop(port)
    looping._timeout, right = None, looping._timeout
    looping.start()
    eventually(lambda: looping.failures >= 2)
    assert isinstance(looping.failure, TypeError)
    looping._timeout = right
    assert ask(port.address[1], path="/readyz").status == 200
    looping.stop()


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
