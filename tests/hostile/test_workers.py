"""Clients that mean harm at servers whose workers read the head of a request themselves.

There a crowd takes every worker, with the guard or without it; nothing in front of them could look.
So this is about what the guard adds: every check is answered, at once, and says so.
"""

from __future__ import annotations

import time

import pytest
from balancers.test_agent import Agent
from support.apaches import Apache
from support.client import ask, check, eventually, figures, many, together
from support.gunicorns import Gunicorn
from support.uwsgis import Uwsgi

from hostile.test_hostile import SAID, UPLOAD, all_the_while, crowd, reset

WORKERS = 2

CROWDS = {name: SAID[name] for name in ("nothing", "half a head", "TLS", "noise")}
CROWDS["an upload"] = UPLOAD


class Sync(Gunicorn):
    """Sync workers, which soon give up on whoever does not get on."""

    def __init__(self, _):
        super().__init__("-w", str(WORKERS), kind="GuardedSync", progress_timeout=1)
        self.all_ready(WORKERS)


class Mule(Uwsgi):
    """A uWSGI whose mule answers checks; its workers wait for a second for a head."""

    def __init__(self, folder):
        super().__init__(folder, WORKERS, 1, "--socket-timeout=1", checks="mule")
        eventually(lambda: check(self.check).status == 200)


class ModWsgi(Apache):
    """A mod_wsgi, with an agent for its board."""

    def __init__(self, _):
        super().__init__(WORKERS, 1)
        try:
            self.watcher = Agent(self.board)
        except BaseException:
            super().reap()  # nobody else has it yet
            raise
        self.check = self.watcher.check
        eventually(lambda: check(self.check).status == 200)

    def reap(self):
        self.watcher.reap()
        super().reap()


SERVERS = {"gunicorn sync": Sync, "uWSGI": Mule, "mod_wsgi": ModWsgi}


@pytest.fixture(scope="module", params=SERVERS)
def served(request, tmp_path_factory):
    server = SERVERS[request.param](tmp_path_factory.mktemp("served"))
    yield server
    server.reap()


def well(served):
    """Whoever means well is served, and checks say that this server is to have requests."""
    assert ask(served.port, path="/pid").status == 200
    eventually(lambda: figures(served.check)["queued"] == figures(served.check)["active"] == 0)
    eventually(lambda: check(served.check).status == 200)


def at_once(served):
    """Check, and return the status, which comes whatever the workers do."""
    answer = check(served.check)
    assert answer.took < 1
    return answer.status


@pytest.mark.parametrize("said", CROWDS.values(), ids=CROWDS)
def test_a_crowd_takes_workers_and_every_check_tells_what_is_so(served, said):
    with crowd(served.port, said):
        answers, threads = many(1, served.port, path="/pid")
        # Either the visitor is served, or the check says that the server is to have no more.
        eventually(lambda: at_once(served) == 503 or answers)
    together(threads)
    assert answers[0].status in (200, 503)
    well(served)


@pytest.mark.parametrize("port", ["port", "check"])
def test_a_storm_of_resets_holds_up_nobody(served, port):
    with all_the_while(reset, getattr(served, port)):
        end = time.monotonic() + 1
        while time.monotonic() < end:
            at_once(served)
        assert ask(served.port, path="/pid").status == 200
    well(served)
