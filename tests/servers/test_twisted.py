"""The guarded site in a real process, behind real sockets."""

from __future__ import annotations

import json
import socket
import time

import pytest
from support.client import (
    STATES,
    Line,
    ask,
    check,
    checks,
    eventually,
    is_check,
    many,
    request,
    together,
)

REFUSALS = "busyguard-refused"


def test_checks_are_answered_on_both_ports_while_the_app_computes(site):
    """The reactor fights ten threads for the interpreter, and still is sooner than they."""
    guarded = site(threads=10, max_queue=20, max_wait=60.0)
    answers, threads = many(20, guarded.port, path="/cpu/0.1")
    eventually(lambda: guarded.load["active"] == 10 and guarded.load["queued"])
    assert ask(guarded.check, path="/readyz").text == "busy"
    assert check(guarded.port).text == "busy"
    assert len(answers) < 20
    together(threads)
    assert {answer.status for answer in answers} == {200}


def test_come_and_go_clients_on_a_stuck_pool_make_one_edge_and_no_queue_in_the_pool(site):
    # The queue must not become an overload's, however long all this takes.
    guarded = site(threads=4, max_queue=20, max_wait=60.0, client_timeout=600.0)
    stuck, threads = many(4, guarded.port, path="/hang")
    guarded.filled(4)
    for _ in range(10):
        lines = [Line(guarded.port) for _ in range(40)]
        for line in lines:
            line.send(request(path="/echo"))
        guarded.filled(4, 20)
        assert guarded.tell("pool")[1] == 0
        for line in lines:
            line.close()
        guarded.filled(4, 0)
    assert [state for state, *_ in guarded.tell("transitions")] == ["busy"]
    guarded.tell("release")
    together(threads)
    assert [answer.status for answer in stuck] == [200] * 4
    eventually(lambda: [state for state, *_ in guarded.tell("transitions")] == ["busy", "free"])


def test_refusals_and_checks_are_marked_and_leave_no_line_in_the_access_log(site, tmp_path):
    log = tmp_path / "access.log"
    guarded = site(threads=1, max_queue=1, max_wait=30.0, retry_after=2, log=str(log))
    _, threads = many(2, guarded.port, path="/hang")
    guarded.filled(1, 1)
    refused = ask(guarded.port, path="/refused")
    check(guarded.port)
    assert refused.status == 503
    assert refused.headers[REFUSALS] == "queue-full"
    assert 2 <= int(refused.headers["retry-after"]) <= 4
    assert refused.headers["cache-control"] == "no-store"
    assert refused.text == "busy"
    guarded.tell("release")
    together(threads)
    lines = eventually(lambda: len(lines := log.read_text().splitlines()) >= 2 and lines, within=5)
    assert len(lines) == 2, lines
    assert all('"GET /hang HTTP/1.1" 200' in line for line in lines)


@pytest.mark.smoke
def test_a_pipelined_request_behind_a_refusal_stays_in_step(site):
    guarded = site(threads=1, max_queue=0)
    _, threads = many(1, guarded.port, path="/hang")
    guarded.filled(1)
    assert {answer.status for answer in checks(guarded.port)} == {200}
    with Line(guarded.port) as line:
        line.send(
            request(path="/first")
            + request("OPTIONS", "/")
            + request("POST", "/second", body=b"b" * 300_000)
            + request(path="/livez")
        )
        answers = [line.answer() for _ in range(4)]
        assert [answer.status for answer in answers] == [503, 200, 503, 200]
        first, a_check, *others = [answer.text for answer in answers]
        assert [first, *others] == ["busy", "busy", "alive"]
        assert a_check in STATES
        guarded.tell("release")
        together(threads)
        guarded.at_rest()
        line.send(request(path="/sleep/0"))
        assert line.answer().text == "done"


def test_a_large_form_post_does_not_hold_up_a_check(site):
    """Twisted would parse it in the reactor thread, which takes it about a second."""
    guarded = site(threads=2)
    assert ask(guarded.port, path="/echo?q=1").status == 200
    assert guarded.tell("parsed") == len("q=1")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    body = b"&".join(b"key%d=%d" % (n, n) for n in range(500_000))
    assert len(body) > 8_000_000
    answers, threads = many(1, guarded.port, "POST", "/length", headers=form, body=body)
    while threads[0].is_alive():
        assert check(guarded.port).status == 200
        time.sleep(0.002)
    assert answers[0].text == str(len(body))
    assert guarded.tell("parsed") == len("q=1")


@pytest.mark.parametrize("name", ["raises", "raises late", "odd header"])
@pytest.mark.parametrize("reason", ["queue-full", "queue-age"])
def test_a_refusal_app_that_fails_still_gets_the_client_an_answer(site, name, reason):
    """One refuses out of render(), the other out of the beat, where Twisted catches nothing."""
    full = {"max_queue": 0} if reason == "queue-full" else {"max_queue": 5, "max_wait": 0.2}
    guarded = site(threads=1, refusal=name, **full)
    _, threads = many(1, guarded.port, path="/hang")
    guarded.filled(1)
    for _ in range(2):
        refused = ask(guarded.port, path="/refused", timeout=3)
        assert (refused.status, refused.headers[REFUSALS], refused.text) == (503, reason, "busy")
    assert check(guarded.port).status == 200
    eventually(lambda: "refusing with the plain answer instead" in guarded.output)
    assert guarded.output.count("refusing with the plain answer instead") == 1
    guarded.tell("release")
    together(threads)
    guarded.at_rest()


def test_checks_are_answered_on_a_unix_socket(site, tmp_path):
    """Checks only: Twisted's WSGI itself cannot serve an app there."""
    path = str(tmp_path / "s")
    guarded = site(threads=1, unix=path)
    answer = ask(None, "OPTIONS", "/", version="1.0", unix=path)
    assert answer.status == 200
    assert is_check(answer)
    assert ask(None, path="/readyz", unix=path).status == 200
    assert ask(None, path="/echo", unix=path).status == 500
    guarded.at_rest()


def test_the_guard_stands_behind_a_root_that_is_no_leaf(site):
    guarded = site(threads=1, root=True)
    assert is_check(check(guarded.port))
    assert is_check(ask(guarded.port, "OPTIONS", "*"))
    assert ask(guarded.port, path="/livez").text == "alive"
    there = json.loads(ask(guarded.port, path="/echo/a%20b?q=1").body)
    assert (there["script"], there["path"]) == ("", "/echo/a b")
    assert guarded.ran == {"/echo/a b": 1}


def test_the_check_port_tells_of_a_reactor_that_is_blocked_while_it_is(site):
    guarded = site(threads=4)
    assert guarded.load["lag"] < 0.25
    guarded.tell("block/3")
    seen = eventually(lambda: (now := guarded.load)["lag"] > 0.5 and now, within=2.5)
    assert seen["state"] == "busy"
    assert ask(guarded.check, path="/readyz?ready=exact").status == 503
    eventually(lambda: guarded.load["state"] == "free")


def test_a_late_reactor_is_told_to_the_listeners_though_nobody_looks(site):
    guarded = site(threads=4)
    guarded.tell("block/1")
    eventually(lambda: [state for state, *_ in guarded.tell("transitions")] == ["busy", "free"])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/before", 500),
        ("/after", 500),
        ("/noclose", 200),
        ("/badclose", 200),
        ("/midway", 200),
    ],
)
def test_counts_return_to_zero_however_the_app_fails(shared_site, path, status):
    for _ in range(12):
        with Line(shared_site.port) as line:
            line.send(request(path=path, version="1.0"))
            assert line.answer().status == status
    shared_site.at_rest()
    assert ask(shared_site.port, path="/sleep/0").status == 200


def test_counts_return_to_zero_when_clients_vanish_in_the_middle_of_a_response(shared_site):
    for _ in range(8):
        line = Line(shared_site.port)
        line.send(request(path="/drip/40"))
        assert line.socket.recv(100)
        line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        line.close()
    eventually(lambda: shared_site.load["active"] == 0, within=10)
    assert ask(shared_site.port, path="/sleep/0").status == 200


def test_a_body_that_never_comes_holds_only_its_own_connection(shared_site):
    with Line(shared_site.port) as line:
        line.send(b"OPTIONS / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        assert check(shared_site.port).status == 200
        line.send(b"cde")
        assert is_check(line.answer())


def test_a_request_is_let_go_of_as_soon_as_it_is_over(site):
    """A cycle would keep it, and the body that it came with, until the collector comes by."""
    guarded = site(threads=1, max_queue=1, max_wait=1.5)
    guarded.tell("collected")
    for _ in range(5):
        assert ask(guarded.port, path="/echo").status == 200
    _, threads = many(1, guarded.port, path="/hang")
    guarded.filled(1)
    answers, refused = many(4, guarded.port, path="/refused")
    together(refused)
    assert {answer.headers[REFUSALS] for answer in answers} == {"queue-full", "queue-age"}
    with Line(guarded.port) as line:
        line.send(request(path="/gone"))
        guarded.filled(1, 1)
    guarded.filled(1, 0)
    guarded.tell("release")
    together(threads)
    eventually(lambda: guarded.tell("requests") == 0, within=5)


def test_requests_are_refused_and_no_slot_is_lost_when_no_thread_can_start(site):
    guarded = site(threads=2, max_queue=2)
    guarded.tell("unthreadable")
    eventually(lambda: guarded.tell("workers") == 0)
    answers = [ask(guarded.port, path="/echo", timeout=5) for _ in range(5)]
    assert [answer.status for answer in answers] == [503] * 5
    guarded.at_rest()
    eventually(lambda: check(guarded.port).status == 200)


def test_requests_are_refused_by_a_pool_that_is_stopped(site):
    guarded = site(threads=2, max_queue=2)
    guarded.tell("joined")
    answers = [ask(guarded.port, path="/echo", timeout=3) for _ in range(5)]
    assert [answer.status for answer in answers] == [503] * 5
    guarded.at_rest()


@pytest.fixture(scope="module")
def shared_site():
    """One site for the tests that leave nothing behind."""
    from support.processes import Site

    guarded = Site(threads=4, max_queue=40, max_wait=30.0)
    yield guarded
    guarded.reap()
