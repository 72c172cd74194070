"""The guarded threaded worker before clients that break off, never close, or talk nonsense."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time

import pytest
from support.client import (
    STATES,
    Line,
    Stopwatch,
    ask,
    check,
    checks,
    eventually,
    is_check,
    many,
    request,
    together,
)
from support.gunicorns import Gunicorn

from servers.test_gunicorn_threads import (
    REFUSALS,
    clean,
    connect,
    gunicorn,
    inside,
)
from wsgi_busyguard.adapters.front.sockets import PEEK_BYTES

__all__ = ["connect", "gunicorn"]  # fixtures

# Few enough that what leaks would stop the worker from accepting.
FEW = ("--worker-connections", "30")


def reset(line):
    """Leave without a goodbye."""
    line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line._file.close()
    line.socket.close()


@pytest.mark.parametrize("leave", [reset, Line.close])
def test_who_only_connects_leaves_no_trace(gunicorn, leave):
    server = gunicorn("--threads", "2", *FEW)
    for _ in range(300):
        leave(Line(server.port))
    clean(server)
    before = inside(server)["files"]
    for _ in range(300):
        leave(Line(server.port))
    clean(server)
    assert inside(server)["files"] < before + 10
    checks(server.port)


@pytest.mark.parametrize("leave", [reset, Line.close])
@pytest.mark.parametrize("sent", [request("OPTIONS", "/"), request(path="/page"), b"GET /half"])
def test_who_leaves_without_reading_leaves_no_trace(gunicorn, sent, leave):
    server = gunicorn("--threads", "2", *FEW, max_queue=20)
    for _ in range(100):
        line = Line(server.port)
        line.send(sent)
        leave(line)
    clean(server)
    server.at_rest()


def test_answers_that_break_off_leave_no_trace(gunicorn):
    """gunicorn closes such a socket itself, and a second time when it sees to the connection."""
    server = gunicorn("--threads", "2", *FEW)
    for _ in range(60):
        with Line(server.port) as line:
            line.send(request(path="/breaks"))
            assert line.answer().body == b"b" * 50
    clean(server)
    server.raises = 60


def test_clients_that_never_close_stall_nobody(gunicorn, connect):
    """From gunicorn 26.0 on the thread that accepts waits for up to 2 s for each of them."""
    server = gunicorn("--threads", "4")
    lines = [connect(server.port) for _ in range(8)]
    for number, line in enumerate(lines):
        line.send(request("OPTIONS", "/") if number % 2 else request(path="/page", version="1.0"))
    for line in lines:
        assert line.answer().text in {"GET /page", *STATES}
    clean(server, lingering=8)
    assert ask(server.port, path="/page").status == 200
    assert inside(server)["lingering"] >= 8  # these are let go after 2 s
    checks(server.port)
    clean(server, lingering=0)
    assert all(line.closed() for line in lines)


def soon(server):
    """A page and a check are answered, and wait for nobody who is connected already."""
    with Stopwatch() as watch:
        assert ask(server.port, path="/page").status == 200
        assert check(server.port).status == 200
    assert watch.seconds < 1


def test_those_who_linger_have_a_limit(gunicorn, connect):
    server = gunicorn("--threads", "2", *FEW)
    for _ in range(200):
        line = connect(server.port)
        line.send(request("OPTIONS", "/"))
        assert is_check(line.answer())
    assert inside(server)["lingering"] <= 128
    clean(server)


def test_those_who_are_silent_have_a_limit(gunicorn, connect):
    """The oldest make room, so that whoever means well is not kept out."""
    server = gunicorn("--threads", "2", *FEW)
    lines = [connect(server.port) for _ in range(200)]
    soon(server)
    assert inside(server)["silent"] <= 15
    assert sum(line.closed() for line in lines) == 200
    clean(server)


def test_for_each_thread_one_may_connect_before_he_speaks(gunicorn, connect):
    server = gunicorn("--threads", "4", "--worker-connections", "5")
    lines = [connect(server.port) for _ in range(4)]
    eventually(lambda: inside(server)["silent"] == 4)
    server.at_rest()  # nobody can queue here, not even behind the one who has just been told this
    for line in lines:
        line.send(request(path="/page"))
    assert [line.answer().text for line in lines] == ["GET /page"] * 4


def test_who_has_just_spoken_need_not_make_room(gunicorn, connect):
    """The worker sees first that somebody new is there, and then that the oldest has spoken."""
    server = gunicorn("--threads", "2", *FEW)
    lines = [connect(server.port) for _ in range(15)]
    eventually(lambda: inside(server)["silent"] == 15)
    [worker] = server.workers
    os.kill(worker, signal.SIGSTOP)
    try:
        connect(server.port)
        lines[0].send(request(path="/page"))
    finally:
        os.kill(worker, signal.SIGCONT)
    assert lines[0].answer().text == "GET /page"


def test_those_who_are_kept_alive_make_room(gunicorn, connect, held):
    """At worker_connections gunicorn accepts nobody, for as long as its keep-alive lasts.

    It keeps as many alive as it has connections, less its threads; so none are left for a queue.
    """
    server = gunicorn("--threads", "2", *FEW, "--keep-alive", "60", max_wait=50)
    lines = [connect(server.port) for _ in range(5)]
    for _ in range(28):
        lines.append(connect(server.port))
        lines[-1].send(request(path="/page"))
        assert lines[-1].answer().text == "GET /page"
    answers, threads = many(6, server.port, path=held.path)
    server.filled(2, 4)
    checks(server.port)
    assert all(line.closed() for line in lines[5:8])
    lines[-1].send(request("OPTIONS", "/"))
    assert lines[-1].answer().status in (200, 503)  # the oldest had to go, and this one not
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200] * 6


def test_a_full_queue_and_silent_connections_leave_room_for_checks(gunicorn, connect, held):
    server = gunicorn("--threads", "4", "--worker-connections", "20", max_wait=50)
    _, threads = many(12, server.port, path=held.path)
    server.filled(4, 8)
    for _ in range(30):
        connect(server.port)
    checks(server.port)
    assert ask(server.port, path="/page").headers[REFUSALS] == "queue-full"
    held.let_go()
    together(threads)


def test_an_endless_body_is_not_read_for_ever(gunicorn, connect, held):
    server = gunicorn("--threads", "1", max_queue=0)
    _, threads = many(1, server.port, path=held.path)
    server.filled(1)
    endless = connect(server.port)
    endless.send(b"POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999999\r\n\r\n")
    assert endless.answer().headers[REFUSALS] == "queue-full"
    stop = threading.Event()

    def pour():
        with contextlib.suppress(OSError):
            while not stop.is_set():
                endless.socket.sendall(b"b" * 65536)

    pouring = threading.Thread(target=pour, daemon=True)
    pouring.start()
    checks(server.port)
    pouring.join(10)
    stop.set()
    assert not pouring.is_alive(), "still read after 10 s"
    held.let_go()
    together(threads)
    clean(server)


def test_slow_readers_hold_threads_and_no_check(gunicorn, connect):
    server = gunicorn("--threads", "2")
    lines = [connect(server.port) for _ in range(2)]
    for line in lines:
        line.send(request(path="/big/30000000", version="1.0"))
    server.filled(2)
    checks(server.port)
    for line in lines:
        assert len(line.answer().body) == 30_000_000
    server.at_rest()
    clean(server)


def noise(seed):
    """Return something that no client would send."""
    at_random = random.Random(seed)
    kinds = [
        lambda: at_random.randbytes(at_random.randrange(1, 5000)),
        lambda: b"\x00" * at_random.randrange(1, 5000),
        lambda: b"OPTIONS / HTTP/1.1\r\n" + at_random.randbytes(50) + b"\r\n\r\n",
        lambda: b"OPTIONS / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        lambda: b"OPTIONS / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        lambda: b"GET /" + b"a" * at_random.randrange(4000, 100_000) + b" HTTP/1.1\r\n\r\n",
        lambda: b"GET / HTTP/1.1\r\n" + b"X-Endless: of headers\r\n" * 5000,
        lambda: b"\r\n" * at_random.randrange(1, 2000),
        lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + at_random.randbytes(200),
        lambda: b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" * 3,
        lambda: b"OPTIONS * HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        lambda: b"HEAD /readyz HTTP/9.9\r\n\r\n",
        lambda: "GET /\u00e9\u2028 HTTP/1.1\r\n\r\n".encode(),
    ]
    return kinds[seed % len(kinds)]()


@pytest.mark.parametrize("options", [(), ("--proxy-protocol", "auto")], ids=["plain", "proxied"])
def test_noise_is_survived(gunicorn, options):
    server = gunicorn("--threads", "2", *FEW, *options)
    server.raises = None
    for seed in range(200):
        with contextlib.suppress(OSError), Line(server.port) as line:
            line.send(noise(seed))
            if seed % 3 == 0:
                line.socket.shutdown(socket.SHUT_WR)
                line.socket.settimeout(5)
                line.socket.recv(1000)
    clean(server)
    server.at_rest()
    assert ask(server.port, path="/page").text == "GET /page"


def test_half_a_request_and_a_byte_at_a_time_leave_no_trace(gunicorn, connect):
    server = gunicorn("--threads", "4", *FEW)
    halves = [connect(server.port) for _ in range(3)]
    for half in halves:
        half.send(b"GET /page HTTP/1.1\r\nHost:")
    clean(server, connections=4, silent=3)
    slow = connect(server.port)
    for byte in request("OPTIONS", "/", version="1.0"):
        slow.send(bytes([byte]))
        time.sleep(0.02)  # this is what is tried
    assert is_check(slow.answer())
    halves[0].send(b" localhost\r\n\r\n")
    assert halves[0].answer().text == "GET /page"
    for half in halves:
        half.close()
    server.at_rest()
    clean(server)


# What is not a whole request, with which clients begin and then say no more.
PARTS = {
    "a byte": b"G",
    "half a head": b"GET /page HTTP/1.1\r\nHost: localhost\r\nX: y",
    "a head without its last byte": request(path="/page")[:-1],
    "an empty line": b"\r\n",
    "as much as is looked at, less one": b"GET /page HTTP/1.1\r\nX: " + b"y" * (PEEK_BYTES - 24),
}

NONSENSE = {
    "TLS": bytes.fromhex("16030100c8010000c40303") + b"a" * 190,
    "a byte": b"\x00",
    "lines that end in LF": b"GET /page HTTP/1.0\nHost: localhost\n\n",
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
    "HTTP of the first days": b"GET /page\r\n",
}


@pytest.fixture(scope="module")
def patient():
    """A gunicorn for tests that leave it as they found it: 2 threads, a long keep-alive."""
    patient = Gunicorn("--threads", "2", "--keep-alive", "30")
    yield patient
    patient.reap()
    assert "Traceback" not in patient.output


@pytest.mark.parametrize("part", PARTS)
def test_who_has_not_asked_to_the_end_takes_no_thread(patient, connect, part):
    server = patient
    lines = [connect(server.port) for _ in range(6)]
    for line in lines:
        line.send(PARTS[part])
    clean(server, connections=7, silent=6)
    soon(server)
    server.at_rest()
    for line in lines:
        line.close()
    clean(server)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("together", [False, True], ids=["afterwards", "at once"])
def test_who_is_kept_alive_takes_no_thread_for_a_part_of_the_next_request(
    patient, connect, part, together
):
    """Sent at once, gunicorn has read the part ahead, and it is not in the socket any more."""
    server = patient
    lines = [connect(server.port) for _ in range(6)]
    first = request(path="/first")
    for line in lines:
        line.send(first + PARTS[part] if together else first)
        assert line.answer().text == "GET /first"
        if not together:
            line.send(PARTS[part])
    soon(server)
    clean(server, connections=7, silent=6)
    server.at_rest()
    for line in lines:
        line.close()
    clean(server)


def test_who_does_not_ask_to_the_end_is_closed_after_its_time(gunicorn, connect):
    server = gunicorn("--threads", "2", "--keep-alive", "30")
    fresh, kept = connect(server.port), connect(server.port)
    kept.send(request(path="/first"))
    assert kept.answer().text == "GET /first"
    began = time.monotonic()
    for line in (fresh, kept):
        line.send(PARTS["half a head"])
    assert all(line.closed() for line in (fresh, kept))
    assert 4.5 < time.monotonic() - began < 8
    clean(server)


@pytest.mark.parametrize("before", [b"", request(path="/first")], ids=["fresh", "kept alive"])
def test_a_request_in_many_parts_is_served(gunicorn, connect, before):
    server = gunicorn("--threads", "2", "--keep-alive", "30")
    line = connect(server.port)
    if before:
        line.send(before)
        assert line.answer().text == "GET /first"
    whole = request("POST", "/length", headers={"X-Cookie": "y" * 3000}, body=b"b" * 100)
    for part in (whole[:1], whole[1:2], whole[2:30], whole[30:2000], whole[2000:3070]):
        line.send(part)
        time.sleep(0.02)  # so that they come one by one
    line.send(whole[3070:])
    assert line.answer().text == "100"
    large = request(path="/large", headers={f"X-{n}": "y" * 3000 for n in range(6)})
    line.send(large[:PEEK_BYTES])  # from here on a thread waits
    server.filled(1)
    line.send(large[PEEK_BYTES:])
    assert line.answer().text == "GET /large"
    line.close()
    clean(server)


@pytest.mark.parametrize("what", NONSENSE)
def test_what_is_no_request_is_told_so_at_once(gunicorn, connect, held, what):
    server = gunicorn("--threads", "1", max_queue=0)
    _, threads = many(1, server.port, path=held.path)
    server.filled(1)  # not even a thread is needed for it
    for _ in range(3):
        line = connect(server.port)
        line.send(NONSENSE[what])
        answer = line.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert line.closed()
        line.close()
    held.let_go()
    together(threads)
    server.at_rest()
    clean(server)


def test_who_sends_a_byte_now_and_then_gets_no_more_time(gunicorn, connect):
    server = gunicorn("--threads", "2")
    line = connect(server.port)
    began = time.monotonic()
    line.socket.settimeout(0.2)
    for byte in b"GET /page HTTP/1.1\r\nX: " + b"y" * 100:
        line.send(bytes([byte]))
        with contextlib.suppress(TimeoutError):
            if not line.socket.recv(1):
                break
    assert 4.5 < time.monotonic() - began < 8
    clean(server)


def test_half_a_head_does_not_hold_up_a_stop(gunicorn, connect):
    server = gunicorn("--threads", "2")
    lines = [connect(server.port) for _ in range(4)]
    for line in lines:
        line.send(PARTS["half a head"])
    clean(server, connections=5, silent=4)
    with Stopwatch() as watch:
        server.signal()
        assert all(line.closed() for line in lines)
        assert server.ended() == 0
    assert watch.seconds < 4


# PROXY protocol


def proxy_2(command, addresses):
    signature = b"\r\n\r\n\x00\r\nQUIT\n"
    family = 0x11 if addresses else 0
    return (
        signature + bytes([0x20 | command, family]) + struct.pack("!H", len(addresses)) + addresses
    )


FROM = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2") + struct.pack("!HH", 1111, 80)

BEFORE = {
    "version 1": b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 80\r\n",
    "version 1, unknown": b"PROXY UNKNOWN\r\n",
    "version 2": proxy_2(1, FROM),
    "version 2, the balancer itself": proxy_2(0, b""),
    "none": b"",
}


def test_checks_behind_the_proxy_protocol_take_no_thread(gunicorn, connect, held):
    server = gunicorn("--threads", "1", "--proxy-protocol", "auto", max_queue=0)
    for name, before in BEFORE.items():
        line = connect(server.port)
        line.send(before + request(path="/page"))
        # gunicorn does not know UNKNOWN, which is what a balancer says of itself.
        assert line.answer().status == (400 if "unknown" in name else 200), name
        server.at_rest()  # the answer is out before its thread is free, and here nobody may wait
    _, threads = many(1, server.port, path=held.path)
    server.filled(1)
    for name, before in BEFORE.items():
        line = connect(server.port)
        line.send(before + request("OPTIONS", "/", version="1.0"))
        answer = line.answer()
        assert answer.status == 200, name
        assert is_check(answer), name
        refused = connect(server.port)
        refused.send(before + request(path="/page"))
        assert refused.answer().headers[REFUSALS] == "queue-full"
    held.let_go()
    together(threads)
    server.at_rest()
    eventually(lambda: check(server.port).text == "free")
    # What comes in parts takes no thread until it is whole.
    clean(server)
    for name in ("version 1", "version 2"):
        for size in (1, 10, 20, len(BEFORE[name]), len(BEFORE[name]) + 3):
            line = connect(server.port)
            whole = BEFORE[name] + request(path="/page")
            line.send(whole[:size])
            clean(server, connections=2, silent=1)
            server.at_rest()
            line.send(whole[size:])
            assert (size, line.answer().text) == (size, "GET /page")
            line.close()
            clean(server)


# TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate that nobody trusts, and its key, in one file."""
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-keyout", file, "-out", file.with_suffix(".crt")]
    subprocess.run(command, check=True, capture_output=True)
    file.write_text(file.read_text() + file.with_suffix(".crt").read_text())
    return file


class Secret(Line):
    """A connection with TLS."""

    def __init__(self, port):
        super().__init__(port)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._file.close()
        self.socket = context.wrap_socket(self.socket)
        self._file = self.socket.makefile("rb")


@pytest.fixture
def secure(gunicorn, certificate):
    return lambda *arguments, **options: gunicorn(
        "--certfile", certificate, "--keyfile", certificate, *arguments, **options
    )


def test_with_tls_checks_are_answered_behind_the_handshake(secure):
    server = secure("--threads", "4", "--keep-alive", "5", *FEW)
    with Secret(server.port) as line:
        for _ in range(2):
            line.send(request(path="/page"))
            assert line.answer().text == "GET /page"
            line.send(request("OPTIONS", "/"))
            assert is_check(line.answer())
    for _ in range(40):
        with Secret(server.port) as line:
            line.send(request(path="/page", version="1.0"))
            assert line.answer().text == "GET /page"
    tidy(server)


def tidy(server):
    """What ``clean`` is for a server that speaks TLS."""
    server.at_rest()

    def asked():
        with Secret(server.port) as line:
            line.send(request(path="/inside", version="1.0"))
            shown = line.answer().text
        return '"connections": 1, "silent": 0, "lingering": 0, "known": 1' in shown

    eventually(asked)


def test_with_tls_a_refusal_is_a_closed_connection(secure, held):
    server = secure("--threads", "1", max_queue=0, max_wait=20)
    with Secret(server.port) as first:
        first.send(request(path=held.path))
        server.filled(1)
        with pytest.raises(OSError):  # noqa: PT011 - EOF or a reset, in the handshake
            Secret(server.port)
        assert ask(server.check, path="/livez").status == 200
        held.let_go()
        assert first.answer().status == 200
    tidy(server)


def test_with_tls_nothing_is_said_in_the_clear(secure):
    """A check that passed in the clear would tell the balancer that its requests can pass so."""
    server = secure("--threads", "2", *FEW)
    for _ in range(40):
        with Line(server.port) as line, contextlib.suppress(OSError):
            line.send(request("OPTIONS", "/", version="1.0"))
            assert b"free" not in line.socket.recv(1000)
    for leave in (reset, Line.close):
        for _ in range(40):
            leave(Line(server.port))
            line = Line(server.port)
            line.send(b"\x16\x03\x01\x02\x00\x01")
            leave(line)
    tidy(server)


def test_with_tls_idle_connections_take_no_threads(secure, connect):
    server = secure("--threads", "2")
    for _ in range(10):
        connect(server.port)
    with Secret(server.port) as line:
        with Stopwatch() as watch:
            line.send(request(path="/page"))
            assert line.answer().text == "GET /page"
        assert watch.seconds < 1


def test_with_tls_half_a_handshake_takes_no_thread(secure, connect):
    server = secure("--threads", "2")
    hello = bytes.fromhex("16030100c8010000c40303") + b"a" * 190
    for part in (hello[:1], hello[:5], hello[:-1]):
        lines = [connect(server.port) for _ in range(4)]
        for line in lines:
            line.send(part)
        with Secret(server.port) as line:
            with Stopwatch() as watch:
                line.send(request(path="/page"))
                assert line.answer().text == "GET /page"
            assert watch.seconds < 1
        for line in lines:
            line.close()
    tidy(server)


def test_with_tls_clients_that_never_close_stall_nobody(secure, connect):
    server = secure("--threads", "4")
    lines = [Secret(server.port) for _ in range(4)]
    for line in lines:
        line.send(request(path="/page", version="1.0"))
        assert line.answer().text == "GET /page"
    with Stopwatch() as watch, Secret(server.port) as line:
        line.send(request("OPTIONS", "/"))
        assert is_check(line.answer())
    assert watch.seconds < 1
    for line in lines:
        line.close()
    tidy(server)
