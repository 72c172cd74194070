"""A real uWSGI: what is read there is what was sent, in every shape of processes and threads."""

from __future__ import annotations

import os
import re
import signal
import socket
import textwrap
import threading
import time
from functools import partial

import pytest
from support.client import ask, check, eventually, many, of_forty_24_are_served, together
from support.processes import HERE, ROOT, Process, environment
from support.uwsgis import Uwsgi
from support.uwsgis import command as uwsgi_command

from wsgi_busyguard import Board

SHAPES = {"1 x 4": (1, 4), "4 x 1": (4, 1), "2 x 2": (2, 2)}

shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.fixture
def uwsgi(started, tmp_path):
    """Starts a uWSGI with these processes, threads and options."""
    return lambda *arguments, **site: started(Uwsgi, tmp_path, *arguments, **site)


def filled(server):
    """Send 40 requests, and one more; see what is read, and return the threads."""
    eventually(lambda: server.shows(queued=0, active=0, capacity=4))
    _, threads = many(40, server.port, path="/sleep/60")
    eventually(lambda: server.shows(queued=36, active=4, capacity=4))
    assert ask(server.check, path="/readyz").text == "busy"
    _, another = many(1, server.port, path="/sleep/60")
    eventually(lambda: server.shows(queued=37, active=4, capacity=4))
    return [*threads, *another]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "checks", "more"),
    [
        ((1, 4), "mule", ()),
        ((4, 1), "agent", ("--lazy-apps",)),
        ((2, 2), "mule", ("--lazy-apps",)),
        ((2, 2), "agent", ()),
    ],
    ids=["1 x 4, mule", "4 x 1, agent, lazy", "2 x 2, mule, lazy", "2 x 2, agent"],
)
def test_what_the_board_says_is_what_was_sent(uwsgi, shape, checks, more):
    server = uwsgi(*shape, *more, checks=checks)
    threads = filled(server)
    server.reap()
    together(threads)


@shapes
def test_all_are_served_and_the_figures_return_to_zero(uwsgi, held, shape):
    server = uwsgi(*shape, checks="agent")
    answers, threads = many(12, server.port, path=held.path)
    eventually(lambda: server.shows(queued=8, active=4, capacity=4))
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200] * 12
    eventually(lambda: server.shows(queued=0, active=0, capacity=4))
    eventually(lambda: ask(server.check, path="/readyz").text == "free")


@shapes
def test_what_a_worker_reads_by_itself_is_what_was_sent(uwsgi, shape):
    server = uwsgi(*shape, side=True)
    threads = filled(server)
    server.reap()
    together(threads)


def test_one_who_waits_for_a_moment_does_not_make_it_leave_the_rotation(uwsgi):
    """Each look finds somebody waiting, and never the same one."""
    server = uwsgi(4, 1, board=None)
    begun, until = time.monotonic(), time.monotonic() + 4

    def ask_on():
        while time.monotonic() < until:
            ask(server.port, path="/sleep/0.1")

    crowd = [threading.Thread(target=ask_on, daemon=True) for _ in range(5)]
    for one in crowd:
        one.start()
    answers = []
    while time.monotonic() < until - 0.5:
        answers.append(check(server.port))
    together(crowd)
    assert time.monotonic() - begun > 3
    assert {answer.status for answer in answers} == {200}
    assert "busy" in {answer.text for answer in answers}


def test_where_all_are_stuck_the_board_says_so_and_before_that_nothing(uwsgi):
    server = uwsgi(4, 1, checks="agent", agent_ready="damped")
    eventually(lambda: server.shows(queued=0, active=0, capacity=4))
    _, threads = many(6, server.port, path="/sleep/60")
    eventually(lambda: server.shows(queued=2, active=4, capacity=4))
    first = ask(server.check, path="/readyz")
    assert (first.status, first.text) == (200, "busy")
    eventually(lambda: ask(server.check, path="/readyz").status == 503, 5)
    server.reap()
    together(threads)


def test_a_unix_listener_is_read_as_well(uwsgi, tmp_path):
    server = uwsgi(1, 4, "--http-socket", tmp_path / "s", side=True)
    _, threads = many(7, 0, path="/sleep/60", unix=str(tmp_path / "s"))
    eventually(lambda: server.shows(queued=3, active=4, capacity=4))
    server.reap()
    together(threads)


def test_an_adapter_in_a_mule_says_what_to_do_there(uwsgi):
    server = uwsgi(1, 1, checks="mule")
    assert server.logged("in a mule: (.*)").endswith(
        "read the board there, by Watcher(Board(FILE))"
    )


@pytest.mark.slow
def test_as_a_gate_it_serves_24_and_refuses_16_and_checks_get_through(uwsgi, held):
    """Without a gate the check waits for all of them."""
    server = uwsgi(1, 26, checks="agent", slots=4, max_queue=20, max_wait=30, client_timeout=60)
    is_full = partial(server.shows, queued=20, active=4, capacity=4)
    of_forty_24_are_served(server.port, held, is_full, [server.port], "busy")
    eventually(lambda: server.shows(queued=0, active=0, capacity=4))
    eventually(lambda: check(server.port).text == "free")


GREENLETS = {"slots": 2, "max_queue": 8, "max_wait": 30, "client_timeout": 60}


@pytest.mark.parametrize(
    ("more", "refused"),
    [(("--gevent", "50"), 0), (("--gevent", "50", "--gevent-monkey-patch"), 2)],
    ids=["unpatched", "patched"],
)
def test_greenlets_wait_at_a_gate_only_where_that_does_not_stop_the_process(uwsgi, more, refused):
    server = uwsgi(1, 1, *more, **GREENLETS)
    answers, threads = many(12, server.port, path="/switch/0.3")
    eventually(lambda: len(answers) >= refused)
    assert check(server.port).status == 200
    together(threads)
    statuses = [answer.status for answer in answers]
    assert (statuses.count(200), statuses.count(503)) == (12 - refused, refused)
    told = [line for line in server.output.splitlines() if "slots=" in line]
    assert len(told) == (refused == 0)
    assert all("needs gevent.monkey.patch_all()" in line for line in told)


def test_nobody_waits_at_a_gate_in_a_loop_without_threads(uwsgi):
    """It goes from body to body, so the first of these is not done when the others come."""
    server = uwsgi(1, 1, "--async", "50", **GREENLETS)
    assert ask(server.port).status == 200
    assert server.logged("slots= makes no sense on (.*?), which") == "uWSGI without threads"
    answers, threads = many(6, server.port, path="/sleep/0.05")
    together(threads)
    assert {answer.status for answer in answers} == {200}


SIZE = 16_000_000


@pytest.mark.parametrize("guard", [{"stock": True}, {"slots": 4, "max_queue": 4}], ids=str)
def test_files_are_sent_as_without_a_gate(uwsgi, tmp_path, guard):
    """uWSGI's file wrapper returns the file, and uWSGI looks for that very object."""
    large = tmp_path / "large"
    large.write_bytes(b"0123456789abcde\n" * (SIZE // 16))
    server = uwsgi(1, 12, "--offload-threads", "2", **guard)
    assert ask(server.port, path="/readable/1000").body == b"x" * 1000
    for _ in range(6):  # of slots there are four
        assert len(ask(server.port, path=f"/file{large}").body) == SIZE
    line = server.logged(r"(GET /file/.*)")
    assert "via offload()" in line
    assert "(0 switches" in line


def test_gates_in_several_processes_add_up_before_any_has_been_called(uwsgi):
    server = uwsgi(2, 6, checks="agent", slots=2, max_queue=2)
    eventually(lambda: server.shows(queued=0, active=0, capacity=4))


@pytest.mark.parametrize("which", [min, max], ids=["who speaks", "another"])
def test_a_worker_that_is_killed_is_out_of_the_sum(uwsgi, which):
    """Its successor takes one of those who wait."""
    server = uwsgi(4, 1, checks="agent")
    eventually(lambda: server.shows(queued=0, active=0, capacity=4))
    _, threads = many(7, server.port, path="/sleep/60", timeout=60)
    eventually(lambda: server.shows(queued=3, active=4, capacity=4))
    killed = which(row["pid"] for row in server.load["processes"])
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: killed not in [row["pid"] for row in server.load["processes"]], every=0.005)
    eventually(lambda: server.shows(queued=2, active=4, capacity=4), every=0.005)
    server.reap()
    together(threads)


@pytest.mark.parametrize("checks", ["mule", "agent"])
def test_a_graceful_stop_serves_who_is_inside_and_leaves_nobody_on_the_board(
    uwsgi, tmp_path, held, checks
):
    """A mule goes first, so the check port is closed while the workers finish."""
    server = uwsgi(2, 2, checks=checks)
    eventually(lambda: server.shows(queued=0, active=0, capacity=4))
    answers, threads = many(2, server.port, path=held.path)
    eventually(lambda: server.shows(queued=0, active=2, capacity=4))
    server.tell("q")
    if checks == "mule":
        eventually(lambda: is_closed(server.check))
        assert not answers
    held.let_go()
    assert server.ended() == 0
    together(threads)
    assert [answer.status for answer in answers] == [200, 200]
    eventually(lambda: not Board(tmp_path / "board").rows())


def is_closed(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_after_a_reload_one_by_one_the_figures_are_those_of_the_new_workers(uwsgi):
    server = uwsgi(2, 2, "--lazy-apps", checks="agent")
    eventually(lambda: server.shows(queued=0, active=0, capacity=4))
    before = {row["pid"] for row in server.load["processes"]}
    served = set()
    # uWSGI passes over a worker that has not yet begun to accept.
    eventually(lambda: served.add(int(ask(server.port).text)) or served == before)
    server.tell("c")
    eventually(lambda: before.isdisjoint(row["pid"] for row in server.load["processes"]))
    eventually(lambda: server.shows(queued=0, active=0, capacity=4))


# The pages


def page_files(folder, page):
    """Write the files that a page of the docs shows, with paths and ports for here."""
    found = re.findall(
        r"\.\. code-block:: \w+\n   :caption: (.*)\n\n((?:(?:   .*)?\n)+)",
        (ROOT / "docs" / page).read_text(),
    )
    for name, code in found:
        code = textwrap.dedent(code).replace("/run/app/", f"{folder}/")
        code = re.sub(r"127\.0\.0\.1:80\d\d", "127.0.0.1:0", code)
        if name.endswith(".py"):
            code = f"from prefork_app import app as application\n{code}"
        (folder / name).write_text(code)


class Shown(Process):
    """A uWSGI that is set up as the page says."""

    def __init__(self, folder, ini):
        page_files(folder, "uwsgi.rst")
        paths = os.pathsep.join([str(HERE), str(ROOT)])
        super().__init__(
            [*uwsgi_command(), "--ini", folder / ini, "--die-on-term"],
            env=environment(PYTHONPATH=paths),
            cwd=folder,
        )
        try:
            self.port = int(self.logged(r"bound to TCP address 127\.0\.0\.1:(\d+)"))
            self.logged("spawned uWSGI worker 1 ")
        except BaseException:
            self.reap()  # nobody else has it yet
            raise

    logged = Uwsgi.logged


def test_the_gate_of_the_page_serves_and_answers_checks(started, tmp_path, held):
    server = started(Shown, tmp_path, "gate.ini")
    _, threads = many(6, server.port, path=held.path)
    eventually(lambda: check(server.port).text == "busy")
    held.let_go()
    together(threads)
    eventually(lambda: check(server.port).text == "free")


def test_the_workers_and_the_mule_of_the_page_post_and_read(started, tmp_path, held):
    server = started(Shown, tmp_path, "uwsgi.ini")
    _, threads = many(6, server.port, path=held.path)
    eventually(lambda: Board(tmp_path / "board").read()[:3] == (2, 4, 4))
    held.let_go()
    together(threads)
    server.logged("spawned uWSGI mule 1 ")
    assert "Traceback" not in server.output
