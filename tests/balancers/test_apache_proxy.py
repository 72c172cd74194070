"""Apache as a balancer, with the configuration of the docs, in front of guarded servers."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from support.apaches import MODULES, apache2
from support.balanced import (
    CONFIGURATIONS,
    Daemon,
    Server,
    addressed,
    load_average,
    tally,
)
from support.client import ask, eventually, free_port, many, together
from support.haproxies import Visitors

SERVERS = ("--threads=4", "--max-queue=4", "--max-wait=0.5", "--client-timeout=5")

LOADED = (
    *("mpm_event", "authz_core", "proxy", "proxy_http", "proxy_balancer", "proxy_hcheck"),
    *("lbmethod_byrequests", "slotmem_shm", "headers"),  # mod_watchdog is built in
)

AROUND = """
ServerName localhost
ServerRoot {place}
DefaultRuntimeDir {place}
PidFile {place}/pid
ErrorLog /dev/stderr
Listen 127.0.0.1:{port}
{user}
{modules}
"""


@pytest.fixture
def pair(started, tmp_path):
    """Two guarded servers."""
    servers = [started(Server, tmp_path, name, *SERVERS) for name in "ab"]
    return [server.wait() for server in servers]


class Apache(Daemon):
    """Apache in front of these servers, with the documented configuration."""

    def __init__(self, servers):
        program, port = apache2(), free_port()
        # As root, it is nobody who looks in here.
        self.place = place = Path(tempfile.mkdtemp(prefix="busyguard-"))
        place.chmod(0o777)
        user = "User nobody\nGroup nogroup" if os.getuid() == 0 else ""
        modules = "\n".join(f"LoadModule {n}_module {MODULES}/mod_{n}.so" for n in LOADED)
        text = AROUND.format(place=place, port=port, user=user, modules=modules)
        shown = (CONFIGURATIONS / "apache.conf").read_text()
        (place / "apache.conf").write_text(text + addressed(shown, port, servers))
        super().__init__([program, "-D", "FOREGROUND", "-f", place / "apache.conf"], port)

    def reap(self):
        super().reap()
        shutil.rmtree(self.place, ignore_errors=True)


@pytest.fixture
def front(started, pair):
    """Apache in front of them."""
    return started(Apache, pair).answers()


def test_what_one_server_refuses_is_refused(front, pair, fill, held):
    """With its marks, for Apache does not ask another one."""
    fill(pair[0])
    answers = [ask(front.port, path="/x") for _ in range(10)]
    held.let_go()
    eventually(lambda: pair[0].load["active"] == 0)
    assert set(tally(answers)) == {200, 503}
    for answer in answers:
        if answer.status == 503:
            assert answer.headers["busyguard-refused"] in ("queue-full", "queue-age")
    assert pair[0].ran("GET /x") == []
    assert {ask(front.port, path="/x").status for _ in range(4)} == {200}


def test_overload_is_refused_and_others_are_served(front):
    with Visitors([front.port], 160, "sleep/0.1") as visitors:
        visitors.came(400)
    counts = tally(visitors.answers)
    print(f"\n{counts}", load_average())
    assert set(counts) == {200, 503}


def test_the_check_takes_out_who_drains_and_takes_back_who_is_there_again(
    front, pair, started, held, tmp_path
):
    threads = many(1, pair[0].port, path=held.path)[1]
    eventually(lambda: pair[0].load["active"] == 1)
    pair[0].signal()
    eventually(lambda: {ask(front.port, path="/x").text for _ in range(6)} == {"b"}, within=30)
    held.let_go()
    together(threads)
    assert pair[0].ended() == 0
    started(Server, tmp_path, "again", *SERVERS, port=pair[0].port).wait()
    eventually(lambda: ask(front.port, path="/x").text == "again", within=30)


def test_a_sigkill_loses_at_most_what_was_in_flight(front, pair):
    with Visitors([front.port], 40, "sleep/0.1") as visitors:
        visitors.came(20)
        pair[0].reap()
        visitors.came(60)
    print(f"\n{tally(visitors.answers)}", load_average())
    assert len(visitors.lost()) <= 8


def test_clients_do_not_see_the_probes(front):
    assert [ask(front.port, path=path).status for path in ("/readyz", "/livez")] == [403, 403]
