from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard import Board, Gate, Monitor
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.metrics import sender as sending
from wsgi_busyguard.metrics.graphite import Graphite, StatsD, datagrams, flat, part
from wsgi_busyguard.metrics.report import look

HOST = re.sub(r"[^A-Za-z0-9_-]+", "_", socket.gethostname()).strip("_")


@pytest.fixture
def gate():
    gate = Gate(4, 2)
    gate.leave(gate.enter())
    gate.enter()
    return gate


@pytest.fixture
def monitor(gate):
    return Monitor(gate)


@pytest.fixture
def sender(until):
    """Starts senders, and stops them."""
    senders = []

    def make(kind, monitor, to, **options):
        senders.append(kind(monitor, to, every=0.02, **options).start())
        return senders[-1]

    yield make
    for each in senders:
        each.stop()
    until(lambda: not [t for t in threading.enumerate() if t.name == "busyguard-sender"])


class Carbon:
    """Takes lines on a port of its own, as carbon does."""

    def __init__(self, port=0):
        self.listener = socket.create_server(("127.0.0.1", port))
        self.listener.settimeout(20)
        self.port = self.listener.getsockname()[1]
        self.to = f"127.0.0.1:{self.port}"

    def accept(self):
        connection = self.listener.accept()[0]
        connection.settimeout(20)
        return connection

    def close(self):
        self.listener.close()


@pytest.fixture
def carbon():
    with contextlib.closing(Carbon()) as carbon:
        yield carbon


def lines_from(file, count):
    return {
        path: float(value) for path, value, _ in (file.readline().split() for _ in range(count))
    }


def test_parts_of_paths_have_no_dots():
    assert part("web-1.example.org") == "web-1_example_org"
    assert part("a b/c\n") == "a_b_c"
    assert part("...") == "_"


def test_every_value_has_a_path_and_a_kind(monitor):
    paths = {path: (kind, value) for path, kind, value in flat(look(monitor), "threadpool")}
    assert paths["active"] == ("gauge", 1)
    assert paths["admitted"] == ("counter", 2)
    assert paths["refused.queue-full"] == ("counter", 0)
    assert paths["transitions.busy"] == ("counter", 0)
    assert paths["service_time_seconds.le_0_005"] == ("counter", 1)
    assert paths["service_time_seconds.count"] == ("counter", 1)
    assert paths["checks.damped.busy.503"] == ("counter", 0)
    assert paths["process.0.active"] == ("gauge", 1)
    for path in paths:
        assert re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", path)


def test_the_names_of_2013_are_there_if_asked_for(monitor):
    paths = {path: value for path, _, value in flat(look(monitor), "threadpool")}
    found = {path: n for path, n in paths.items() if path.startswith("threadpool.")}
    assert found == {
        "threadpool.working": 1,
        "threadpool.queue": 0,
        "threadpool.waiters": 3,
        "threadpool.threads": 4,
    }
    assert not [path for path, _, _ in flat(look(monitor)) if "working" in path]


def test_a_prefix_names_the_host_and_the_process(monitor):
    assert Graphite(monitor, "127.0.0.1:2003").prefix == f"busyguard.{HOST}.{os.getpid()}"
    sender = Graphite(monitor, "127.0.0.1:2003", prefix="shop.{host}.web.{pid}.")
    assert sender.prefix == f"shop.{HOST}.web.{os.getpid()}"


def test_with_a_board_the_host_is_enough(gate):
    publisher = Publisher(Board(), gate)
    assert Graphite(Monitor(publisher), "127.0.0.1:2003").prefix == f"busyguard.{HOST}"


@pytest.mark.parametrize("prefix", ["{user}", "{", "{0}"])
def test_a_prefix_that_cannot_be_filled_in_is_refused(monitor, prefix):
    with pytest.raises(ValueError, match=r"may have \{host\} and \{pid\}"):
        Graphite(monitor, "127.0.0.1:2003", prefix=prefix)


@pytest.mark.parametrize(
    ("options", "error"), [({"every": 0}, ValueError), ({"every": "1"}, TypeError)]
)
def test_an_interval_is_a_number_of_seconds(monitor, options, error):
    with pytest.raises(error, match="every must be"):
        StatsD(monitor, "127.0.0.1:8125", **options)


def test_an_address_is_one(monitor):
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        Graphite(monitor, "carbon")


def test_a_sender_starts_once(monitor, sender, carbon):
    started = sender(Graphite, monitor, carbon.to)
    with pytest.raises(RuntimeError, match="was not started"):
        started.start()


def test_lines_come_over_one_connection(monitor, sender, carbon):
    sender(Graphite, monitor, carbon.to, prefix="x", threadpool="threadpool")
    with carbon.accept() as connection, connection.makefile() as file:
        began = time.time()
        count = len(list(flat(look(monitor), "threadpool")))
        for _ in range(3):
            found = lines_from(file, count)
            assert found["x.threadpool.working"] == 1
            assert found["x.admitted"] == 2
        path, _, at = file.readline().split()
        assert path == "x.queued"
        assert abs(int(at) - began) < 60


def test_a_connection_that_carbon_closed_is_made_anew(monitor, sender, carbon, caplog):
    sender(Graphite, monitor, carbon.to, prefix="x")
    for _ in range(3):
        with carbon.accept() as connection, connection.makefile() as file:
            assert file.readline().startswith("x.queued 0 ")
    assert not [record for record in caplog.records if "cannot send" in record.message]


def test_a_carbon_that_is_not_there_is_logged_once_and_tried_again(
    monitor, sender, caplog, until, monkeypatch
):
    monkeypatch.setattr(sending, "LONGEST_RETRY_SECONDS", 0.05)
    with socket.socket() as taken:  # so that nobody else is given this port meanwhile
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        sender(Graphite, monitor, f"127.0.0.1:{port}", prefix="x")
        until(lambda: "cannot send to <Graphite at 127.0.0.1" in caplog.text)
        time.sleep(0.2)  # a few more attempts
        assert caplog.text.count("cannot send") == 1
        again = Carbon(port)
    with contextlib.closing(again), again.accept() as connection, connection.makefile() as file:
        assert file.readline().startswith("x.queued")
        until(lambda: "sending to <Graphite at 127.0.0.1" in caplog.text)


def test_a_sender_that_was_stopped_can_be_started_again(monitor, sender, carbon):
    graphite = sender(Graphite, monitor, carbon.to, prefix="x")
    with carbon.accept() as connection, connection.makefile() as file:
        assert file.readline().startswith("x.queued")
        graphite.stop()
        graphite.stop()
        while file.readline():  # until it has closed
            pass
    graphite.start()
    with carbon.accept() as connection, connection.makefile() as file:
        assert file.readline().startswith("x.queued")


def test_a_carbon_that_does_not_read_is_given_up_on(monitor, sender, carbon, caplog, until):
    """A daemon that was stopped takes connections still, and no data."""
    import wsgi_busyguard.metrics.graphite as graphite

    before, graphite.CONNECT_SECONDS = graphite.CONNECT_SECONDS, 0.2
    try:
        sender(Graphite, monitor, carbon.to, prefix="x" * 20000)
        connection = carbon.accept()
        with connection:
            until(lambda: "cannot send" in caplog.text)
    finally:
        graphite.CONNECT_SECONDS = before


def test_a_look_that_raises_ends_nothing(monitor, sender, carbon, caplog, until, monkeypatch):
    monkeypatch.setattr(sending, "LONGEST_RETRY_SECONDS", 0.05)
    looked = sending.look

    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(sending, "look", broken)
    sender(Graphite, monitor, carbon.to, prefix="x")
    until(lambda: "broken" in caplog.text)
    monkeypatch.setattr(sending, "look", looked)
    with carbon.accept() as connection, connection.makefile() as file:
        assert file.readline().startswith("x.queued")


def test_a_sender_that_nobody_has_ends(monitor, until):
    Graphite(monitor, "127.0.0.1:9", every=0.01).start()
    until(lambda: not [t for t in threading.enumerate() if t.name == "busyguard-sender"])


def test_of_several_processes_one_sends(gate, carbon, sender, until):
    board = Board()
    publisher = Publisher(board, gate)
    sent = sender(Graphite, Monitor(publisher), carbon.to, prefix="x")
    carbon.listener.settimeout(0.3)
    with pytest.raises(TimeoutError):  # it has no slot yet
        carbon.accept()
    publisher.join()
    publisher.ready()
    carbon.listener.settimeout(20)
    with carbon.accept() as connection, connection.makefile() as file:
        assert file.readline().startswith("x.queued")
    assert sent.prefix == "x"


def test_a_child_sends_by_itself(monitor, carbon, sender):
    sender(Graphite, monitor, carbon.to)
    with carbon.accept() as first:
        pid = os.fork()
        if pid == 0:
            time.sleep(20)
            os._exit(0)
        try:
            with carbon.accept() as second:
                for connection, process in ((first, os.getpid()), (second, pid)):
                    with connection.makefile() as file:
                        assert file.readline().split()[0] == f"busyguard.{HOST}.{process}.queued"
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


# StatsD


@pytest.fixture
def statsd():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(20)
        yield receiver


def test_gauges_and_what_counters_have_grown_come_in_datagrams(gate, monitor, sender, statsd):
    sender(StatsD, monitor, f"127.0.0.1:{statsd.getsockname()[1]}", prefix="x")
    said = ""
    while "x.queued:0|g" not in said:
        datagram = statsd.recv(65536)
        assert len(datagram) <= 1432
        said += datagram.decode() + "\n"
    assert "x.capacity:4|g" in said
    assert "|c" not in said  # what was counted before is nobody's growth
    for _ in range(3):
        gate.leave(gate.enter())
    while "x.served:3|c" not in said:
        said += statsd.recv(65536).decode() + "\n"
    assert "x.service_time_seconds.le_0_005:3|c" in said
    assert said.count("x.served:3|c") == 1


def test_a_statsd_that_is_not_there_is_not_noticed(monitor, sender, statsd, caplog):
    to = f"127.0.0.1:{statsd.getsockname()[1]}"
    statsd.close()
    sent = sender(StatsD, monitor, to)
    sent.send(look(monitor))
    sent.send(look(monitor))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@given(st.lists(st.text("abc", min_size=1, max_size=40), max_size=60), st.integers(40, 200))
def test_lines_are_whole_in_datagrams(lines, longest):
    packed = list(datagrams(lines, longest))
    assert b"\n".join(packed).decode().split("\n") == (lines or [""])
    assert all(0 < len(datagram) <= longest for datagram in packed)
