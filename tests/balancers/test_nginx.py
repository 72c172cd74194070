"""nginx with the configuration of the docs, in front of guarded servers."""

from __future__ import annotations

import time

import pytest
from support.balanced import (
    PATIENT,
    ROOMY,
    Nginx,
    Posts,
    Server,
    load_average,
    lost_at_a_kill,
    tally,
)
from support.client import Answer, Stopwatch, ask, eventually
from support.haproxies import Visitors

SERVERS = ("--threads=4", "--max-queue=4", "--max-wait=0.5", "--client-timeout=5")

patient = pytest.mark.parametrize("options", [PATIENT], ids=["patient"])
roomy = pytest.mark.parametrize("options", [ROOMY], ids=["roomy"])


@pytest.fixture(params=["twisted", "werkzeug"])
def kind(request):
    return request.param


@pytest.fixture
def options():
    return SERVERS


@pytest.fixture
def pair(started, tmp_path, kind, options):
    """Two guarded servers."""
    servers = [started(Server, tmp_path, name, *options, kind=kind) for name in "ab"]
    return [server.wait() for server in servers]


@pytest.fixture
def nginx(started, tmp_path, pair):
    """Starts nginx with the documented configuration, or with something changed in it."""
    return lambda **changed: started(Nginx, tmp_path, pair, changed=changed).answers()


@patient
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_one_server_refuses_another_serves(nginx, pair, fill, method):
    front = nginx()
    fill(pair[0])
    body = b"hello" if method == "POST" else b""
    answers = [ask(front.port, method, "/x", body=body) for _ in range(20)]
    assert {(answer.status, answer.text) for answer in answers} == {(200, "b")}
    assert pair[0].ran(f"{method} /x") == []


@patient
def test_what_both_refuse_is_refused_after_one_retry(nginx, pair, fill):
    front = nginx()
    for server in pair:
        fill(server)
    for method in ("GET", "POST"):
        with Stopwatch() as watch:
            answer = ask(front.port, method, "/x", body=b"hi" if method == "POST" else b"")
        assert answer.status == 503
        assert answer.headers["busyguard-refused"] in ("queue-full", "queue-age")
        assert answer.headers["retry-after"] in ("1", "2", "3")
        assert watch.seconds < 1


def test_a_503_of_the_app_to_a_post_is_not_sent_again(nginx, pair):
    front = nginx()
    assert ask(front.port, "POST", "/own503", body=b"hi").status == 503
    assert len(pair[0].ran("POST") + pair[1].ran("POST")) == 1


@pytest.mark.parametrize("kind", ["twisted"], indirect=True)
def test_clients_do_not_see_the_probes(nginx):
    front = nginx()
    assert [ask(front.port, path=path).status for path in ("/readyz", "/livez")] == [404, 404]


@pytest.mark.parametrize("kind", ["twisted"], indirect=True)
def test_a_client_is_no_check(nginx, pair):
    assert ask(nginx().port, "OPTIONS", "/").text in ("a", "b")
    assert len(pair[0].ran("OPTIONS") + pair[1].ran("OPTIONS")) == 1


@patient
@pytest.mark.parametrize("kind", ["twisted"], indirect=True)
@pytest.mark.parametrize(
    "changed",
    [{}, {" max_fails=0": ""}],
    ids=["max_fails=0, as documented", "nginx's default"],
)
def test_a_short_refusal_of_all_is_short_only_with_max_fails_0(nginx, pair, fill, held, changed):
    """Without it both are out for 10 s as soon as each has refused once."""
    front = nginx(**changed)
    for server in pair:
        fill(server)
    began = time.monotonic()
    refused = [ask(front.port, path="/x").status for _ in range(4)]
    assert 200 not in refused
    held.let_go()
    for server in pair:
        eventually(lambda server=server: server.load["active"] + server.load["queued"] == 0)
    well = time.monotonic()
    seen = []

    def served():
        seen.append(ask(front.port, path="/x").status)
        return seen[-1] == 200

    eventually(served, every=0.05)
    late = time.monotonic() - well
    print(f"\n{tally(map(answer_of, seen))} {late:.1f} s after both were well", load_average())
    if changed:
        assert set(seen[:-1]) == {502}
        assert 5 < time.monotonic() - began < 15
    else:
        assert seen == [200]


def answer_of(status):
    return Answer(status, {}, b"", 0.0)


@pytest.mark.parametrize("kind", ["twisted"], indirect=True)
def test_in_an_overload_some_are_served_and_others_refused(nginx, pair):
    """Twice what the servers can do."""
    front = nginx()
    with Visitors([front.port], 160, "sleep/0.1") as visitors:
        visitors.came(400)
    counts = tally(visitors.answers)
    print(f"\n{counts}", load_average())
    assert set(counts) == {200, 503}


@roomy
@pytest.mark.parametrize("visitors_of", [Visitors, Posts], ids=["GET", "POST"])
def test_a_graceful_stop_loses_nothing(nginx, pair, visitors_of):
    front = nginx()
    # One by one: what is refused takes the next turn, and if another has come meanwhile, that is
    # the same server's again.
    with visitors_of([front.port], 20, "sleep/0.05", one_by_one=True) as visitors:
        visitors.came(20)
        pair[0].signal()
        visitors.came(60)
        assert pair[0].ended() == 0
        visitors.came(20)
    print(f"\n{tally(visitors.answers)}", load_average())
    assert visitors.lost() == []


@roomy
@pytest.mark.parametrize("visitors_of", [Visitors, Posts], ids=["GET", "POST"])
def test_a_sigkill_loses_at_most_what_was_in_flight_and_runs_no_post_twice(
    nginx, pair, visitors_of
):
    lost, (before, after) = lost_at_a_kill(nginx(), pair, visitors_of, 20)
    assert all(one.at <= after and one.at + one.took >= before for one in lost)
    assert {answer.status for answer in lost} <= {502}
