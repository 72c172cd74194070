"""The check port and the agent port in a process that forks, dies, hogs and is patched."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time

import pytest
from balancers.test_haproxy import Balancer
from support.client import Line, Stopwatch, ask, eventually
from support.processes import HERE, Process

SLACK = 0.5


class Host(Process):
    """ports_host.py."""

    def __init__(self, *words):
        told, self._tell = socket.socketpair()
        with told:
            command = [sys.executable, HERE / "ports_host.py", told.fileno(), *words]
            super().__init__(command, pass_fds=[told.fileno()])
        try:
            self.check, self.agent = map(int, self.line("ports: ").split())
        except BaseException:
            self.reap()
            raise

    def tell(self, what):
        self._tell.sendall(what.encode() + b"\n")

    def fork(self):
        """Have it fork a worker, and return the worker's process id."""
        before = len(self.lines)
        self.tell("fork")
        eventually(lambda: [line for line in self.lines[before:] if line.startswith("forked: ")])
        return int(self.lines[-1].split()[1])

    def reap(self):
        super().reap()
        self._tell.close()


@pytest.fixture(params=["plain", "gevent"])
def host(started, request):
    return started(Host, request.param)


def refused(port):
    try:
        Line(port, timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def there(pid):
    """Whether a process is there, dead ones that nobody has waited for left out."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"
    return False


def sockets(pid):
    """Return how many sockets a process has open."""
    count = 0
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith("socket:")
    return count


def agent_says(port):
    with Line(port) as line:
        line.send(b"lb\n")
        return line.socket.recv(100)


def test_a_child_has_nothing_of_the_ports(host):
    open_now = [Line(host.check) for _ in range(5)] + [Line(host.agent)]
    open_now[0].send(b"GET /readyz HT")
    assert ask(host.check, path="/readyz").text == "free"
    child = host.fork()
    # The one that tells it what to do is all that is left.
    eventually(lambda: sockets(child) == 1, within=5)
    assert ask(host.check, path="/readyz").text == "free"
    assert agent_says(host.agent).startswith(b"up maxconn:")
    for line in open_now:
        line.close()


def test_a_port_whose_process_is_killed_refuses_at_once_though_children_live(host):
    children = [int(host.line("early: ")), host.fork()]
    with Line(host.check) as silent, Line(host.check) as half:
        half.send(b"GET /readyz HT")
        children.append(host.fork())
        host.signal(signal.SIGKILL)
        host.popen.wait(5)
        assert refused(host.check)
        assert refused(host.agent)
        for line in (silent, half):  # and who was connected is told, too
            line.socket.settimeout(2)
            with contextlib.suppress(ConnectionResetError):
                assert line.socket.recv(10) == b""
    assert all(there(child) for child in children)


def test_what_is_closed_is_closed_for_those_too_who_have_a_copy(host):
    """A child forked just when a connection was accepted has one, and nobody knows."""
    with Line(host.check) as line:
        line.send(b"GET /readyz HT")
        began = time.monotonic()
        host.tell("copies")
        host.line("copied")
        line.send(b"TP/1.0\r\n\r\n")
        assert line.answer().text == "free"
        assert line.closed()
        assert time.monotonic() - began < 5
    host.tell("stop")
    assert host.line("stopped ") == "0 None"
    assert refused(host.check)
    assert refused(host.agent)


def test_checks_are_answered_while_workers_are_forked_all_the_time(host):
    host.tell("forking")
    answered, until = 0, time.monotonic() + 2
    while time.monotonic() < until or answered < 20:
        with Stopwatch() as watch:
            assert ask(host.check, path="/readyz").text == "free"
        assert watch.seconds < 1
        answered += 1
        assert agent_says(host.agent) == b"up maxconn:4\n"
    host.tell("enough")
    count, failed = map(int, host.line("forks: ").split())
    assert count > 20
    assert failed == 0
    host.tell("stop")
    assert host.line("stopped ") == "0 None"


def test_a_hub_that_is_hogged_delays_no_answer(started):
    """A greenlet that computes, or blocks, has everybody else wait."""
    host = started(Host, "gevent")
    host.tell("hog 3")
    host.line("hogging")
    assert ask(host.check, path="/readyz").took < SLACK
    with Line(host.agent) as line:  # without a name: 20 ms by the clock
        assert line.socket.recv(100) == b"up maxconn:4\n"
    assert not any(line.startswith("hogged") for line in host.lines)
    host.line("hogged")


def test_two_processes_share_a_port_and_one_that_stops_leaves_it_to_the_other(started):
    old, new = started(Host), None
    new = started(Host, "plain", f"{old.check}", f"{old.agent}")
    assert (new.check, new.agent) == (old.check, old.agent)
    old.tell("stop")
    old.line("stopped ")
    assert {ask(new.check, path="/readyz").text for _ in range(20)} == {"free"}
    new.tell("stop")
    new.line("stopped ")
    assert refused(new.check)


@pytest.fixture
def balancer(started, tmp_path):
    """Starts a HAProxy with these lines in its backend."""
    return lambda *lines: started(Balancer, tmp_path, *lines)


def test_haproxys_connection_checks_of_the_agent_port_take_no_share(host, balancer):
    """Its plain check connects and resets."""
    probed = f"server p1 127.0.0.1:{host.agent} check inter 30ms"
    prober = balancer(f"server s1 127.0.0.1:{host.check}", "backend p", probed)
    eventually(lambda: "L4OK" in prober.tell("show stat"))
    agent = f"agent-check agent-port {host.agent} agent-inter 50ms"
    proxy = balancer(f"server s1 127.0.0.1:{host.check} {agent} agent-send lb1\\n")
    eventually(lambda: proxy.maxconn() == 4)
    seen = {proxy.maxconn() for _ in range(40) if not time.sleep(0.02)}
    assert seen == {4}
    assert "L4OK" in prober.tell("show stat")


def test_haproxy_without_a_name_takes_a_share(host, balancer):
    """Bare agent-check reads the line before it hangs up.

    It asks from another address: from one where a name came it would be that one, being late.
    """
    agent = f"agent-check agent-port {host.agent} agent-inter 50ms"
    line = f"server s1 127.0.0.1:{host.check} {agent}"
    named, nameless = balancer(f"{line} agent-send lb1\\n"), balancer(f"{line} source 127.0.0.2")
    eventually(lambda: (named.maxconn(), nameless.maxconn()) == (2, 2))
    assert (named.status(), nameless.status()) == ("UP", "UP")


def test_while_it_runs_the_thread_imports_nothing_and_logs_nothing(python):
    """In a fresh process, where all that is lazy is still to be done, with those locks held.

    And with a watcher, as a gunicorn master has it.
    """
    assert python("""
        import _imp, _thread, builtins, logging, socket
        from wsgi_busyguard import Board, Load
        from wsgi_busyguard.checkport import AgentPort, CheckPort
        from wsgi_busyguard.checkport.event_loop import Loop
        from wsgi_busyguard.board.publisher import Publisher
        from wsgi_busyguard.board.watcher import Watcher

        class Adapter:
            def read(self):
                return Load(3, 4, 4, waited=9.0)

        def asked(port, sent):
            with socket.create_connection(port.address, 5) as connection:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                parts = []
                while part := connection.recv(10_000):
                    parts.append(part)
                return b"".join(parts)

        publisher = Publisher(Board(), Adapter())
        publisher.join()
        publisher.ready()
        watcher = Watcher(publisher.board)
        check, agent = CheckPort(watcher, "127.0.0.1:0"), AgentPort(watcher, "127.0.0.1:0")
        looping = Loop(check, agent)
        imported = []
        genuine = builtins.__import__

        def noted(name, *arguments, **more):
            if _thread.get_ident() == looping._thread:
                imported.append(name)
            return genuine(name, *arguments, **more)

        builtins.__import__ = noted
        looping.start()
        logging._lock.acquire()
        _imp.acquire_lock()
        statuses = set()
        for method in ("GET", "HEAD", "POST", "OPTIONS", "G_T"):
            for path in ("/readyz", "/%6civez?a=%C3%A9&ready=x", "/load", "/", "/metrics", "/no"):
                for accept in ("*/*", "application/json;q=0.5, text/*", "application/*;a=b", ",;"):
                    head = f"{method} {path} HTTP/1.0\\r\\nAccept: {accept}\\r\\n\\r\\n"
                    statuses.add(asked(check, head.encode())[:12])
        statuses.add(asked(check, b"\\x16\\x03\\x01")[:12])
        statuses.add(asked(check, b"GET / HTTP/1.0\\r\\n" + b"A: b\\r\\n" * 2000)[:12])
        said = asked(agent, b"lb\\n")
        print(*sorted(int(status[9:]) for status in statuses), said.decode(), end="")
        print(imported, looping.failures, looping.failure)
        _imp.release_lock()
        logging._lock.release()
        looping.stop()
    """).splitlines() == ["200 400 404 405 431 503 up maxconn:1", "[] 0 None"]
