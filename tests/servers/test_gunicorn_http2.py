"""Guarded threads before clients that speak HTTP/2: in the clear, and over TLS."""

from __future__ import annotations

import contextlib
import functools

import pytest
from support.client import ask, check, eventually, is_check, many, request, together
from support.http2 import Streams

from servers.test_gunicorn_hostile import certificate, secure
from servers.test_gunicorn_threads import PREFLIGHT, REFUSALS, clean, connect, gunicorn

__all__ = ["certificate", "connect", "gunicorn", "secure"]  # fixtures

# As most clients, which say hello with their first request.
Http2 = functools.partial(Streams, greets=False)

CLEAR = ("--http-protocols", "h2,h1", "--http2-cleartext")

# What comes while the last one is on its way out may still wait in the kernel, and is queued then.
STATES = {b"free", b"busy"}


@pytest.fixture(params=["prior-knowledge", "both"])
def clear(gunicorn, request):
    """Starts a gunicorn that takes HTTP/2 in the clear."""
    return lambda *arguments, **options: gunicorn(*CLEAR, request.param, *arguments, **options)


def served(server, path="/page"):
    with Http2(server.port) as client:
        stream = client.ask(path=path)
        return client.received(streams=1).answers[stream]


def hold(server, held, count):
    """Have so many requests over HTTP/2 in the app; return their connections."""
    clients = [Http2(server.port) for _ in range(count)]
    for client in clients:
        client.ask(path=held.path)
    server.filled(count)
    return clients


def test_requests_are_served_as_ever(clear):
    server = clear("--threads", "2")
    for _ in range(20):
        assert served(server).text == "GET /page"
    with Http2(server.port) as client:
        streams = [client.ask(path=f"/{number}") for number in range(3)]
        answers = client.received(streams=3).answers
        assert [answers[stream].text for stream in streams] == ["GET /0", "GET /1", "GET /2"]
    server.at_rest()


def test_a_full_server_refuses_in_http2_and_answers_checks_in_it(clear, held):
    server = clear("--threads", "1", max_queue=0, max_wait=30)
    held_by = hold(server, held, 1)
    for method, path, told in [
        ("GET", "/page", (503, "queue-full", {b""})),  # what is refused is not looked at
        ("HEAD", "/page", (503, "queue-full", {b""})),
        ("OPTIONS", "/", (200, None, STATES)),
        ("GET", "/readyz", (200, None, STATES)),
        ("HEAD", "/readyz", (200, None, {b""})),
        ("GET", "/livez", (200, None, {b"alive"})),
        ("GET", "/readyz?ready=nonsense", (400, None, None)),
    ]:
        with Http2(server.port) as client:
            stream = client.ask(method, path)
            said = client.received()
        reply = said.answers[stream]
        assert (reply.status, reply.headers.get(REFUSALS)) == told[:2], path
        assert told[2] is None or reply.body in told[2], path
        assert (said.last, said.error) == (stream, 0)
    held.let_go()
    assert held_by[0].received(streams=1).answers[1].status == 200
    held_by[0].close()
    server.at_rest()


def test_what_is_refused_may_be_sent_again_where_it_was_not_looked_at(clear, held):
    server = clear("--threads", "1", max_queue=0, max_wait=30)
    held_by = hold(server, held, 1)
    with Http2(server.port) as client:  # it has said hello, and nothing else
        client.greet()
        said = client.received()
        assert (said.answers, said.last, said.error) == ({}, 0, 0)
    with Http2(server.port) as client:  # its greeting comes in two pieces
        client.greet(after=16)
        said = client.received()
        assert (said.answers, said.last, said.error) == ({}, 0, 0)
    held.let_go()
    assert held_by[0].received(streams=1).answers[1].status == 200
    held_by[0].close()
    server.at_rest()


def test_a_refused_upload_reads_its_refusal(clear, held):
    server = clear("--threads", "1", max_queue=0, max_wait=30)
    held_by = hold(server, held, 1)
    with Http2(server.port) as client:
        stream = client.ask("POST", "/length", body=b"b" * 16_000, ends=False)
        assert client.received().answers[stream].headers[REFUSALS] == "queue-full"
    held.let_go()
    held_by[0].close()
    server.at_rest()


def test_several_requests_are_each_refused(clear, held):
    server = clear("--threads", "1", max_queue=0, max_wait=30)
    held_by = hold(server, held, 1)
    with Http2(server.port) as client:
        data = [client.ask(path=path) for path in ("/a", "/readyz", "/b")]
        said = client.received()
        # Those that have come by then are refused, and those after them may be sent again.
        assert said.last == max(said.answers, default=0)
        answered = [said.answers[stream].status for stream in data if stream in said.answers]
        assert set(answered) <= {503}
    held.let_go()
    held_by[0].close()
    server.at_rest()


def test_who_has_waited_for_too_long_is_refused_in_http2(clear, held):
    server = clear("--threads", "1", max_queue=5, max_wait=0.5)
    held_by = hold(server, held, 1)
    with Http2(server.port) as client:
        stream = client.ask(path="/page")
        said = client.received()
        assert said.answers[stream].headers[REFUSALS] == "queue-age"
        assert said.last == stream
    held.let_go()
    held_by[0].close()
    server.at_rest()


def test_checks_take_no_thread_and_preflights_are_the_apps(clear, held):
    server = clear("--threads", "2", max_queue=5, max_wait=30)
    held_by = hold(server, held, 2)
    with Http2(server.port) as client:
        stream = client.ask("OPTIONS", "/")
        # At equality a check that waits in the kernel itself makes it busy, but not for 2 s.
        assert client.received().answers[stream].status == 200  # while both threads are held
    with Http2(server.port) as client:
        headers = [(name.lower(), value) for name, value in PREFLIGHT.items()]
        stream = client.ask("OPTIONS", "/", headers=headers)
        server.filled(2, 1)
        held.let_go()
        assert client.received(streams=1).answers[stream].text == "OPTIONS /"
    for client in held_by:
        client.close()
    server.at_rest()


def test_a_client_that_reads_nothing_stops_nobody(clear, held):
    """One whose window is shut would have gunicorn wait for it, in the thread that accepts."""
    server = clear("--threads", "1", max_queue=0, max_wait=30)
    held_by = hold(server, held, 1)
    with Http2(server.port) as check, Http2(server.port) as client:
        for each in (check, client):
            each.http.update_settings({4: 0})  # SETTINGS_INITIAL_WINDOW_SIZE
        check.ask("OPTIONS", "/")
        stream = client.ask(path="/page")
        with Http2(server.port) as other:
            asked = other.ask("OPTIONS", "/")
            assert other.received().answers[asked].status == 200
        assert client.received().answers[stream].status == 503
        assert check.received().answers[1].status == 503  # it cannot be told in another way
    held.let_go()
    held_by[0].close()
    server.at_rest()


def test_http1_is_answered_where_gunicorn_takes_it(gunicorn, connect):
    """Of those that may speak HTTP/2 with prior knowledge gunicorn expects it, and nothing else."""
    server = gunicorn(*CLEAR, "prior-knowledge", "--threads", "2")
    assert ask(server.port, path="/page").status == 400
    assert check(server.port).status == 400
    server = gunicorn(*CLEAR, "both", "--threads", "2")
    assert ask(server.port, path="/page").text == "GET /page"
    assert is_check(check(server.port))
    clean(server)


def test_those_who_may_not_speak_it_are_told_in_http1(gunicorn, connect, held):
    server = gunicorn(
        *CLEAR, "both", "--forwarded-allow-ips=192.0.2.1", "--threads=1", max_queue=0, max_wait=30
    )
    answers, threads = many(1, server.port, path=held.path)
    server.filled(1)
    line = connect(server.port)
    line.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    assert line.answer().headers[REFUSALS] == "queue-full"
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200]
    line = connect(server.port)
    line.send(request(path="/page"))
    assert line.answer().text == "GET /page"
    server.at_rest()


def test_noise_behind_the_greeting_is_survived(clear, connect):
    server = clear("--threads", "2", "--worker-connections", "32")
    greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for noise in (
        b"\xff" * 500,
        b"\0\0\5\1\5\0\0\0\1abcde",
        b"\0" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        for _ in range(10):
            line = connect(server.port)
            line.send(greeting + noise)
            with contextlib.suppress(OSError):
                line.socket.recv(1000)
            line.close()
    server.at_rest()
    assert served(server).text == "GET /page"


def test_a_worker_that_ends_finishes_what_is_in_the_app(clear, held, tmp_path):
    server = clear("--threads", "2")
    with Http2(server.port) as client:
        stream = client.ask(path=held.path)
        eventually((tmp_path / "go.in").exists)  # a connection counts before its request is read
        server.signal()
        held.let_go()
        assert client.received().answers[stream].status == 200
    assert server.ended(within=10) == 0


def test_over_tls_a_check_is_answered_and_a_refusal_comes_before_any_request(secure, held):
    """Nothing can be said before the handshake, and no request has been sent by then."""
    server = secure("--http-protocols", "h2,h1", "--threads", "1", max_queue=0, max_wait=30)
    with Http2(server.port, tls=True) as client:
        stream = client.ask("OPTIONS", "/")
        assert is_check(client.received(streams=1).answers[stream])
    server.at_rest()
    with Http2(server.port, tls=True) as client:
        stream = client.ask(path=held.path)
        server.filled(1)
        with pytest.raises(OSError):  # noqa: PT011 - EOF or a reset, in the handshake
            Http2(server.port, tls=True)
        held.let_go()
        assert client.received(streams=1).answers[stream].status == 200
    server.at_rest()


def test_nothing_is_left_of_them(clear):
    server = clear("--threads", "2", "--worker-connections", "32")
    for number in range(60):
        with Http2(server.port) as client:
            client.ask(*(("OPTIONS", "/") if number % 2 else ("GET", "/page")))
            client.received(streams=1)
    server.at_rest()

    def left():
        shown = served(server, "/inside").text
        return '"connections": 1, "silent": 0, "lingering": 0, "known": 1' in shown

    eventually(left)
