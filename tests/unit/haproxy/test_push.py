from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.client import Stopwatch

from wsgi_busyguard import BusyGuard, Monitor
from wsgi_busyguard.haproxy import MOST_BALANCERS, Push
from wsgi_busyguard.haproxy import push as module
from wsgi_busyguard.haproxy.runtime_api import Target, target, targets
from wsgi_busyguard.load import UNKNOWN, Load

IDLE = Load(0, 0, 8, service=0.01)
FULL = Load(3, 8, 8, service=0.01)


class Runtime:
    """A Runtime API that keeps what it is told, and answers as it is told to."""

    def __init__(self, path):
        self.path = str(path)
        self.heard = []
        self.answer = b"\n"
        self.connections = 0
        self._threads = []
        self.open()

    def open(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        thread = threading.Thread(target=self._serve, args=(self.listener,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, listener):
        with listener:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                self.connections += 1
                with connection:
                    said = connection.makefile("rb").readline().decode().strip()
                    if not said:
                        return  # close()
                    self.heard.append(said)
                    if self.answer is not None:
                        with contextlib.suppress(OSError):
                            connection.sendall(self.answer)

    def close(self):
        """Be gone, as a HAProxy that is killed."""
        if self.listener.fileno() >= 0:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as last:
                last.connect(self.path)
            self._threads[-1].join(10)
            assert not self._threads[-1].is_alive()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    @property
    def to(self):
        return f"unix:{self.path}#app/web1"

    @property
    def number(self):
        """What it was told last."""
        return int(self.heard[-1].split()[-1]) if self.heard else None


@pytest.fixture
def runtime(tmp_path):
    runtimes = []

    def runtime():
        made = Runtime(tmp_path / f"{len(runtimes)}.sock")
        runtimes.append(made)
        return made

    yield runtime
    for made in runtimes:
        made.close()


@pytest.fixture
def monitor(telling):
    telling.load = IDLE
    return Monitor(telling)


@pytest.fixture
def push(monitor, until):
    """Starts a push of the monitor; its threads are waited for."""
    before = set(threading.enumerate())
    pushes = []

    def push(*to, **options):
        made = Push(monitor, to, **{"every": 0.05, **options})
        pushes.append(made)
        return made.start()

    yield push
    for made in pushes:
        made.stop()
    until(lambda: not [t for t in set(threading.enumerate()) - before if "push" in t.name])


# What is pushed to


def test_a_target_is_a_path_or_an_address_and_a_server():
    assert target("unix:/run/haproxy/admin.sock#app/web1") == Target(
        "/run/haproxy/admin.sock", "app/web1"
    )
    assert target("tcp:10.0.0.1:9999#app/web1") == Target(("10.0.0.1", 9999), "app/web1")
    assert target("tcp:[::1]:9999#app.b/web-1").where == ("::1", 9999)


@pytest.mark.parametrize(
    "text",
    [
        *("", "unix:/run/a.sock", "unix:#app/web1", "unix:/a#app", "unix:/a#/web1", "unix:/a#app/"),
        *("/run/a.sock#app/web1", "tcp:9999#app/web1", "tcp:host:port#app/web1", "tcp:h:99999#a/b"),
        *("unix:/a#app/web1;shutdown", "unix:/a#app/web1\nshutdown", "unix:/a#app/web 1"),
        *("http:10.0.0.1:9999#app/web1", "unix:/a#app/web1/x", "unix:/a#app/w\xe4b"),
    ],
)
def test_what_names_no_target_is_said_at_once(text):
    with pytest.raises(ValueError, match="expected"):
        targets([text])


@given(st.text())
def test_no_text_gets_a_second_command_into_the_first(text):
    try:
        server = target(f"unix:/a#{text}").server
    except ValueError:
        return
    assert not set(server) & set(" ;\n\r\t\\<")


def test_one_text_may_name_several_with_commas_between():
    assert [one.server for one in targets("unix:/a#app/a, unix:/b#app/b")] == ["app/a", "app/b"]


def test_a_guard_is_no_monitor():
    with pytest.raises(TypeError, match=r"^monitor must be a Monitor, .*: guard\.monitor is one$"):
        Push(BusyGuard(print), "unix:/run/none.sock#app/web1")


def test_more_balancers_than_share_a_server_are_a_mistake(monitor):
    with pytest.raises(ValueError, match="at most 64"):
        Push(monitor, [f"unix:/{n}#app/web1" for n in range(MOST_BALANCERS + 1)])


def test_no_balancer_at_all_is_a_mistake(monitor):
    with pytest.raises(ValueError, match="not none"):
        Push(monitor, [])


def test_it_is_started_once(push, runtime, start):
    pushing = push(runtime().to)
    for _ in range(8):
        start(pushing.start)
    assert len([t for t in threading.enumerate() if t.name == "busyguard-push"]) == 1


# What is said


def test_the_capacity_is_said_at_the_start_and_over_and_over(push, runtime, until):
    balancer = runtime()
    push(balancer.to)
    until(lambda: len(balancer.heard) >= 3)
    assert set(balancer.heard) == {"set maxconn server app/web1 8"}


def test_two_balancers_share_and_two_backends_of_one_do_not(push, runtime, until):
    one, other = runtime(), runtime()
    push(one.to, f"unix:{one.path}#more/web1", other.to)
    until(lambda: one.number == 4 and other.number == 4)
    assert one.heard[-1] == "set maxconn server app/web1 4;set maxconn server more/web1 4"


def test_each_is_told_1_when_others_fill_the_server_and_more_when_it_is_free(
    push, runtime, telling, until
):
    one, other = runtime(), runtime()
    push(one.to, other.to, every=30.0)
    until(lambda: (one.number, other.number) == (4, 4))
    telling.set(FULL)
    until(lambda: (one.number, other.number) == (1, 1))
    telling.set(IDLE)
    until(lambda: (one.number, other.number) == (4, 4))
    assert len(one.heard) < 20, "told over and over at once"


def test_what_rounding_up_lets_through_is_no_reason_to_say_1(push, runtime, telling, until):
    """8 slots for 3 are 3 each, so one of nine waits here: their own doing, and no harm."""
    three = [runtime() for _ in range(3)]
    push(*(one.to for one in three))
    until(lambda: [one.number for one in three] == [3, 3, 3])
    for one in three:
        one.heard.clear()
    telling.set(Load(1, 8, 8, service=0.01))
    until(lambda: all(len(one.heard) >= 3 for one in three))
    assert {one.number for one in three} == {3}
    assert not [said for one in three for said in one.heard if not said.endswith(" 3")]


def test_a_queue_that_is_gone_at_once_is_no_reason_to_say_1(
    push, runtime, telling, until, monkeypatch
):
    """HAProxy sends the next request while the thread of the last one is still on its way back."""
    monkeypatch.setattr(module, "SETTLE_SECONDS", 10.0)
    balancer = runtime()
    pushing = push(balancer.to)
    until(lambda: balancer.number == 8)
    telling.set(FULL)
    until(lambda: pushing._settled is not None)
    telling.set(Load(0, 8, 8, service=0.01))  # still busy by the rule, and nobody waits
    balancer.heard.clear()
    until(lambda: len(balancer.heard) >= 5)
    assert set(balancer.heard) == {"set maxconn server app/web1 8"}


def test_a_queue_that_comes_while_it_is_busy_anyway_is_noticed(push, runtime, telling, until):
    balancer = runtime()
    push(balancer.to, every=30.0)
    until(lambda: balancer.number == 8)
    telling.set(Load(1, 8, 8, service=0.01))
    telling.set(Load(0, 8, 8, service=0.01))
    telling.load = FULL  # no change of state, so nobody is told
    until(lambda: balancer.number == 1)


def test_a_queue_that_stays_keeps_the_number_low_and_it_comes_back_with_the_room(
    push, runtime, telling, until
):
    balancer = runtime()
    push(balancer.to)
    until(lambda: balancer.number == 8)
    telling.set(Load(20, 8, 8, service=0.01))
    until(lambda: balancer.heard.count("set maxconn server app/web1 1") >= 5)
    telling.set(Load(0, 4, 8, service=0.01))
    until(lambda: balancer.number in (5, 8))
    telling.set(IDLE)
    until(lambda: balancer.number == 8)


def test_a_draining_server_says_1(push, runtime, monitor, until):
    balancer = runtime()
    push(balancer.to)
    until(lambda: balancer.number == 8)
    monitor.drain()
    until(lambda: balancer.number == 1)


def test_nothing_is_said_where_the_capacity_is_not_known(push, runtime, telling, until):
    telling.load = UNKNOWN
    balancer = runtime()
    pushing = push(balancer.to)
    until(lambda: pushing._due > 0.0)
    assert (pushing.number, balancer.heard) == (None, [])
    telling.set(IDLE)
    until(lambda: balancer.number == 8)


@pytest.mark.parametrize("load", [RuntimeError("no load"), Load(0, 0, 8)])
def test_an_adapter_that_fails_for_a_moment_is_no_end(push, runtime, telling, until, load):
    balancer = runtime()
    push(balancer.to)
    until(lambda: balancer.number == 8)
    telling.load = load
    balancer.heard.clear()
    telling.set(Load(0, 0, 6, service=0.01))
    until(lambda: balancer.number == 6)


# Balancers that are gone, hang, or talk


def test_one_that_is_gone_is_logged_once_tried_again_and_leaves_its_share(
    push, runtime, until, caplog
):
    staying, leaving = runtime(), runtime()
    push(staying.to, leaving.to)
    until(lambda: (staying.number, leaving.number) == (4, 4))
    with caplog.at_level(logging.WARNING, "wsgi_busyguard"):
        leaving.close()
        until(lambda: staying.number == 8)
        until(lambda: len(caplog.records) == 1)
        leaving.open()
        until(lambda: (staying.number, leaving.number) == (4, 4))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith(f"cannot push to unix:{leaving.path}: ")
    assert said[1] == f"pushing to unix:{leaving.path} again"


def test_one_that_never_was_is_logged_once(push, tmp_path, until, caplog, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_RETRY_SECONDS", 0.1)
    tried = []
    monkeypatch.setattr(module, "say", lambda *_: tried.append(1) or module_say())

    def module_say():
        raise FileNotFoundError(2, "No such file or directory")

    with caplog.at_level(logging.WARNING, "wsgi_busyguard"):
        push(f"unix:{tmp_path}/none.sock#app/web1")
        until(lambda: len(tried) >= 4)
    (record,) = caplog.records
    assert "No such file or directory" in record.getMessage()


def test_the_pauses_between_attempts_grow_to_a_limit(telling, tmp_path):
    pushing = Push(Monitor(telling), f"unix:{tmp_path}/none.sock#app/web1")
    pushing._number, (line,), pauses = 8, pushing._lines, []
    for _ in range(9):
        line._tell_now()
        pauses.append(line.telling.pause)
        line._tell_now()  # woken meanwhile
        assert 0 < line.telling.pause <= pauses[-1]
        line._retry_at = 0.0
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


def test_one_that_hangs_holds_up_no_other_and_no_listener(push, runtime, telling, until, tmp_path):
    balancer = runtime()
    path = str(tmp_path / "hangs.sock")
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(path)
        hanging.listen()  # takes connections, and says nothing
        push(f"unix:{path}#app/web1", balancer.to, every=30.0)
        until(lambda: balancer.number is not None)
        for _ in range(20):
            with Stopwatch() as watch:
                telling.set(FULL)
                telling.set(IDLE)
            assert watch.seconds < 0.5, "a listener waited"
        telling.set(FULL)
        until(lambda: balancer.number == 1)


def test_what_a_stranger_answers_is_escaped_and_cut_short(push, runtime, until, caplog):
    balancer = runtime()
    balancer.answer = b"\x1b[31mred\r\nnext line \xff" + b"x" * 100_000
    with caplog.at_level(logging.WARNING, "wsgi_busyguard"):
        push(balancer.to)
        until(lambda: len(balancer.heard) >= 3)
        until(lambda: caplog.records)
    (record,) = caplog.records
    said = record.getMessage()
    assert said.isprintable()
    assert len(said) < 500
    assert "\\x1b[31mred" in said


def test_one_that_closes_without_a_word_has_not_taken_it(push, runtime, until, caplog):
    balancer = runtime()
    balancer.answer = None
    with caplog.at_level(logging.WARNING, "wsgi_busyguard"):
        push(balancer.to)
        until(lambda: caplog.records)
    assert "closed without an answer" in caplog.text


def test_an_end_is_an_end(push, runtime, telling, until):
    balancer = runtime()
    pushing = push(balancer.to)
    until(lambda: balancer.number == 8)
    pushing.stop()
    until(lambda: not [t for t in threading.enumerate() if "push" in t.name])
    balancer.heard.clear()
    telling.set(FULL)
    assert balancer.heard == []


# Several processes


class Shared:
    was_ready = True
    draining = False

    def __init__(self, leads):
        self.leads = leads

    def is_leader(self):
        return self.leads

    def judge(self, load):
        from wsgi_busyguard.load import FREE, judge

        return judge(FREE, load)


def test_the_next_one_takes_over_when_the_first_is_gone(telling, runtime, until):
    telling.load = IDLE
    telling.shared = Shared(leads=False)
    balancer = runtime()
    pushing = Push(Monitor(telling), [balancer.to], every=0.05).start()
    try:
        until(lambda: pushing._watching.running)
        assert balancer.heard == []
        telling.shared.leads = True
        until(lambda: balancer.number == 8)
        telling.shared.leads = False
        until(lambda: pushing.number is None)
    finally:
        pushing.stop()
        until(lambda: not [t for t in threading.enumerate() if "push" in t.name])


@pytest.mark.slow
def test_a_child_pushes_nothing_unless_a_board_says_that_it_is_its_turn(python, tmp_path):
    """A fork of a server's process may be anybody: a pool of multiprocessing, say."""
    said = python(
        """
        import logging, os, sys, threading
        from wsgi_busyguard import Board, Gate, Monitor
        from wsgi_busyguard.board.publisher import Publisher
        from wsgi_busyguard.haproxy import Push
        logging.getLogger("wsgi_busyguard").addHandler(logging.NullHandler())
        for adapter in (Gate(3), Publisher(Board(), Gate(3))):
            push = Push(Monitor(adapter), ["unix:" + sys.argv[1] + "#app/web1"]).start()
            read, write = os.pipe()
            pid = os.fork()
            if not pid:
                names = [thread.name for thread in threading.enumerate()]
                os.write(write, str(sum("push" in name for name in names)).encode())
                os._exit(0)
            os.waitpid(pid, 0)
            print(os.read(read, 10).decode())
            push.stop()
        """,
        str(tmp_path / "none.sock"),
    )
    assert said.split() == ["0", "2"]
