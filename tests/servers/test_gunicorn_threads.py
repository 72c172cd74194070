"""The guarded threaded worker of the real gunicorn, before clients who mean well."""

from __future__ import annotations

import collections
import json
import re
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
from support.gunicorns import Gunicorn

REFUSALS = "busyguard-refused"

PREFLIGHT = {"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"}


@pytest.fixture
def gunicorn(gunicorn):
    """The same, and when the test is over nothing has been raised and no worker has died."""
    servers = []

    def start(*arguments, **options):
        servers.append(gunicorn(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        raises = getattr(server, "raises", 0)
        assert raises is None or server.output.count("Traceback") == raises, server.output
        assert len(re.findall("Booting worker", server.output)) == getattr(server, "boots", 1)


@pytest.fixture
def connect():
    """Opens connections, and closes them when the test is over."""
    lines = []

    def connect(port):
        lines.append(Line(port))
        return lines[-1]

    yield connect
    for line in lines:
        line.close()


@pytest.fixture(scope="module")
def quiet():
    """A gunicorn for tests that leave it as they found it: 4 threads, a short keep-alive."""
    quiet = Gunicorn("--threads", "4", "--keep-alive", "5", max_queue=50, max_wait=50)
    yield quiet
    quiet.reap()


def inside(server):
    """Return what the worker keeps, as soon as it lets somebody in to look."""

    def look():
        answer = ask(server.port, path="/inside")
        return answer.status == 200 and json.loads(answer.body)

    return eventually(look)


def clean(server, **other):
    """Wait until the worker keeps nothing but the connection that asks."""
    expected = {"connections": 1, "silent": 0, "lingering": 0, "known": 1, **other}

    def kept():
        seen = inside(server)
        return all(seen[name] == count for name, count in expected.items()) and seen

    return eventually(kept)


@pytest.mark.smoke
def test_forty_requests_fill_four_threads_and_checks_do_not_wait(gunicorn, held):
    server = gunicorn("--threads", "4", max_queue=100, max_wait=100)
    answers, threads = many(40, server.port, path=held.path)
    server.filled(4, 36)
    checks(server.port)
    checks(server.check)
    assert check(server.port).text == "busy"
    assert ask(server.check, path="/readyz?ready=exact").status == 503
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200] * 40
    server.at_rest()
    eventually(lambda: check(server.port).text == "free")
    clean(server)


def test_by_default_the_others_wait_for_four_fifths_of_their_patience(gunicorn, held):
    server = gunicorn("--threads", "4", client_timeout=1.25)
    answers, threads = many(40, server.port, path=held.path)
    # The age limit holds though every thread is stuck.
    eventually(lambda: len(answers) == 36)
    assert all(answer.status == 503 for answer in answers)
    assert {answer.headers[REFUSALS] for answer in answers} == {"queue-age"}
    assert {answer.body for answer in answers} == {b"busy"}
    assert all(1 <= int(answer.headers["retry-after"]) <= 3 for answer in answers)
    took = [answer.took for answer in answers]
    assert 0.9 <= min(took) <= max(took) < 3
    server.filled(4)
    held.let_go()
    together(threads)
    assert collections.Counter(answer.status for answer in answers) == {200: 4, 503: 36}
    server.at_rest()
    assert [path for path in ran(server) if path == held.path] == [held.path] * 4
    eventually(lambda: server.load["processes"][0]["refused"] == 36)  # posted a moment later
    clean(server)


def ran(server):
    return json.loads(ask(server.port, path="/ran").body)


def test_a_refusal_of_a_head_request_has_no_body(gunicorn, held):
    server = gunicorn("--threads", "1", "--proxy-protocol", "auto", max_queue=0)
    _, threads = many(1, server.port, path=held.path)
    server.filled(1)
    for before in (b"", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"):
        with Line(server.port) as line:
            line.send(before + request("HEAD", "/page"))
            answer = line.answer("HEAD")
            assert (answer.status, answer.headers["content-length"]) == (503, "4")
            assert line.closed()
    held.let_go()
    together(threads)


def test_a_pipelined_check_waits_for_its_turn(quiet, held):
    """What gunicorn has read ahead is not in the socket any more, where the check still lies."""
    with Line(quiet.port) as line:
        line.send(request(path=held.path) + request(path="/second"))
        quiet.filled(1)
        line.send(request("OPTIONS", "/"))
        held.let_go()
        texts = [line.answer().text for _ in range(3)]
    assert texts[0].startswith("waited for ")
    assert texts[1] == "GET /second"
    assert texts[2] in STATES
    clean(quiet)


def test_three_pipelined_requests_in_one_segment_have_three_answers(quiet):
    with Line(quiet.port) as line:
        line.send(request("OPTIONS", "/") + request(path="/second") + request("OPTIONS", "/"))
        first, second, third = [line.answer().text for _ in range(3)]
    assert {first, third} <= STATES
    assert second == "GET /second"
    clean(quiet)


@pytest.mark.parametrize(
    ("method", "path", "headers", "text"),
    [
        ("OPTIONS", "/", {}, "free"),
        ("OPTIONS", "/?ready=exact", {}, "free"),
        ("OPTIONS", "*", {}, "free"),
        ("OPTIONS", "http://somewhere/", {}, "free"),
        ("GET", "/readyz", {}, "free"),
        ("GET", "/healthz", {"User-Agent": "kube-probe/1.31"}, "free"),
        ("GET", "/livez", {}, "alive"),
        ("OPTIONS", "/", PREFLIGHT, "OPTIONS /"),
        ("OPTIONS", "/", {"Access-Control-Request-Method": "PUT"}, "OPTIONS /"),
        ("OPTIONS", "/", {"X-Forwarded-For": "192.0.2.1"}, "OPTIONS /"),
        ("OPTIONS", "/", {"Via": "1.1 proxy"}, "OPTIONS /"),
        ("OPTIONS", "/elsewhere", {}, "OPTIONS /elsewhere"),
        ("GET", "/", {}, "GET /"),
    ],
)
def test_what_is_a_check_is_answered_and_the_rest_is_the_apps(quiet, method, path, headers, text):
    answer = ask(quiet.port, method, path, headers=headers)
    assert answer.status == 200
    assert answer.text in (STATES if text == "free" else {text})


def test_an_options_request_with_a_body_is_answered_once(quiet):
    with Line(quiet.port) as line:
        line.send(request("OPTIONS", "/page", body=b"b" * 1000))
        assert line.answer().text == "OPTIONS /page"
        # On a check's path the middleware answers it, behind gunicorn, who knows where it ends.
        line.send(request("OPTIONS", "/", body=b"GET /ran HTTP/1.1\r\nHost: h\r\n\r\n"))
        assert is_check(line.answer())
        line.send(request(path="/after"))
        assert line.answer().text == "GET /after"


def test_a_check_has_what_the_page_promises(quiet):
    answer = ask(quiet.port, "HEAD", "/readyz")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "4", b"")
    assert ask(quiet.port, "OPTIONS", "/").headers["allow"] == "GET, HEAD, OPTIONS"
    assert ask(quiet.port, "POST", "/readyz").status == 405
    assert ask(quiet.port, path="/readyz?ready=perhaps").status == 400
    shown = ask(quiet.port, path="/readyz?ready=always", headers={"Accept": "application/json"})
    assert json.loads(shown.body) in (
        {"status": "pass", "state": "free"},
        {"status": "warn", "state": "busy"},
    )
    assert shown.headers["cache-control"] == "no-store"
    bare = check(quiet.port)
    assert (bare.status, bare.headers["connection"]) == (200, "close")
    assert is_check(bare)


def test_a_check_on_a_connection_that_was_kept_alive_takes_no_thread(gunicorn, held):
    server = gunicorn("--threads", "2", "--keep-alive", "30", max_queue=20, max_wait=50)
    with Line(server.port) as line, Line(server.port) as other:
        for kept in (line, other):
            kept.send(request(path="/first"))
            assert kept.answer().text == "GET /first"
        eventually(lambda: server.load["active"] == 0)
        _, threads = many(10, server.port, path=held.path)
        server.filled(2, 8)
        for kept in (line, other):
            kept.send(request("OPTIONS", "/"))
            assert kept.answer().text == "busy"
            assert kept.closed()
    held.let_go()
    together(threads)
    clean(server)


def test_idle_connections_take_no_threads_and_are_closed_after_their_time(gunicorn, connect):
    server = gunicorn("--threads", "4", "--keep-alive", "1")
    lines = [connect(server.port) for _ in range(50)]
    began = time.monotonic()
    clean(server, connections=51, silent=50)
    checks(server.port)
    assert (server.load["active"], server.load["queued"]) == (0, 0)
    lines[0].send(request(path="/late"))
    assert lines[0].answer().text == "GET /late"
    assert all(line.closed() for line in lines[1:])
    assert 4.5 < time.monotonic() - began < 8
    clean(server)


def test_eight_idle_connections_do_not_delay_a_check(gunicorn, connect):
    server = gunicorn("--threads", "4")
    lines = [connect(server.port) for _ in range(8)]
    clean(server, connections=9, silent=8)
    checks(server.port)
    with Stopwatch() as watch:
        assert ask(server.port, path="/page").status == 200
    assert watch.seconds < 1
    for line in lines:
        line.close()
    clean(server)


def test_idle_connections_do_not_hold_up_a_stop(gunicorn, connect, held):
    server = gunicorn("--threads", "4")
    idle = [connect(server.port) for _ in range(5)]
    answers, threads = many(1, server.port, path=held.path)
    server.filled(1)
    clean(server, connections=7, silent=5, known=2)
    with Stopwatch() as watch:
        server.signal()
        assert all(line.closed() for line in idle)
    assert watch.seconds < 3
    with Stopwatch() as watch:
        held.let_go()
        together(threads)
        assert [answer.status for answer in answers] == [200]
        assert server.ended() == 0
    assert watch.seconds < 3


def test_clients_that_left_the_queue_are_neither_served_nor_counted(gunicorn, connect, held):
    server = gunicorn("--threads", "1", max_queue=20, max_wait=50)
    _, threads = many(1, server.port, path=held.path)
    server.filled(1)
    lines = [connect(server.port) for _ in range(6)]
    for line in lines:
        line.send(request(path="/gone"))
    server.filled(1, 6)
    for line in lines[:5]:
        line.close()
    server.filled(1, 1)  # while the thread is stuck
    held.let_go()
    together(threads)
    assert lines[5].answer().text == "GET /gone"
    server.at_rest()
    assert ran(server).count("/gone") == 1
    eventually(lambda: server.load["processes"][0]["dropped"] == 5)
    lines[5].close()
    clean(server)


def test_a_full_worker_still_answers_checks(gunicorn, held):
    server = gunicorn("--threads", "4", "--worker-connections", "20", max_wait=50)
    answers, threads = many(40, server.port, path=held.path)
    eventually(lambda: len(answers) == 28)  # 20 less 4 threads less 8 to spare: 8 may wait
    assert {answer.headers[REFUSALS] for answer in answers} == {"queue-full"}
    server.filled(4, 8)
    checks(server.port)
    held.let_go()
    together(threads)
    assert collections.Counter(answer.status for answer in answers) == {200: 12, 503: 28}
    clean(server)


def test_a_queue_that_does_not_fit_is_a_mistake(gunicorn):
    server = gunicorn(
        *("--threads", "4", "--worker-connections", "20"), wait=False, ports=False, max_queue=9
    )
    server.boots = 0
    assert server.ended() == 1
    assert server.output.strip().endswith(
        "busyguard: worker_connections=20 is too few for threads=4 and BUSYGUARD_MAX_QUEUE=9:"
        " start gunicorn with --worker-connections 21 at least, or lower the queue"
    )


@pytest.mark.parametrize("connections", [1, 4])
def test_hardly_any_connections_keep_the_queue_in_the_kernel(gunicorn, held, connections):
    threads = str(connections)
    kernel = ("--worker-connections", str(connections), "--keep-alive", "0")
    server = gunicorn("--threads", threads, *kernel)
    answers, askers = many(12, server.port, path=held.path)
    server.filled(connections, 12 - connections)
    checks(server.check)
    held.let_go()
    together(askers)
    assert [answer.status for answer in answers] == [200] * 12
    with Line(server.port) as silent:
        assert ask(server.port, path="/page").took < 8
        silent.close()
    clean(server)


def test_computing_threads_leave_the_check_port_be(gunicorn):
    server = gunicorn("--threads", "4", max_queue=50, max_wait=50)
    answers, threads = many(30, server.port, path="/compute/0.15", timeout=50)
    eventually(lambda: server.load["active"] == 4)
    checks(server.check)
    assert check(server.port).text == "busy"
    assert len(answers) < 26
    together(threads, within=50)
    assert [answer.status for answer in answers] == [200] * 30
    server.at_rest()


def test_listeners_hear_of_busy_and_free_in_the_worker(gunicorn, held, tmp_path):
    configuration = tmp_path / "conf.py"
    configuration.write_text(
        "def post_worker_init(worker):\n"
        "    worker.monitor.on_busy(lambda change: worker.log.info('heard: %s', change.state))\n"
        "    worker.monitor.on_free(lambda change: worker.log.info('heard: %s', change.state))\n"
    )
    server = gunicorn("--threads", "2", "-c", configuration, max_queue=10, max_wait=50)
    _, threads = many(4, server.port, path=held.path)
    server.logged("heard: .*BUSY", within=3)
    held.let_go()
    together(threads)
    server.logged("heard: .*FREE", within=3)


@pytest.mark.parametrize(
    "name",
    ["enqueue_req", "get_thread_pool", "handle", "finish_request", "murder_keepalived"],
)
def test_a_gunicorn_whose_names_moved_is_served_by_the_check_port(gunicorn, tmp_path, held, name):
    configuration = tmp_path / "conf.py"
    configuration.write_text(
        "from gunicorn.workers.gthread import ThreadWorker\n"
        f"known = ThreadWorker.{name}\n"
        "def moved(self, *arguments, extra=None, **named):\n"
        "    return known(self, *arguments, **named)\n"
        f"ThreadWorker.{name} = moved\n"
    )
    server = gunicorn("--threads", "2", "-w", "2", "-c", configuration)
    server.boots = 2
    assert ask(server.port, path="/page").text == "GET /page"
    assert is_check(check(server.port))
    answers, threads = many(2, server.port, path=held.path)
    eventually(lambda: server.load["active"] == 2)
    assert is_check(check(server.check))
    held.let_go()
    together(threads)
    assert [answer.status for answer in answers] == [200] * 2
    server.at_rest()
    server.signal()
    assert server.ended() == 0
    assert server.output.count("is not as known") == 1


def test_a_look_that_raises_lets_everybody_in(gunicorn, tmp_path):
    """Whatever else may have moved in a gunicorn of another day, it is still a server."""
    configuration = tmp_path / "conf.py"
    configuration.write_text(
        "from gunicorn.workers.gthread import TConn\n"
        "class Moved:\n"
        "    def __get__(self, conn, kind):\n"
        "        import sys\n"
        "        if sys._getframe(1).f_globals['__name__'].startswith('wsgi_busyguard'):\n"
        "            raise RuntimeError('moved')\n"
        "        return vars(conn)['parser']\n"
        "    def __set__(self, conn, value):\n"
        "        vars(conn)['parser'] = value\n"
        "TConn.parser = Moved()\n"
    )
    server = gunicorn("--threads", "2", "-c", configuration)
    server.raises = 1  # it is said once
    for _ in range(3):
        assert ask(server.port, path="/page").text == "GET /page"
        assert is_check(check(server.port))
    server.at_rest()
    server.signal()
    assert server.ended() == 0
    assert server.output.count("RuntimeError: moved") == 1


STOCK = """
from wsgi_busyguard import BusyGuard, Monitor
from wsgi_busyguard.adapters.gunicorn import GunicornAdapter
from wsgi_busyguard.checkport import CheckPort

def post_worker_init(worker):
    monitor = Monitor(GunicornAdapter(worker))
    worker.wsgi = BusyGuard(worker.wsgi, monitor=monitor, max_wait=600)
    port = CheckPort(monitor, "127.0.0.1:0").start()
    worker.log.info("checks at http://127.0.0.1:%d", port.address[1])
    worker.log.info("agent at tcp://127.0.0.1:%d", port.address[1])
"""


@pytest.mark.parametrize(("kind", "active"), [("gthread", 4), ("sync", 1)])
def test_the_adapter_reads_stock_workers(gunicorn, held, tmp_path, kind, active):
    configuration = tmp_path / "conf.py"
    configuration.write_text(STOCK)
    threads = ["--threads", "4"] if kind == "gthread" else []
    server = gunicorn(*threads, "-c", configuration, kind=kind, ports=False)
    server.check = int(server.logged(r"checks at http\S*:(\d+)"))
    assert ask(server.port, path="/page").text == "GET /page"
    eventually(lambda: (server.load["active"], server.load["queued"]) == (0, 0))
    answers, askers = many(40, server.port, path=held.path)
    server.filled(active, 40 - active)
    assert ask(server.check, path="/readyz?ready=exact").text == "busy"
    held.let_go()
    together(askers)
    assert [answer.status for answer in answers] == [200] * 40
    server.at_rest()


def test_threads_that_come_and_go_leave_the_figures_right(gunicorn):
    server = gunicorn("--threads", "3", "--keep-alive", "1")
    stop = time.monotonic() + 2
    seen = collections.Counter()

    def come_and_go():
        while time.monotonic() < stop:
            with Line(server.port) as line:
                for _ in range(3):
                    line.send(request(path="/page"))
                    answer = line.answer()
                    seen[answer.status] += 1
                    if answer.status != 200:
                        break

    threads = [threading.Thread(target=come_and_go, daemon=True) for _ in range(24)]
    for thread in threads:
        thread.start()
    while time.monotonic() < stop:
        load = server.load
        assert 0 <= load["active"] <= 3
        # Those in the kernel are counted a moment later than those in the worker.
        assert 0 <= load["queued"] <= 2 * 24
    together(threads)
    assert seen[200] > 100
    assert set(seen) <= {200, 503}
    server.at_rest()
    clean(server)
