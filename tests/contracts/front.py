"""What holds of everything that stands in front of a server's threads: real servers and sockets.

A test class that inherits one of these says with ``serve`` what starts a server of one guarded app
(support/front_app.py), with ``threads`` and the options of a guard. Its ``port`` is where it
serves, ``check`` the check port; ``tell()`` asks its control port. Where a test leaves a server as
it found it, all share the one that is ``kept``.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
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
from support.processes import HERE

REFUSALS = "busyguard-refused"

CHUNKED = request("POST", "/length", headers={"Transfer-Encoding": "chunked"})

# What a client may ask, and then close its half of the connection as ``nc -N`` does; its answer.
HALF_CLOSED = {
    "a check of HTTP/1.0": (request("OPTIONS", "/", version="1.0"), STATES),
    "a check": (request("OPTIONS", "/"), STATES),
    "another check": (request(path="/livez"), {"alive"}),
    "HTTP/1.0": (request(path="/big/3", version="1.0"), {"xxx"}),
    "a page": (request(path="/big/3"), {"xxx"}),
    "an upload": (request("POST", "/length", body=b"b" * 100_000), {"100000"}),
    "chunks": (CHUNKED + b"1\r\na\r\n0\r\n\r\n", {"1"}),
}

# Longer than these tests wait for an end that does not wait for it.
LONG_GRACE = 100.0


def statuses(answers):
    return sorted(answer.status for answer in answers)


class RequestContract:
    """What is promised to each request, also where a server has one thread for all of them."""

    def test_http_1_0_without_host_is_answered_and_closed(self, kept):
        with Line(kept.port) as line:
            line.send(b"OPTIONS / HTTP/1.0\r\n\r\n")
            answer = line.answer()
            assert answer.status == 200
            assert is_check(answer)
            assert answer.headers["content-length"] == "4"
            assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
            assert line.closed()

    @pytest.mark.parametrize(("sent", "texts"), HALF_CLOSED.values(), ids=HALF_CLOSED)
    def test_whoever_closes_its_half_behind_a_request_has_its_answer(self, kept, sent, texts):
        """As long as nobody waits; whoever has waited and closed its half is taken to have left."""
        kept.at_rest()
        with Line(kept.port) as line:
            line.send(sent)
            line.socket.shutdown(socket.SHUT_WR)
            assert line.answer().text in texts
        kept.at_rest()
        with Line(kept.port) as line:
            line.send(request(path="/big/1"))
            if line.answer().headers.get("connection") != "close":
                line.send(sent)
                line.socket.shutdown(socket.SHUT_WR)
                assert line.answer().text in texts

    def test_head_has_the_headers_of_get_and_no_body(self, kept):
        get, head = (ask(kept.port, method, "/readyz") for method in ("GET", "HEAD"))
        assert head.status == get.status == 200
        assert {**head.headers, "date": ""} == {**get.headers, "date": ""}

    @pytest.mark.parametrize(
        ("method", "path", "headers"),
        [
            ("OPTIONS", "/", {"Origin": "http://shop"}),
            ("OPTIONS", "/", {"Access-Control-Request-Method": "PUT"}),
            ("OPTIONS", "/", {"X-Forwarded-For": "10.0.0.1"}),
            ("OPTIONS", "/shop/", {}),
            ("GET", "/", {}),
        ],
        ids=lambda value: str(value),
    )
    def test_what_is_no_check_reaches_the_app(self, kept, method, path, headers):
        there = json.loads(ask(kept.port, method, path, headers=headers).body)
        assert (there["method"], there["path"]) == (method, path)

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
            b"garbage\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET nowhere HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
            b"\x00\xff" * 10_000,
            b"OPTIONS / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
            b"\r\n" * 100,
        ],
        ids=[
            "TLS",
            "words",
            "version",
            "target",
            "length",
            "binary",
            "endless head",
            "empty lines",
        ],
    )
    def test_garbage_harms_nobody_else(self, kept, garbage):
        for _ in range(10):
            with Line(kept.port) as line:
                line.socket.settimeout(2)
                try:
                    line.send(garbage)
                    line.socket.shutdown(socket.SHUT_WR)
                    line.socket.recv(100)
                except OSError:
                    pass
        eventually(lambda: check(kept.port).text == "free")  # some of it reaches the app, perhaps
        assert ask(kept.port, path="/echo").status == 200
        kept.at_rest()

    @pytest.mark.parametrize("path", ["/before", "/midway"])
    def test_an_app_that_raises_gives_its_place_back(self, site, path):
        guarded = site(threads=1)
        for _ in range(5):
            ask(guarded.port, path=path)
            guarded.at_rest()
        assert ask(guarded.port, path="/echo").status == 200

    def test_the_place_is_held_until_the_last_byte(self, kept):
        answers, threads = many(1, kept.port, path="/drip/20")
        kept.filled(1)
        together(threads)
        assert len(answers[0].body) == 20_000
        kept.at_rest()

    def test_sigterm_lets_a_slow_client_read_the_rest_of_its_answer(self, site):
        size = 24_000_000
        guarded = site(threads=2, grace=LONG_GRACE)
        with Line(guarded.port) as line:
            line.send(request(path=f"/big/{size}", version="1.0"))
            read = len(line.socket.recv(1000))
            guarded.signal()
            while data := line.socket.recv(500_000):
                read += len(data)
                time.sleep(0.01)  # the slow client: half a second
        assert read > size
        assert guarded.ended() == 0


class FrontContract(RequestContract):
    """What is promised of the queue and of checks, of whatever stands in front of it.

    :cvar listeners: the name of the thread in which listeners hear of the state.
    """

    listeners = "busyguard-teller"

    def test_of_40_requests_on_4_threads_4_are_active_and_36_queued_and_all_are_served(self, site):
        guarded = site(threads=4, max_queue=100, max_wait=30.0, ready="exact")
        answers, threads = many(40, guarded.port, path="/hang")
        guarded.filled(4, 36)
        assert check(guarded.port).status == 503
        guarded.tell("release")
        together(threads)
        assert statuses(answers) == [200] * 40
        guarded.at_rest()
        eventually(lambda: check(guarded.port).status == 200)
        eventually(lambda: [state for state, *_ in guarded.tell("transitions")] == ["busy", "free"])

    def test_with_a_bound_of_20_24_are_served_and_16_refused_and_checks_wait_for_none(self, site):
        guarded = site(threads=4, max_queue=20, max_wait=30.0)
        answers, threads = many(40, guarded.port, path="/hang")
        guarded.filled(4, 20)
        eventually(lambda: len(answers) == 16)
        assert {answer.text for answer in checks(guarded.port)} == {"busy"}
        assert statuses(answers) == [503] * 16
        guarded.tell("release")
        together(threads)
        assert statuses(answers) == [200] * 24 + [503] * 16
        refused = [answer for answer in answers if answer.status == 503]
        assert {answer.headers[REFUSALS] for answer in refused} == {"queue-full"}
        assert all(1 <= int(answer.headers["retry-after"]) <= 3 for answer in refused)
        assert {answer.text for answer in refused} == {"busy"}
        guarded.at_rest()
        assert guarded.ran == {"/hang": 24}

    @pytest.mark.alone
    def test_checks_are_answered_while_200_clients_keep_every_thread_asleep(self, site, process):
        """Also beside a flood of refusals, which are said by another thread."""
        guarded = site(threads=10)
        crowd = process(sys.executable, HERE / "crowd.py", guarded.port, "/sleep/1", 200)
        eventually(lambda: guarded.load["active"] == 10)
        answers = [check(guarded.port) for _ in range(40)]
        assert {answer.status for answer in answers} <= {200, 503}
        # Behind the queue it would be four; now and then the machine is busy elsewhere.
        assert sorted(answer.took for answer in answers)[20] < 1
        assert crowd.popen.poll() is None
        crowd.reap()
        guarded.at_rest()

    def test_max_queue_0_lets_as_many_in_as_there_are_threads(self, site):
        guarded = site(threads=4, max_queue=0)
        for _ in range(5):
            answers, threads = many(4, guarded.port, path="/sleep/0.1")
            together(threads)
            assert statuses(answers) == [200] * 4
            guarded.at_rest()
        answers, threads = many(8, guarded.port, path="/hang")
        eventually(lambda: len(answers) == 4)
        guarded.tell("release")
        together(threads)
        assert statuses(answers) == [200] * 4 + [503] * 4

    def test_who_would_be_served_too_late_hears_at_once_also_where_nobody_said_a_number(self, site):
        """A server's own default length is no reason to have four hundred wait in vain."""
        guarded = site(threads=1)
        assert ask(guarded.port, path="/sleep/0.5").status == 200  # so long it takes
        guarded.at_rest()
        answers, threads = many(12, guarded.port, path="/hang")
        eventually(lambda: "queue-full" in {answer.headers.get(REFUSALS) for answer in answers})
        guarded.tell("release")
        together(threads)

    def test_requests_are_served_in_the_order_in_which_they_came(self, site):
        guarded = site(threads=1, max_queue=20, max_wait=30.0)
        _, hanging = many(1, guarded.port, path="/hang")
        guarded.filled(1)
        all_threads = []
        for number in range(8):
            _, threads = many(1, guarded.port, path=f"/echo/{number}")
            guarded.filled(1, number + 1)
            all_threads += threads
        guarded.tell("release")
        together([*hanging, *all_threads])
        assert guarded.tell("began") == ["/hang", *(f"/echo/{number}" for number in range(8))]

    def test_listeners_hear_each_edge_once_in_their_thread(self, site):
        guarded = site(threads=2, max_queue=10, max_wait=30.0)

        def heard():
            return [state for state, *_ in guarded.tell("transitions")]

        for _ in range(3):
            before = heard()
            guarded.tell("hold")
            _, threads = many(6, guarded.port, path="/hang")
            eventually(lambda before=before: heard() == [*before, "busy"])
            guarded.filled(2, 4)
            guarded.tell("release")
            together(threads)
            eventually(lambda before=before: heard() == [*before, "busy", "free"])
        guarded.at_rest()
        assert heard() == ["busy", "free"] * 3
        assert {name for _, name, _ in guarded.tell("transitions")} == {self.listeners}

    def test_only_those_already_running_run_when_the_clients_leave(self, site):
        guarded = site(threads=4, max_queue=60, max_wait=30.0)
        lines = [Line(guarded.port) for _ in range(60)]
        for line in lines:
            line.send(request(path="/hang"))
        guarded.filled(4, 56)
        with Line(guarded.port) as half:
            half.send(request(path="/hang"))
            guarded.filled(4, 57)
            half.socket.shutdown(socket.SHUT_WR)
            assert half.closed()  # which may read still, and reads an end and no reset
        guarded.filled(4, 56)
        for line in lines:
            line.close()
        guarded.filled(4, 0)  # long before they are too old, and before a thread is free
        guarded.tell("release")
        guarded.at_rest()
        assert guarded.ran == {"/hang": 4}
        assert ask(guarded.port, path="/echo").status == 200

    def test_one_who_left_a_moment_before_its_turn_does_not_run(self, site):
        """Nobody has looked since, but at its turn somebody does."""
        guarded = site(threads=1, max_queue=60, max_wait=30.0)
        _, threads = many(1, guarded.port, path="/hang")
        guarded.filled(1)
        lines = [Line(guarded.port) for _ in range(20)]
        for line in lines:
            line.send(request("POST", "/gone", body=b"b" * 100_000))
        guarded.filled(1, 20)
        for line in lines:
            line.close()
        guarded.tell("release")
        together(threads)
        guarded.at_rest()
        assert guarded.ran == {"/hang": 1}

    def test_queued_requests_are_refused_for_their_age_while_every_thread_is_stuck(self, site):
        guarded = site(threads=4, max_queue=20, max_wait=1.0)
        stuck, stuck_threads = many(4, guarded.port, path="/hang")
        guarded.filled(4)
        queued, threads = many(10, guarded.port, path="/echo")
        meanwhile = [check(guarded.port).took]
        while any(thread.is_alive() for thread in threads):
            meanwhile.append(check(guarded.port).took)
            time.sleep(0.02)
        assert statuses(queued) == [503] * 10
        assert {answer.headers[REFUSALS] for answer in queued} == {"queue-age"}
        # The beat comes every quarter of a second; the rest is slack, and what the machine takes.
        latest = 1.0 + 0.25 + 0.5 + max(meanwhile)
        assert all(0.9 <= answer.took <= latest for answer in queued)
        guarded.tell("release")
        together(stuck_threads)
        assert statuses(stuck) == [200] * 4
        assert "/echo" not in guarded.ran

    def test_come_and_go_clients_on_a_stuck_server_make_one_edge_and_cost_no_descriptors(
        self, site
    ):
        # However long all this takes, the queue must not become an overload's.
        guarded = site(threads=4, max_queue=20, max_wait=60.0, client_timeout=600.0)
        stuck, threads = many(4, guarded.port, path="/hang")
        guarded.filled(4)
        before = guarded.tell("descriptors")
        for _ in range(5):
            lines = [Line(guarded.port) for _ in range(40)]
            for line in lines:
                line.send(request(path="/echo"))
            guarded.filled(4, 20)
            for line in lines:
                line.close()
            guarded.filled(4, 0)
        eventually(lambda: guarded.tell("descriptors") <= before + 1)
        assert [state for state, *_ in guarded.tell("transitions")] == ["busy"]
        guarded.tell("release")
        together(threads)
        assert statuses(stuck) == [200] * 4
        eventually(lambda: [state for state, *_ in guarded.tell("transitions")] == ["busy", "free"])

    def test_check_answers_follow_the_state(self, site):
        guarded = site(threads=1, max_queue=5, max_wait=60.0, ready="exact")
        eventually(lambda: check(guarded.port).text == "free")
        assert check(guarded.port).status == 200
        assert is_check(ask(guarded.port, "OPTIONS", "*"))
        _, threads = many(3, guarded.port, path="/hang")
        guarded.filled(1, 2)
        busy = check(guarded.port)
        assert (busy.status, busy.text) == (503, "busy")
        assert ask(guarded.port, "OPTIONS", "*").status == 503
        assert ask(guarded.port, "OPTIONS", "/?ready=always").status == 200
        assert ask(guarded.port, "OPTIONS", "/?ready=sometimes").status == 400
        assert ask(guarded.port, path="/readyz").status == 503
        as_json = ask(guarded.port, path="/healthz", headers={"Accept": "application/json"})
        assert json.loads(as_json.body) == {"status": "fail", "state": "busy"}
        assert ask(guarded.port, path="/livez").text == "alive"
        assert ask(guarded.port, "DELETE", "/readyz").status == 405
        guarded.tell("release")
        together(threads)
        eventually(lambda: check(guarded.port).status == 200)
        assert guarded.ran == {"/hang": 3}

    def test_a_check_that_comes_in_pieces_is_answered_though_every_thread_is_stuck(self, site):
        guarded = site(threads=1, max_queue=5, max_wait=60.0)
        _, threads = many(1, guarded.port, path="/hang")
        guarded.filled(1)
        with Line(guarded.port, timeout=5) as line:
            for piece in (b"OPT", b"IONS / HTTP/1.1\r\nHo", b"st: localhost\r\n", b"\r\n"):
                line.send(piece)
                time.sleep(0.1)  # the network's part: each comes alone
            assert is_check(line.answer())
        guarded.filled(1, 0)
        guarded.tell("release")
        together(threads)

    def test_what_a_proxy_and_a_client_tell_is_in_the_stamps_if_that_is_trusted(self, site):
        told = {"trust_queue_header": True, "client_timeout_header": "X-Client-Timeout-Ms"}
        for options, waited, left in ((told, 3, 1), ({}, 0, 5)):
            guarded = site(threads=2, max_wait=10.0, **options)
            began, stamp = time.monotonic(), f"t={time.time() - 3:.3f}"
            headers = {"X-Request-Start": stamp, "X-Client-Timeout-Ms": "4000"}
            stamps = json.loads(ask(guarded.port, path="/echo", headers=headers).text)
            took = time.monotonic() - began
            assert waited - 0.1 <= stamps["waited"] <= waited + 0.1 + took
            assert left - 0.1 - took <= stamps["deadline"] <= left + 0.1

    def test_the_app_finds_the_stamps_of_the_guard(self, site):
        guarded = site(threads=1, max_queue=5, max_wait=10.0, client_timeout=8.0)
        answer = ask(guarded.port, path="/echo/one?q=1")
        at_once = json.loads(answer.body)
        assert at_once["query"] == "q=1"
        assert at_once["waited"] <= answer.took
        assert 8 - answer.took <= at_once["remaining"] <= 8
        assert 8 - answer.took <= at_once["deadline"] <= 8
        assert "Monitor" in at_once["monitor"]
        assert at_once["pressure"] is False
        _, threads = many(1, guarded.port, path="/hang")
        guarded.filled(1)
        began = time.monotonic()
        answers, waiting = many(1, guarded.port, path="/echo/two")
        guarded.filled(1, 1)
        eventually(lambda: guarded.load["waited"] >= 0.2)
        guarded.tell("release")
        together([*threads, *waiting])
        waited = json.loads(answers[0].body)
        assert 0.2 <= waited["waited"] < time.monotonic() - began
        assert waited["remaining"] == pytest.approx(8 - waited["waited"], abs=0.3)

    @pytest.mark.parametrize("size", [10, 300_000, 20_000_000])
    def test_a_post_that_is_refused_gets_its_answer_whatever_its_size(self, site, size):
        guarded = site(threads=1, max_queue=0)
        _, threads = many(1, guarded.port, path="/hang")
        guarded.filled(1)
        refused = ask(guarded.port, "POST", "/length", body=b"b" * size)
        assert (refused.status, refused.headers[REFUSALS]) == (503, "queue-full")
        guarded.tell("release")
        together(threads)
        guarded.at_rest()  # a thread is free a moment after its answer has come
        assert ask(guarded.port, "POST", "/length", body=b"b" * size).text == str(size)
        assert guarded.ran == {"/hang": 1, "/length": 1}

    def test_a_post_whose_body_comes_late_is_refused_or_served_and_never_confused(self, site):
        guarded = site(threads=1, max_queue=0)
        _, threads = many(1, guarded.port, path="/hang")
        guarded.filled(1)
        with Line(guarded.port) as line:
            body = b"OPTIONS / HTTP/1.1\r\nHost: localhost\r\n\r\n"  # which must never be a check
            head = request("POST", "/length", body=body)[: -len(body)]
            line.send(head)
            time.sleep(0.1)  # the client's part
            line.send(body)
            assert line.answer().headers[REFUSALS] == "queue-full"
        guarded.tell("release")
        together(threads)
        guarded.at_rest()
        with Line(guarded.port) as line:
            line.send(head)
            time.sleep(0.1)
            line.send(body)
            assert line.answer().text == str(len(body))

    def test_half_heads_and_silent_clients_take_no_thread_and_no_place_in_the_queue(self, site):
        guarded = site(threads=2, max_queue=4, max_wait=30.0)
        lines = [Line(guarded.port) for _ in range(40)]
        for number, line in enumerate(lines):
            if number % 2:
                line.send(b"GET /slow HTTP/1.1\r\nHost: local")
        answers, threads = many(6, guarded.port, path="/sleep/0.2")
        together(threads)
        assert statuses(answers) == [200] * 6
        eventually(lambda: check(guarded.port).text == "free")
        guarded.at_rest()
        for line in lines:
            line.close()
        assert guarded.ran == {"/sleep/0.2": 6}

    def test_a_client_that_asks_and_never_reads_holds_up_no_check(self, site):
        guarded = site(threads=2)
        with Line(guarded.port) as greedy:
            greedy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            greedy.send(request(path="/big/48000000") + request("OPTIONS", "/") * 5)
            eventually(lambda: "/big/48000000" in guarded.ran)
            lazy = [Line(guarded.port) for _ in range(10)]
            for line in lazy:
                line.socket.setblocking(False)
                try:
                    while True:
                        line.socket.send(request("OPTIONS", "/") * 100)
                except BlockingIOError:
                    pass
            checks(guarded.port)
            for line in lazy:
                line.close()
        guarded.at_rest()

    def test_sigterm_loses_none_of_those_inside_and_in_the_queue(self, site):
        guarded = site(threads=4, max_queue=20, max_wait=30.0, grace=LONG_GRACE)
        answers, threads = many(10, guarded.port, path="/hang")
        guarded.filled(4, 6)
        guarded.signal()
        guarded.tell("release")
        together(threads)
        assert statuses(answers) == [200] * 10
        assert guarded.ended() == 0
        assert "Traceback" not in guarded.output

    def test_sigterm_while_every_thread_is_stuck_waits_for_the_grace_and_no_longer(self, site):
        guarded = site(threads=4, max_queue=20, grace=1.0)
        many(8, guarded.port, path="/hang")
        guarded.filled(4, 4)
        began = time.monotonic()
        with Stopwatch() as watch:
            guarded.signal()
            assert guarded.ended() == 0
        assert time.monotonic() - began >= 0.9
        assert watch.seconds <= 5

    @pytest.mark.alone
    def test_sigterm_while_idle_ends_at_once_also_with_idle_connections(self, site):
        guarded = site(threads=4, grace=LONG_GRACE)
        with Line(guarded.port) as idle, Line(guarded.port) as silent, Line(guarded.port):
            idle.send(request(path="/sleep/0"))
            assert idle.answer().status == 200
            silent.send(b"GET /")
            with Stopwatch() as watch:
                guarded.signal()
                assert guarded.ended() == 0
            assert watch.seconds <= 4

    def test_counts_are_exact_after_a_storm_of_every_kind(self, site):
        guarded = site(threads=3, max_queue=5, max_wait=0.3)
        kinds = [b"/sleep/0.02", b"/before", b"/midway", b"/drip/2", b"/length", b"/livez"]
        stop = time.monotonic() + 2
        errors = []

        def storm(seed):
            number = seed
            while time.monotonic() < stop:
                number += 1
                path = kinds[number % len(kinds)].decode()
                try:
                    with Line(guarded.port, timeout=10) as line:
                        body = b"b" * (number % 3 * 40_000)
                        one = request("POST" if body else "GET", path, body=body)
                        line.send(one * (number % 2 + 1))
                        if number % 5:
                            line.answer()
                except (OSError, ValueError) as error:  # cut off midway
                    errors.append(error)

        threads = [threading.Thread(target=storm, args=(seed,), daemon=True) for seed in range(20)]
        for thread in threads:
            thread.start()
        together(threads)
        guarded.at_rest()
        answers, threads = many(3, guarded.port, path="/sleep/0.2")
        together(threads)
        assert statuses(answers) == [200] * 3


class OverloadContract:
    """What holds beside that of fronts that refuse where they accept, in an overload that stands.

    It costs a fraction of what the server's own reading and answering would.
    """

    def test_in_an_overload_a_refusal_closes_and_all_else_is_as_ever(self, site):
        guarded = site(threads=1, max_queue=1, max_wait=30.0, client_timeout=0.5)
        _, threads = many(3, guarded.port, path="/hang")
        guarded.filled(1, 1)
        time.sleep(0.6)  # so the queue stands for as long as clients wait
        threads += many(3, guarded.port, path="/hang")[1]
        guarded.filled(1, 1)
        for _ in range(3):
            with Line(guarded.port) as line:
                line.send(request(path="/refused"))
                answer = line.answer()
                assert (answer.status, answer.headers[REFUSALS]) == (503, "queue-full")
                assert answer.headers["connection"] == "close"
                assert line.closed()
        with Line(guarded.port) as line:  # it is taken to have left, and sees an end and no reset
            line.send(request(path="/refused"))
            line.socket.shutdown(socket.SHUT_WR)
            assert line.answer().status in (0, 503)
            assert line.closed()
        one = request(path="/refused")
        for pieces in ([one[:20], one[20:]], [one * 2], [one, one], [bytes([b]) for b in one]):
            with Line(guarded.port) as line:
                line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with contextlib.suppress(ConnectionError):  # it may be refused before all is said
                    for piece in pieces:
                        line.send(piece)
                answer = line.answer()
                assert (answer.status, answer.text) == (503, "busy")
        assert ask(guarded.port, "HEAD", "/refused").status == 503
        assert check(guarded.port).text == "busy"
        assert ask(guarded.port, "GET", "/livez").text == "alive"
        post = ask(guarded.port, "POST", "/length", body=b"b" * 100_000)
        assert (post.status, post.headers[REFUSALS]) == (503, "queue-full")
        guarded.tell("release")
        together(threads)
        guarded.at_rest()
        assert ask(guarded.port, "GET", "/echo").status == 200
        assert set(guarded.ran) == {"/hang", "/echo"}


class ConnectionContract:
    """What holds beside that of fronts that go on with a connection after an answer of their own.

    They know a request's head before it is queued, take any app for a refusal, and answer until the
    last request has its answer.
    """

    def test_what_a_request_has_waited_in_the_proxy_counts_if_that_is_trusted(self, site):
        def came(served, ago):
            stamp = {"X-Request-Start": f"t={time.time() - ago:.3f}"}
            return ask(served.port, path="/echo", headers=stamp)

        trusting = site(threads=2, max_wait=10.0, trust_queue_header=True)
        began = time.monotonic()
        waited = json.loads(came(trusting, 4).text)["waited"]
        assert 3.9 <= waited <= 4.1 + time.monotonic() - began
        assert json.loads(ask(trusting.port, path="/echo").text)["waited"] == 0
        _, threads = many(2, trusting.port, path="/hang")
        trusting.filled(2, 0)
        refused = came(trusting, 20)
        assert (refused.status, refused.headers[REFUSALS]) == (503, "queue-age")
        trusting.tell("release")
        together(threads)
        assert json.loads(came(trusting, 20).text)["waited"] < 1  # idle, so that is a clock
        assert json.loads(came(site(threads=2, max_wait=10.0), 20).text)["waited"] == 0

    def test_a_client_that_says_when_it_gives_up_waits_for_no_longer(self, site):
        """Refused when its turn comes; another that has waited for as long is served."""
        served = site(threads=1, max_wait=30.0, client_timeout_header="X-Client-Timeout-Ms")
        soon = {"X-Client-Timeout-Ms": "400"}
        assert json.loads(ask(served.port, path="/echo", headers=soon).text)["deadline"] < 0.4
        _, threads = many(1, served.port, path="/hang")
        served.filled(1, 0)
        hasty, hurrying = many(1, served.port, path="/hasty", headers=soon)
        served.filled(1, 1)
        patient, waiting = many(1, served.port, path="/patient")
        served.filled(1, 2)
        eventually(lambda: served.load["waited"] >= 0.5)
        served.tell("release")
        together([*threads, *hurrying, *waiting])
        assert [(answer.status, answer.headers.get(REFUSALS)) for answer in hasty] == [
            (503, "queue-age")
        ]
        assert statuses(patient) == [200]
        assert "/hasty" not in served.ran
        served.at_rest()

    def test_a_connection_is_kept_across_the_app_and_checks(self, site):
        guarded = site(threads=2)
        with Line(guarded.port) as line:
            for _ in range(5):
                line.send(request(path="/sleep/0"))
                assert line.answer().text == "done"
                line.send(request("OPTIONS", "/"))
                assert is_check(line.answer())
                line.send(request("POST", "/length", body=b"b" * 10_000))
                assert line.answer().text == "10000"
        assert guarded.ran == {"/sleep/0": 5, "/length": 5}

    def test_a_connection_is_kept_after_a_refusal_without_a_body(self, site):
        guarded = site(threads=1, max_queue=0)
        _, threads = many(1, guarded.port, path="/hang")
        guarded.filled(1)
        with Line(guarded.port) as line:
            for _ in range(3):
                line.send(request(path="/refused"))
                assert line.answer().headers[REFUSALS] == "queue-full"
            guarded.tell("release")
            together(threads)
            guarded.at_rest()
            line.send(request(path="/echo"))
            assert line.answer().status == 200

    def test_pipelined_requests_are_answered_in_their_order(self, site):
        guarded = site(threads=2, max_queue=10, max_wait=30.0)
        with Line(guarded.port) as line:
            line.send(
                request(path="/sleep/0.2")
                + request("OPTIONS", "/")
                + request("POST", "/length", body=b"b" * 1000)
                + request(path="/livez")
                + request(path="/big/5")
            )
            answers = [line.answer() for _ in range(5)]
        first, a_check, *others = [answer.text for answer in answers]
        assert [first, *others] == ["done", "1000", "alive", "xxxxx"]
        assert a_check in STATES

    def test_pipelined_requests_stay_in_step_behind_a_refusal(self, site):
        guarded = site(threads=1, max_queue=0)
        _, threads = many(1, guarded.port, path="/hang")
        guarded.filled(1)
        with Line(guarded.port) as line:
            line.send(request(path="/first") + request("OPTIONS", "/") + request(path="/second"))
            line.send(request(path="/livez"))
            answers = [line.answer() for _ in range(4)]
        first, a_check, *others = [answer.text for answer in answers]
        assert [first, *others] == ["busy", "busy", "alive"]
        assert a_check in STATES
        assert [answer.status for answer in answers] == [503, 200, 503, 200]
        guarded.tell("release")
        together(threads)

    @pytest.mark.parametrize(("name", "status"), [("webob", 503), ("werkzeug", 429)])
    def test_a_refusal_app_may_be_any_wsgi_app(self, site, name, status):
        guarded = site(threads=1, max_queue=0, refusal=name)
        _, threads = many(1, guarded.port, path="/hang")
        guarded.filled(1)
        refused = ask(guarded.port, path="/refused")
        assert refused.status == status
        assert "come back later" in refused.text
        assert refused.headers[REFUSALS] == "queue-full"
        with Line(guarded.port) as line:
            line.send(request("HEAD", "/refused") + request("OPTIONS", "/"))
            assert line.answer("HEAD").status == status
            assert is_check(line.answer())
        guarded.tell("release")
        together(threads)

    @pytest.mark.parametrize("name", ["raises", "odd header"])
    def test_a_refusal_app_that_fails_gets_the_client_the_plain_refusal(self, site, name):
        guarded = site(threads=1, max_queue=0, refusal=name)
        _, threads = many(1, guarded.port, path="/hang")
        guarded.filled(1)
        for _ in range(2):
            refused = ask(guarded.port, path="/refused")
            assert (refused.status, refused.headers[REFUSALS]) == (503, "queue-full")
        guarded.tell("release")
        together(threads)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
    def test_a_signal_lets_those_inside_and_in_the_queue_finish_and_tells_everybody_else(
        self, site, number
    ):
        guarded = site(threads=4, max_queue=20, max_wait=30.0, grace=LONG_GRACE)
        answers, threads = many(10, guarded.port, path="/hang")
        guarded.filled(4, 6)
        with Line(guarded.port) as kept:
            kept.send(request(path="/livez"))
            assert kept.answer().status == 200
            guarded.signal(number)
            eventually(lambda: check(guarded.port).text == "draining")
            assert check(guarded.port).status == 503
            assert ask(guarded.check, path="/readyz?ready=always").status == 503
            assert ask(guarded.port, path="/livez").text == "alive"
            kept.send(request(path="/echo"))
            refused = kept.answer()
            assert (refused.status, refused.headers[REFUSALS]) == (503, "draining")
            assert refused.headers["connection"] == "close"
            assert kept.closed()
            assert guarded.popen.poll() is None
        guarded.tell("release")
        together(threads)
        assert statuses(answers) == [200] * 10
        assert guarded.ended() == 0
        assert "ended" in guarded.output
        assert "Traceback" not in guarded.output

    def test_nothing_is_said_of_what_goes_well_and_no_warning_of_a_queue(self, site):
        """waitress.queue would warn whenever a thread is not yet back from the request before."""
        guarded = site(threads=2, max_queue=50, max_wait=30.0)
        for _ in range(5):
            answers, threads = many(30, guarded.port, path="/sleep/0.01")
            for _ in range(10):
                check(guarded.port)
            together(threads)
            assert statuses(answers) == [200] * 30
        guarded.signal()
        assert guarded.ended() == 0
        assert guarded.errors == []
