"""The guarded site over HTTP/2: over TLS, where clients choose it, and without."""

from __future__ import annotations

import json
import subprocess

import pytest
from support import http2
from support.client import STATES, Line, check, eventually, is_check, request
from support.http2 import Streams

REFUSALS = "busyguard-refused"


@pytest.fixture(params=["TLS", "cleartext"])
def served(request, site, certificate):
    """Starts a site that speaks HTTP/2, and connects to it."""
    tls = request.param == "TLS"

    def start(**options):
        guarded = site(http2=certificate if tls else True, **options)
        guarded.connect = lambda: Streams(guarded.port, tls=tls)
        return guarded

    return start


def asked(guarded, *arguments, **named):
    with guarded.connect() as line:
        return line.answer(line.ask(*arguments, **named))


def test_pages_uploads_checks_and_refusals_are_what_they_are_over_http_1(served):
    guarded = served(threads=1, max_queue=1, max_wait=30.0, ready="exact")
    shown = json.loads(asked(guarded, path="/echo").body)
    assert (shown["method"], shown["path"]) == ("GET", "/echo")
    assert asked(guarded, "POST", "/length", body=b"b" * 50_000).text == "50000"
    assert asked(guarded, path="/big/3000000").body == b"x" * 3_000_000
    free = asked(guarded, path="/readyz?ready=always")
    assert (free.status, free.headers["content-length"]) == (200, "4")
    assert is_check(free)
    head = asked(guarded, "HEAD", "/readyz?ready=always")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "4")
    assert is_check(asked(guarded, "OPTIONS", "/"))
    assert is_check(asked(guarded, "OPTIONS", "*"))
    assert asked(guarded, "POST", "/readyz", body=b"x").status == 405
    with guarded.connect() as line:
        held = [line.ask(path="/hang") for _ in range(2)]
        guarded.filled(1, 1)
        refused = line.answer(line.ask(path="/refused"))
        assert (refused.status, refused.headers[REFUSALS]) == (503, "queue-full")
        assert "connection" not in refused.headers
        upload = line.answer(line.ask("POST", "/refused", body=b"b" * 50_000))
        assert upload.headers[REFUSALS] == "queue-full"
        busy = line.answer(line.ask(path="/readyz"))
        assert (busy.status, busy.text) == (503, "busy")
        guarded.tell("release")
        assert [line.answer(stream).text for stream in held] == ["done", "done"]
    assert "/refused" not in guarded.ran
    assert "Traceback" not in guarded.output


def test_who_takes_a_request_back_or_closes_while_it_waits_is_not_served(served):
    guarded = served(threads=1, max_queue=20, max_wait=30.0)
    with guarded.connect() as line, guarded.connect() as other:
        held = line.ask(path="/hang")
        guarded.filled(1)
        taken_back = [line.ask(path="/gone") for _ in range(3)]
        for _ in range(3):
            other.ask(path="/gone")
        stays = line.ask(path="/stays")
        guarded.filled(1, 7)
        for stream in taken_back:
            line.take_back(stream)
        other.close()
        guarded.filled(1, 1)
        guarded.tell("release")
        assert line.answer(held).text == "done"
        assert line.answer(stays).status == 200
        guarded.at_rest()
        assert set(guarded.ran) == {"/hang", "/stays"}
    assert "Traceback" not in guarded.output


def test_who_takes_a_request_back_that_runs_harms_nobody(served):
    guarded = served(threads=2)
    with guarded.connect() as line:
        gone = line.ask(path="/hang")
        half = line.ask("POST", "/length", body=b"half", ends=False)
        guarded.filled(1)
        line.take_back(gone)
        line.take_back(half)
        guarded.tell("release")
        assert line.answer(line.ask(path="/echo")).status == 200
        guarded.at_rest()
    assert "Traceback" not in guarded.output


def test_one_that_has_waited_too_long_is_refused_while_it_waits(served):
    guarded = served(threads=1, max_queue=20, max_wait=0.3)
    with guarded.connect() as line:
        line.ask(path="/hang")
        guarded.filled(1)
        aged = [line.ask(path="/aged") for _ in range(3)]
        assert {line.answer(stream).headers[REFUSALS] for stream in aged} == {"queue-age"}
        guarded.tell("release")


def test_a_hundred_checks_at_once_are_all_answered(served):
    guarded = served(threads=1)
    with guarded.connect() as line:
        streams = [line.ask(path="/readyz", flush=False) for _ in range(100)]
        line.flush()
        assert {line.answer(stream).text for stream in streams} <= STATES
        streams = [line.ask(path="/readyz", flush=False) for _ in range(100)]
        line.flush()
    assert asked(guarded, path="/livez").text == "alive"  # and who asked and left harms nobody
    assert "Traceback" not in guarded.output


def test_sigterm_serves_those_inside_refuses_others_and_says_which_was_the_last(served):
    guarded = served(threads=1, max_queue=5, max_wait=30.0, grace=100.0)
    with guarded.connect() as line, guarded.connect() as idle, guarded.connect() as told:
        assert idle.answer(idle.ask(path="/echo")).status == 200
        assert told.answer(told.ask(path="/echo")).status == 200
        inside = line.ask(path="/hang")
        guarded.filled(1)
        waits = line.ask(path="/waits")
        guarded.filled(1, 1)
        guarded.signal()
        eventually(lambda: line.answer(line.ask(path="/readyz")).text == "draining")
        refused = line.answer(line.ask(path="/new"))
        assert (refused.status, refused.headers[REFUSALS]) == (503, "draining")
        # A connection with nothing else on it ends there: its client has to go elsewhere.
        assert told.answer(stream := told.ask(path="/new")).status == 503
        assert told.bye(within=5) == stream
        assert "/new" not in guarded.ran
        guarded.tell("release")
        assert line.answer(inside).text == "done"
        assert line.answer(waits).status == 200
        assert line.bye(within=5) > waits
        assert idle.bye(within=5) == 1
    assert guarded.ended() == 0
    assert "Traceback" not in guarded.output


def test_sigterm_lets_a_slow_client_read_the_rest_of_its_answer(served):
    guarded = served(threads=1, grace=100.0)
    with guarded.connect() as line:
        stream = line.ask(path="/big/5000000")
        eventually(lambda: guarded.ran)
        guarded.at_rest()
        guarded.signal()
        eventually(lambda: check_says(guarded) == "draining")
        assert line.answer(stream).body == b"x" * 5_000_000
        assert line.bye(within=5) == stream
    assert guarded.ended() == 0


def check_says(guarded):
    with Line(guarded.check) as line:
        line.send(request(path="/readyz"))
        return line.answer().text


def test_sigterm_waits_for_who_is_in_the_middle_of_an_upload(served):
    guarded = served(threads=1, grace=100.0)
    with guarded.connect() as line:
        assert line.answer(line.ask(path="/echo")).status == 200
        upload = line.ask("POST", "/length", body=b"a" * 1000, ends=False)
        assert line.answer(line.ask(path="/echo")).status == 200  # so the half of it is there
        guarded.signal()
        eventually(lambda: check_says(guarded) == "draining")
        line.http.end_stream(upload)
        line.flush()
        answer = line.answer(upload)
        assert (answer.status, answer.headers[REFUSALS]) == (503, "draining")
    assert guarded.ended() == 0


def test_a_client_that_asks_to_go_on_with_http_2_in_cleartext_goes_on_with_http_1(site):
    """Twisted offers HTTP/2 over TLS alone."""
    guarded = site(threads=1)
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAAA"}
    with Line(guarded.port) as line:
        for path in ("/echo", "/readyz"):
            line.send(request(path=path, headers=upgrade))
            answer = line.answer()
            assert (answer.status, answer.version) == (200, "HTTP/1.1")
    assert check(guarded.port).status == 200


def test_both_ways_are_served_at_one_port(site, certificate):
    guarded = site(threads=1, http2=certificate)
    assert is_check(http2.ask(guarded.port, path="/readyz", tls=True))
    curl = ["curl", "-sk", "--http1.1", "-w", "%{http_code}/%{http_version}"]
    said = subprocess.run(
        [*curl, f"https://127.0.0.1:{guarded.port}/readyz"], capture_output=True, text=True
    )
    assert said.stdout == "free200/1.1"
