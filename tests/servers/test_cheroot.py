"""What is cheroot's alone."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys

import pytest
from support.client import (
    Line,
    ask,
    check,
    eventually,
    figures,
    free_port,
    is_check,
    many,
    request,
    together,
)
from support.processes import HERE, ThreadedSite

REFUSALS = "busyguard-refused"


@pytest.fixture
def site(started):
    """Starts a guarded cheroot with these options."""
    return lambda **options: started(ThreadedSite, server="cheroot", **options)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A file with a key and the certificate that it signed itself."""
    folder = tmp_path_factory.mktemp("tls")
    key, signed = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", signed], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes(key.read_bytes() + signed.read_bytes())
    return both


def encrypted(port, *arguments, **named):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", port), 10)
    with plain, context.wrap_socket(plain) as sock:
        sock.sendall(request(*arguments, headers={"Connection": "close"}, **named))
        data = b""
        # Cut off without a goodbye, as cheroot does it. What OpenSSL 3.5 would say to that finds
        # the connection closed, and this is the error then.
        with contextlib.suppress(ssl.SSLError, BrokenPipeError):
            while part := sock.recv(65536):
                data += part
    return data


def test_over_tls_the_queue_is_bounded_and_checks_come_through_a_thread(site, certificate):
    guarded = site(threads=1, max_queue=0, tls=str(certificate))
    assert encrypted(guarded.port, "OPTIONS", "/").endswith((b"free", b"busy"))
    guarded.at_rest()
    assert b"waited" in encrypted(guarded.port, "GET", "/echo")
    guarded.at_rest()
    hanging = socket.create_connection(("127.0.0.1", guarded.port), 10)
    context = ssl._create_unverified_context()
    with hanging, context.wrap_socket(hanging) as sock:
        sock.sendall(request(path="/hang"))
        guarded.filled(1)
        refused = encrypted(guarded.port, "GET", "/refused")
        assert b"Busyguard-Refused: queue-full" in refused
        assert refused.endswith(b"busy")
        assert ask(guarded.check, path="/readyz").status == 200
        guarded.tell("release")
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
    guarded.at_rest()


def test_over_tls_by_pyopenssl_pages_and_checks_come_through_a_thread(site, certificate):
    """Its connections are no sockets."""
    guarded = site(threads=1, tls=str(certificate), tls_by="pyopenssl")
    assert encrypted(guarded.port, "OPTIONS", "/").endswith((b"free", b"busy"))
    assert b"waited" in encrypted(guarded.port, "GET", "/echo")
    guarded.at_rest()


def test_kept_connections_are_limited_as_cheroot_has_it(site):
    guarded = site(threads=2, keep_alive_conn_limit=0)
    with Line(guarded.port) as line:
        line.send(request("OPTIONS", "/"))
        assert line.answer().headers["connection"] == "close"
        assert line.closed()
    unlimited = site(threads=2, keep_alive_conn_limit=None)
    with Line(unlimited.port) as line:
        for _ in range(3):
            line.send(request("OPTIONS", "/"))
            assert is_check(line.answer())


def test_http_1_0_keeps_a_connection_if_asked_to(site):
    guarded = site(threads=1)
    with Line(guarded.port) as line:
        for _ in range(3):
            line.send(b"OPTIONS / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            answer = line.answer()
            assert answer.headers["connection"] == "Keep-Alive"
            assert is_check(answer)


def test_half_a_head_is_closed_when_cheroot_would_give_up_and_takes_no_thread_till_then(site):
    guarded = site(threads=1, max_queue=0, timeout=1)
    with Line(guarded.port) as line, Line(guarded.port) as dripping:
        line.send(b"GET / HTTP/1.1\r\nHost:")
        for _ in range(3):
            dripping.send(b"G")
            assert is_check(check(guarded.port))
            assert ask(guarded.port, path="/echo").status == 200
            guarded.at_rest()
        for late in (line, dripping):
            assert late.answer().status == 408
            assert late.closed()


@pytest.mark.parametrize("before", [b"", request(path="/first")], ids=["fresh", "read ahead"])
@pytest.mark.parametrize("part", [b"G", b"\r\n", b"GET /echo HTTP/1.1\r\nHost: a\r\nX: y"])
def test_who_has_not_asked_to_the_end_takes_no_thread(site, before, part):
    """What cheroot has read ahead of a connection is not in the socket any more."""
    guarded = site(threads=2)
    with contextlib.ExitStack() as lines:
        held = [lines.enter_context(Line(guarded.port)) for _ in range(4)]
        for line in held:
            line.send(before + part)
            assert not before or line.answer().status == 200
        assert ask(guarded.port, path="/echo").took < 1
        assert is_check(check(guarded.port))
        guarded.at_rest()
        rest = request(path="/echo")
        for line in held:
            line.send(b"ET " + rest[4:] if part == b"G" else b"\r\n\r\n" if b"X" in part else rest)
            assert b"waited" in line.answer().body
    guarded.at_rest()


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x00\xc8\x01", b"GET / HTTP/1.1\nHost: a\n\n", b"SSH-2.0\r\n"]
)
def test_what_is_no_request_is_told_so_at_once_and_takes_no_thread(site, nonsense):
    guarded = site(threads=1, max_queue=0)
    with Line(guarded.port) as stuck:
        stuck.send(request(path="/hang"))
        guarded.filled(1)
        for _ in range(3):
            with Line(guarded.port) as line:
                line.send(nonsense)
                answer = line.answer()
                assert (answer.status, answer.headers["connection"]) == (400, "close")
                assert line.closed()
        guarded.tell("release")
        assert stuck.answer().status == 200
    guarded.at_rest()


def test_over_tls_who_says_nothing_takes_no_thread(site, certificate):
    guarded = site(threads=1, max_queue=0, tls=str(certificate))
    context = ssl._create_unverified_context()
    with contextlib.ExitStack() as silent:
        for _ in range(3):
            plain = silent.enter_context(socket.create_connection(("127.0.0.1", guarded.port), 10))
            silent.enter_context(context.wrap_socket(plain))
        guarded.at_rest()
        assert b"waited" in encrypted(guarded.port, "GET", "/echo")


def test_a_head_of_a_hundred_kilobytes_reaches_the_app(site):
    guarded = site(threads=1)
    headers = {f"X-{number}": "y" * 1000 for number in range(100)}
    assert ask(guarded.port, path="/echo", headers=headers).status == 200


def test_a_head_that_comes_byte_by_byte_reaches_the_app(site):
    guarded = site(threads=1)
    with Line(guarded.port) as line:
        line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request("POST", "/length", body=b"body"):
            line.send(bytes([byte]))
        assert line.answer().text == "4"


def test_more_than_five_may_knock_at_once(site):
    """cheroot's own backlog; whoever comes sixth would try again after a second."""
    guarded = site(threads=4, max_queue=100, max_wait=30.0)
    answers, threads = many(60, guarded.port, path="/sleep/0")
    together(threads)
    assert [answer.status for answer in answers] == [200] * 60
    assert max(answer.took for answer in answers) < 3
    eventually(lambda: guarded.tell("stock")[:2] == [0, 0])


def test_cherrypys_queue_is_read_exactly(process, held):
    port = free_port()
    site = process(sys.executable, HERE / "cherrypy_site.py", port)
    check_port = int(site.line("check:"))
    answers, threads = many(20, port, path=held.path)
    eventually(lambda: [figures(check_port)[of] for of in ("queued", "active")] == [16, 4])
    assert ask(check_port, path="/readyz").status == 503
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200] * 20
    eventually(lambda: [figures(check_port)[of] for of in ("queued", "active")] == [0, 0])
    eventually(lambda: ask(check_port, path="/readyz").status == 200)


def test_what_cheroot_would_refuse_is_left_to_it(site):
    server = site(threads=2)
    with Line(server.port) as line:
        line.send(b"GET /readyz HTTP/1.1\nHost: h\nConnection: close\n\n")  # each a lone LF
        assert line.answer().status == 400
        check(server.port)
