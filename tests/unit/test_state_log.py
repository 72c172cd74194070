from __future__ import annotations

import itertools
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard import Board, Load, Monitor
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.load import BUSY, FREE, Transition
from wsgi_busyguard.state_log import LOG_INTERVAL_SECONDS, LogLine, StateLog

CALM, CROWDED = Load(0, 1, 4, service=0.1), Load(9, 4, 4, waited=0.25, service=0.1)
LATE = Load(9, 4, 4, waited=3.0, service=0.1)


@pytest.fixture
def monitor(telling, clock, caplog):
    caplog.set_level(logging.DEBUG, "wsgi_busyguard")
    return Monitor(telling, clock=clock)


def lines(caplog):
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_a_change_gets_a_line_with_the_load_that_caused_it(monitor, telling, clock, caplog):
    telling.set(CROWDED)
    clock.now += 12
    telling.set(CALM)
    assert lines(caplog) == [
        ("INFO", "busy: queued=9 active=4 capacity=4 waited=0.25 delay=0.25"),
        ("INFO", "free again after 12 s: queued=0 active=1 capacity=4 waited=0 delay=0"),
    ]


@pytest.mark.parametrize(
    ("lasted", "said"), [(0.0000856, "0"), (0.0123, "0.012"), (2.024, "2.02"), (4321.5, "4322")]
)
def test_a_time_is_never_said_with_an_exponent(lasted, said):
    line = LogLine(logging.INFO, "free", FREE, CALM, lasted, 0)
    assert line.text.startswith(f"free again after {said} s: ")


def test_the_record_has_every_figure_as_a_field(monitor, telling, clock, caplog):
    clock.now += 3
    telling.set(CROWDED._replace(lag=0.5))
    [record] = caplog.records
    assert record.name == "wsgi_busyguard"
    fields = {name: value for name, value in vars(record).items() if name.startswith("busyguard_")}
    assert fields == {
        "busyguard_event": "busy",
        "busyguard_state": "busy",
        "busyguard_queued": 9,
        "busyguard_active": 4,
        "busyguard_capacity": 4,
        "busyguard_waited": 0.25,
        "busyguard_delay": 0.5,
        "busyguard_service": 0.1,
        "busyguard_lag": 0.5,
        "busyguard_lasted": 3.0,
        "busyguard_untold": 0,
    }


def test_a_state_that_flaps_gets_a_line_every_ten_seconds(monitor, telling, clock, caplog):
    for _ in range(500):
        telling.set(CROWDED)
        clock.now += 0.05
        telling.set(CALM)
        clock.now += 0.05
    assert 5 <= len(caplog.records) <= 6
    assert "changes before got no line" in caplog.text


def test_the_last_line_tells_the_state_that_is(monitor, telling, clock, caplog):
    """Else the log would say free for as long as it is busy."""
    telling.set(CROWDED)
    clock.now += 1
    telling.set(CALM)
    clock.now += 1
    telling.set(CROWDED)
    clock.now += LOG_INTERVAL_SECONDS
    monitor.refresh()
    assert [line.split(":")[0] for _, line in lines(caplog)] == ["busy", "busy"]
    assert "(2 changes before got no line)" in lines(caplog)[-1][1]


def test_requests_that_wait_long_are_a_warning_and_so_is_their_end(monitor, telling, clock, caplog):
    telling.set(CROWDED)
    clock.now += 2.5
    telling.set(LATE)
    telling.set(LATE)
    clock.now += 30
    telling.set(LATE)
    telling.set(CALM)
    assert [(level, line.split(":")[0]) for level, line in lines(caplog)] == [
        ("INFO", "busy"),
        ("WARNING", "busy for 2.5 s now, and requests wait"),
        ("WARNING", "free again after 32.5 s"),
    ]


def test_a_calm_server_writes_nothing(monitor, telling, caplog):
    for _ in range(10):
        telling.set(CALM)
        monitor.check()
    assert caplog.records == []


@given(
    st.lists(st.tuples(st.sampled_from([CALM, CROWDED, LATE]), st.floats(0.01, 30)), max_size=80)
)
def test_however_it_goes_lines_are_few_and_the_last_is_true(steps):
    journal, state, since, now = StateLog(), FREE, 0.0, 0.0
    told, warned = [], []
    for load, pause in steps:
        now += pause
        new = FREE if load is CALM else BUSY
        if new is not state:
            line = journal.changed(Transition(new, load, now, now - since))
            state, since = new, now
        elif journal.watching:
            line = journal.looked(state, load, since, now)
        else:
            line = None
        if line is not None and line.level == logging.INFO:
            told.append((now, line.state))
        elif line is not None:
            warned.append((now, line.event, line.state))
    for (before, _), (after, _) in itertools.pairwise(told):
        assert after - before >= LOG_INTERVAL_SECONDS - 1e-9
    warnings = [at for at, event, _ in warned if event == "waiting"]
    for before, after in itertools.pairwise(warnings):
        assert after - before >= LOG_INTERVAL_SECONDS - 1e-9
    frees = len(warned) - len(warnings)
    assert frees <= len(warnings)
    line = None
    if journal.watching:
        line = journal.looked(
            state, CALM if state is FREE else CROWDED, since, now + LOG_INTERVAL_SECONDS
        )
    last = max([*told, *((at, entered) for at, _, entered in warned), (-1.0, FREE)])
    assert (line.state if line is not None else last[1]) is state


def test_of_several_processes_one_writes(clock, adapter, caplog):
    caplog.set_level(logging.INFO, "wsgi_busyguard")
    board = Board(clock=clock)
    publisher = Publisher(board, adapter)
    monitor = Monitor(publisher, clock=clock)
    adapter.load = CROWDED
    publisher.join()
    monitor.refresh()
    assert caplog.records == []  # one that is only starting speaks for nobody
    publisher.ready()
    monitor.refresh()
    assert [record.busyguard_queued for record in caplog.records] == [9]
    board.is_leader = lambda: False
    clock.now += 2 * LOG_INTERVAL_SECONDS
    adapter.load = CALM
    monitor.refresh()
    assert len(caplog.records) == 1
