"""Caddy with the configuration of the docs, in front of guarded servers."""

from __future__ import annotations

import pytest
from support.balanced import (
    PATIENT,
    ROOMY,
    Caddy,
    Posts,
    Server,
    load_average,
    lost_at_a_kill,
    tally,
)
from support.client import Stopwatch, ask, eventually, many, together
from support.haproxies import Visitors

SERVERS = ("--threads=4", "--max-queue=4", "--max-wait=0.5", "--client-timeout=5")

patient = pytest.mark.parametrize("options", [PATIENT], ids=["patient"])
roomy = pytest.mark.parametrize("options", [ROOMY], ids=["roomy"])

# The docs' servers have eight threads, these have four.
FOUR = {"unhealthy_request_count 8": "unhealthy_request_count 4"}

# For those who must not be told to come again though the machine is busy elsewhere.
LONG = {"lb_try_duration 1s": "lb_try_duration 15s"}


@pytest.fixture
def options():
    return SERVERS


@pytest.fixture
def pair(started, tmp_path, options):
    """Two guarded servers."""
    servers = [started(Server, tmp_path, name, *options) for name in "ab"]
    return [server.wait() for server in servers]


@pytest.fixture
def caddy(started, tmp_path, pair):
    """Starts Caddy with the documented configuration, or with something changed in it."""
    return lambda **more: started(Caddy, tmp_path, pair, changed={**FOUR, **more}).answers()


@patient
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_one_server_refuses_another_serves(caddy, pair, fill, method):
    front = caddy()
    fill(pair[0])
    body = b"hello" if method == "POST" else b""
    answers = [ask(front.port, method, "/x", body=body) for _ in range(20)]
    print(f"\nworst of 20: {max(answer.took for answer in answers) * 1000:.0f} ms", load_average())
    assert {(answer.status, answer.text) for answer in answers} == {(200, "b")}
    assert pair[0].ran(f"{method} /x") == []


def test_a_503_of_the_app_is_passed_on_and_not_asked_for_again(caddy, pair):
    front = caddy()
    for method in ("GET", "POST"):
        answer = ask(front.port, method, "/own503", body=b"hi" if method == "POST" else b"")
        assert (answer.status, answer.text) in ((503, "a"), (503, "b"))
        assert len(pair[0].ran(method) + pair[1].ran(method)) == 1


@patient
def test_a_refused_body_that_is_not_kept_is_a_503_and_no_half_a_body(caddy, pair, fill):
    front = caddy()
    for server in pair:
        fill(server)
    answer = ask(front.port, "POST", "/x", body=b"h" * 300_000)
    assert answer.status == 503
    assert answer.headers["busyguard-refused"] in ("queue-full", "queue-age")
    assert pair[0].ran("POST") + pair[1].ran("POST") == []


def test_what_comes_when_every_thread_is_taken_waits_in_caddy(caddy, pair, held):
    """Eight threads, sixteen requests: Caddy keeps half of them back."""
    front = caddy(**LONG)
    answers, threads = many(16, front.port, path=held.path)
    eventually(lambda: [server.load["active"] for server in pair] == [4, 4])
    assert [server.load["queued"] for server in pair] == [0, 0]
    with Stopwatch() as watch:
        held.let_go()
        together(threads)
    print(f"\nserved within {watch.seconds:.2f} s", load_average())
    assert tally(answers) == {200: 16}
    assert watch.seconds < 2


def test_who_has_waited_for_a_second_is_told_to_come_again(caddy, pair, held):
    front = caddy()
    threads = many(8, front.port, path=held.path)[1]
    eventually(lambda: [server.load["active"] for server in pair] == [4, 4])
    answer = ask(front.port, path="/x")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.took > 0.9
    held.let_go()
    together(threads)


def test_overload_stands_in_caddy_and_not_in_the_servers(caddy, pair):
    """Twice what the servers can do. A server refuses nobody unless four wait in it."""
    front = caddy()
    with Visitors([front.port], 160, "sleep/0.1") as visitors:
        visitors.came(400)
    counts = tally(visitors.answers)
    print(f"\n{counts}", load_average())
    assert set(counts) == {200, 503}
    assert [row["refused"] for server in pair for row in server.load["processes"]] == [0, 0]


@roomy
@pytest.mark.parametrize("visitors_of", [Visitors, Posts], ids=["GET", "POST"])
def test_a_graceful_stop_loses_nothing(caddy, pair, visitors_of):
    front = caddy(**LONG)
    with visitors_of([front.port], 40, "sleep/0.05", patience=25) as visitors:
        visitors.came(20)
        pair[0].signal()
        visitors.came(60)
        assert pair[0].ended() == 0
        visitors.came(20)
    assert tally(visitors.answers) == {200: len(visitors.answers)}


@roomy
@pytest.mark.parametrize("visitors_of", [Visitors, Posts], ids=["GET", "POST"])
def test_a_sigkill_loses_at_most_posts_in_flight_and_runs_none_of_them_twice(
    caddy, pair, visitors_of
):
    lost, _ = lost_at_a_kill(caddy(**LONG), pair, visitors_of, 20, patience=25)
    assert len(lost) <= 4
    assert {answer.status for answer in lost} <= {502}


def test_without_fail_duration_a_dead_server_gets_what_the_others_could_serve(caddy, pair):
    """It has the fewest requests, so least_conn goes on choosing it until the second is over."""
    front = caddy(**{"fail_duration 200ms": "fail_duration 0"})
    pair[0].reap()
    threads = many(1, pair[1].port, path="/sleep/0")[1]
    with Visitors([front.port], 40, "sleep/0.1") as visitors:
        eventually(visitors.lost)
    together(threads)


def test_the_active_check_sees_who_is_draining_and_who_is_back(
    caddy, pair, started, tmp_path, held
):
    changes = {"health_interval 2s": "health_interval 200ms"}
    front = caddy(**changes)
    threads = many(1, pair[0].port, path=held.path)[1]
    eventually(lambda: pair[0].load["active"] == 1)
    pair[0].signal()
    eventually(lambda: ask(pair[0].port, path="/readyz").text == "draining")
    # health_fails is 3
    eventually(lambda: front.output.count("status code out of tolerances") >= 3)
    assert {ask(front.port, path="/x").text for _ in range(10)} == {"b"}
    held.let_go()
    together(threads)
    assert pair[0].ended() == 0
    again = started(Server, tmp_path, "again", *SERVERS, port=pair[0].port).wait()
    eventually(lambda: ask(front.port, path="/x").text == "again")
    assert again.ran("GET /x")
