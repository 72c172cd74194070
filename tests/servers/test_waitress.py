"""What is waitress's alone."""

from __future__ import annotations

import pytest
from support.client import Line, ask, check, eventually, is_check, many, request, together
from support.processes import ThreadedSite

REFUSALS = "busyguard-refused"


@pytest.fixture
def site(started):
    """Starts a guarded waitress with these options."""
    return lambda **options: started(ThreadedSite, server="waitress", **options)


def test_without_the_private_names_the_guard_stands_behind_and_says_once_what_is_lost(site):
    guarded = site(threads=2, moved=True, ready="exact")
    assert is_check(check(guarded.port))
    eventually(lambda: "waitress has no HTTPChannel.a name of tomorrow" in guarded.output)
    answers, threads = many(4, guarded.port, path="/hang")
    guarded.filled(2, 2)
    assert guarded.load["state"] == "busy"
    assert ask(guarded.check, path="/readyz?ready=exact").status == 503
    # How long a request takes nobody knows here, so the damped policy goes by how long they wait.
    eventually(lambda: ask(guarded.check, path="/readyz").status == 503)
    guarded.tell("release")
    together(threads)
    assert [answer.status for answer in answers] == [200] * 4
    guarded.at_rest()
    eventually(lambda: [state for state, *_ in guarded.tell("transitions")] == ["busy", "free"])
    guarded.tell("hold")
    answers, threads = many(2, guarded.port, path="/hang")
    guarded.filled(2)
    guarded.signal()
    eventually(lambda: ask(guarded.check, path="/readyz").text == "draining")
    guarded.tell("release")
    together(threads)
    assert [answer.status for answer in answers] == [200] * 2
    assert guarded.ended(within=8) == 0
    assert guarded.output.count("a name of tomorrow") == 1


def test_a_stock_dispatcher_warns_of_a_queue_where_the_guard_does_not(site):
    """The control for the test that nothing is said."""
    stock = site(stock=True, threads=1)
    _, threads = many(3, stock.port, path="/sleep/0.1")
    together(threads)
    eventually(lambda: "waitress.queue" in stock.output)


def test_a_lookahead_that_somebody_asked_for_works_with_the_guard(site):
    guarded = site(threads=1, max_queue=5, max_wait=30.0, channel_request_lookahead=2)
    _, threads = many(1, guarded.port, path="/hang")
    guarded.filled(1)
    with Line(guarded.port) as line:
        line.send(request(path="/one") + request(path="/two"))
        guarded.filled(1, 1)
    eventually(lambda: guarded.load["queued"] == 0, within=0.8)
    guarded.tell("release")
    together(threads)
    guarded.at_rest()
    assert guarded.ran == {"/hang": 1}


def test_a_client_that_waits_for_100_continue_gets_it_and_its_answer(site):
    guarded = site(threads=1, max_queue=0)
    head = b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    with Line(guarded.port) as line:
        line.send(head)
        assert line.socket.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.send(b"abc")
        assert line.answer().text == "3"


def test_a_url_prefix_is_part_of_the_path_that_a_check_has(site):
    guarded = site(threads=1, url_prefix="/shop")
    assert is_check(ask(guarded.port, path="/readyz"))
    assert b'"script": "/shop"' in ask(guarded.port, path="/shop/echo").body
    assert b'"script": "/shop"' in ask(guarded.port, path="/shop/readyz").body


def test_more_connections_than_waitress_itself_would_accept_leave_checks_alone(site):
    """Its limit is 100; from there on a check would wait in the kernel."""
    guarded = site(threads=1)
    lines = [Line(guarded.port) for _ in range(150)]
    assert check(guarded.port).took < 1
    for line in lines:
        line.close()
