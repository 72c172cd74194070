from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from wsgi_busyguard import Board, Gate, Load, Monitor
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.board.watcher import Watcher
from wsgi_busyguard.bulkhead import Bulkhead
from wsgi_busyguard.counters import REASONS, Counters, RefusalRate
from wsgi_busyguard.haproxy import Agent
from wsgi_busyguard.metrics import report
from wsgi_busyguard.metrics.figures import COUNTER, FIGURES, KINDS, REQUESTS, TIME
from wsgi_busyguard.metrics.prometheus import named
from wsgi_busyguard.metrics.report import look


def value(shown, name, *labels):
    [figure] = [figure for figure in FIGURES if figure.name == name]
    return dict(figure.read(shown))[labels]


def test_every_figure_is_named_once_and_says_what_it_is():
    names = [figure.name for figure in FIGURES]
    assert len(set(names)) == len(names)
    for figure in FIGURES:
        assert re.fullmatch("[a-z]+(_[a-z]+)*", figure.name)
        assert re.fullmatch(r"[A-Z0-9].*\.", figure.says)
        assert figure.kind in KINDS
        assert figure.unit in (REQUESTS, TIME, "")


def test_the_docs_show_the_table_as_it_is():
    page = (Path(__file__).parents[3] / "docs" / "metrics.rst").read_text()
    for figure in FIGURES:
        name = named(figure) + ("_total" if figure.kind == COUNTER else "")
        labels = ", ".join(f"``{label}``" for label in figure.labels) or "none"
        words = rf"^``{name}`` +{figure.kind} +{labels} +{re.escape(figure.says)}$"
        assert re.search(words, page, re.MULTILINE), name
    assert len(re.findall("^``busyguard_", page, re.MULTILINE)) == len(FIGURES)


def test_a_gate_shows_every_figure_but_those_of_others():
    gate = Gate(4, 2)
    monitor = Monitor(gate)
    slots = [gate.enter() for _ in range(3)]
    gate.leave(slots[0])
    monitor.check("exact")
    shown = json.loads(json.dumps(look(monitor)))
    assert (shown["state"], shown["queued"], shown["active"], shown["capacity"]) == (
        "free",
        0,
        2,
        4,
    )
    assert value(shown, "admitted") == 3
    assert value(shown, "served") == 1
    assert value(shown, "checks", "exact", "free", "200") == 1
    assert value(shown, "checks", "damped", "free", "200") == 0  # to look is not to ask
    assert sum(value(shown, "service_time").counts) == 1
    assert value(shown, "process_active", "0") == 2
    assert value(shown, "processes", "ready") == 1
    missing = [figure.name for figure in FIGURES if not list(figure.read(shown))]
    missing = [name for name in missing if not name.startswith("bulkhead_")]
    assert missing == ["slots_at_most", "balancers", "process_beat"]


def test_the_bulkheads_of_this_process_are_shown():
    rates = Bulkhead("the rates", at_most=3)
    with rates:
        shown = json.loads(json.dumps(look(Monitor(Gate(4)))))
    [one] = [one for one in shown["bulkheads"] if one["name"] == "the rates"]
    assert (one["inside"], one["at_most"], one["shut_for"]) == (1, 3, None)
    assert value(shown, "bulkhead_inside", "the rates") == 1
    assert value(shown, "bulkhead_refused", "the rates") == 0


def test_busy_is_shown_and_its_time_and_changes():
    gate = Gate(1, 5)
    monitor = Monitor(gate)
    gate.enter()
    monitor.refresh()

    class Waiting:
        def wake(self, _):
            pass

    from wsgi_busyguard.gate import Ticket

    gate.offer(Ticket(Waiting().wake))
    shown = look(monitor, ready="exact")
    assert (shown["state"], shown["ready"]) == ("busy", False)
    assert value(shown, "is_busy") == 1
    assert value(shown, "is_ready") == 0
    assert value(shown, "transitions", "busy") == 1
    [change] = shown["changes"]
    assert (change["state"], change["queued"], change["active"]) == ("busy", 1, 1)
    monitor.drain()
    shown = look(monitor)
    assert shown["state"] == "draining"
    assert value(shown, "is_busy") == 1  # the word says the other thing
    assert value(shown, "is_draining") == 1


def test_what_does_not_count_shows_no_counts(adapter):
    shown = look(Monitor(adapter))
    assert shown["counts"] is None
    names = {figure.name for figure in FIGURES if list(figure.read(shown))}
    assert "admitted" not in names
    assert "queued" in names


def test_an_unknown_load_shows_what_is_known(adapter):
    adapter.load = RuntimeError("no")
    shown = look(Monitor(adapter))
    assert shown["capacity"] is None
    assert "capacity" not in {figure.name for figure in FIGURES if list(figure.read(shown))}


@pytest.mark.parametrize("of", ["monitor", "watcher"])
def test_a_board_has_a_row_for_each_process(of):
    board = Board()
    gate = Gate(4)
    publisher = Publisher(board, gate)
    publisher.join()
    publisher.ready()
    gate.leave(gate.enter())
    publisher.beat()
    shown = look(Monitor(publisher) if of == "monitor" else Watcher(board))
    [row] = shown["processes"]
    assert (row["pid"], row["slot"], row["state"]) == (os.getpid(), 0, "ready")
    assert (row["admitted"], row["served"]) == (1, 1)
    assert value(shown, "process_capacity", "0") == 4
    assert value(shown, "served") == 1


def test_the_balancers_that_ask_are_shown(adapter, clock):
    agent = Agent(Monitor(adapter), clock)
    agent.note("lb1")
    clock.now += 2
    agent.note("lb1")
    agent.note('lb"2\n')
    shown = look(Monitor(adapter), agent)
    assert shown["balancers"] == [
        {"name": "lb1", "asked": 0.0, "period": 2.0},
        {"name": 'lb"2\n', "asked": 0.0, "period": 2.0},
    ]
    assert value(shown, "balancers") == 2
    clock.now += 100
    assert look(Monitor(adapter), agent)["balancers"] == []


def test_a_look_leaves_no_fingerprints(adapter):
    monitor = Monitor(adapter)
    adapter.load = Load(0, 0, 4)
    first, second = look(monitor), look(monitor)
    for shown in (first, second):
        shown.pop("at")
    assert first == second


# How much of the capacity is asked for


class Server:
    """Has a load, and counts what it refuses."""

    def __init__(self, load, refused=0):
        self.load, self.refused = load, refused

    def read(self):
        return self.load

    def counts(self):
        return Counters(refused=(0, self.refused, 0)[: len(REASONS)])


@pytest.fixture
def now(monkeypatch):
    """Turn the clock of a look."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(report.time, "monotonic", lambda: clock.now)
    return clock


@pytest.mark.parametrize(
    ("load", "utilisation"),
    [
        (Load(0, 0, 10), 0.0),
        (Load(0, 7, 10), 0.7),
        (Load(5, 10, 10), 1.5),
        (Load(5, 10, None), None),
        (Load(0, 0, 0), None),
    ],
    ids=["idle", "some", "a queue", "capacity unknown", "no capacity"],
)
def test_utilisation_is_what_is_here_by_the_capacity(load, utilisation):
    assert look(Monitor(Server(load)))["utilisation"] == utilisation


def test_what_is_refused_would_have_been_in_the_app_for_a_service_time(now):
    """30 a second of 0.5 s each would keep 15 threads more."""
    server = Server(Load(5, 10, 10, service=0.5), refused=1000)
    monitor = Monitor(server)
    assert look(monitor)["utilisation"] == 1.5  # nobody knows since when they were refused
    now.now += 10
    server.refused += 300
    assert look(monitor)["utilisation"] == 3.0
    assert value(look(monitor), "utilisation") == 3.0


def test_without_a_service_time_what_is_refused_weighs_nothing(now):
    server = Server(Load(5, 10, 10))
    monitor = Monitor(server)
    look(monitor)
    now.now += 10
    server.refused += 300
    assert look(monitor)["utilisation"] == 1.5


def test_the_rate_is_that_of_the_last_ten_seconds():
    rate = RefusalRate()
    for second in range(31):  # 2 a second, then 8
        last = rate.look(second, 2 * second if second < 15 else 30 + 8 * (second - 15))
    assert last == 8.0


def test_the_rate_is_that_between_two_looks_which_are_further_apart():
    rate = RefusalRate()
    rate.look(0.0, 0)
    assert rate.look(60.0, 120) == 2.0
    assert rate.look(120.0, 120) == 0.0


def test_looks_that_come_often_do_not_make_it_a_moments():
    rate = RefusalRate()
    for tenth in range(300):
        last = rate.look(tenth / 10, tenth)
    assert last == pytest.approx(10.0)
    assert len(rate._looks) <= 12


def test_a_count_that_begins_anew_is_another_servers():
    rate = RefusalRate()
    rate.look(0.0, 1000)
    assert rate.look(10.0, 5) == 0.0
    assert rate.look(20.0, 25) == 2.0
