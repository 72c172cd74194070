"""What is in force in a guard: told by each kind of guard, in one line, and by a board of all."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.testing import MemoryReactorClock
from waitress.wasyncore import close_all

from wsgi_busyguard import Board, BusyGuard, Load, Monitor
from wsgi_busyguard.adapters.cheroot.front import CherootFront
from wsgi_busyguard.adapters.detect import Server
from wsgi_busyguard.adapters.gunicorn.pool import pool_limits
from wsgi_busyguard.adapters.twisted import guarded_site
from wsgi_busyguard.adapters.waitress.dispatcher import WaitressFront
from wsgi_busyguard.board.layout import LIMIT_COLUMNS, LIMITS, limits_in, packed_limits
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.board.watcher import Watcher
from wsgi_busyguard.cli.top.details import _limits as top_lines
from wsgi_busyguard.cli.top.validation import understood
from wsgi_busyguard.dashboard.html import parts
from wsgi_busyguard.dashboard.limits import in_force as alike
from wsgi_busyguard.dashboard.sentences import sentences
from wsgi_busyguard.gate import Gate
from wsgi_busyguard.gate.limits_in_force import gate_in_force, in_force
from wsgi_busyguard.load import ACTS, LIMITED, ORIGINS, GuardLimits
from wsgi_busyguard.load_report import LimitFigures
from wsgi_busyguard.metrics.figures import FIGURES
from wsgi_busyguard.metrics.report import look
from wsgi_busyguard.options import GuardOptions
from wsgi_busyguard.policy import READY_POLICIES, Limits, limits

REST = "client_timeout 5 s (default), ready damped (default), patience 2 s (default)"


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"app"]


def known(slots=8, now=None, **options):
    """What is in force in a gate."""
    given = GuardOptions(slots=slots, **options)
    waits = given.some("max_queue", "max_wait", "client_timeout")
    return in_force(given, "gate", limits(slots, **waits), now)


# In one line


@pytest.mark.parametrize(
    ("in_one", "said"),
    [
        pytest.param(
            known(),
            f"gate: slots 8 (given), max_queue 32 (default), max_wait 1 s (default), {REST}",
            id="defaults",
        ),
        pytest.param(
            known(client_timeout=2.0, ready="exact", patience=0.5),
            "gate: slots 8 (given), max_queue 32 (default), max_wait 0.4 s (default),"
            " client_timeout 2 s (given), ready exact (given), patience 0.5 s (given)",
            id="given",
        ),
        pytest.param(
            known(max_queue=math.inf, max_wait=math.inf),
            f"gate: slots 8 (given), max_queue none (given), max_wait none (given), {REST}",
            id="no bounds",
        ),
        pytest.param(
            known(now=3),
            f"gate: slots 3 of 8 (adapted), max_queue 32 (default), max_wait 1 s (default), {REST}",
            id="fewer slots",
        ),
        pytest.param(
            in_force(GuardOptions(), "gate", limits(10)),
            f"gate: slots 10 (threads), max_queue 40 (default), max_wait 1 s (default), {REST}",
            id="in front of threads",
        ),
        pytest.param(
            in_force(GuardOptions(), "checks"), f"only answers checks: {REST}", id="no gate"
        ),
    ],
)
def test_a_line_says_what_is_in_force_and_where_it_is_from(in_one, said):
    assert str(in_one) == said


def test_the_limits_of_an_overload_are_adapted():
    gate = Gate(2, client_timeout=1.0, clock=lambda: now)
    now = 0.0
    options = GuardOptions(slots=2, client_timeout=1.0)
    assert "max_queue 400 (default), max_wait 0.8 s (default)" in str(gate_in_force(options, gate))
    gate.discipline.crowded(0.0, 9, 0.0)
    gate.discipline.crowded(1.1, 9, 1.1)
    assert gate.discipline.tight
    said = str(gate_in_force(options, gate))
    assert "max_wait 0.2 s (adapted)" in said
    assert re.search(r"max_queue \d (\(adapted\))", said)


def test_the_docs_show_such_a_line():
    page = (Path(__file__).parents[3] / "docs" / "options.rst").read_text()
    given, bounds = GuardOptions(slots=10, client_timeout=2.0), Limits(10, 40, 1.6)  # in a burst
    assert str(in_force(given, "gate", bounds, 4)) in page


# On a board

bounds = st.none() | st.integers(0, 10**6)


@given(
    st.builds(
        GuardLimits,
        acts=st.sampled_from(ACTS),
        slots=bounds,
        at_most=bounds,
        max_queue=bounds,
        max_wait=st.none() | st.sampled_from([0.2, 1.0, 86400.0]),
        client_timeout=st.sampled_from([0.5, 5.0, 86400.0]),
        ready=st.sampled_from(READY_POLICIES),
        patience=st.sampled_from([0.25, 2.0]),
        origins=st.tuples(*[st.sampled_from(ORIGINS)] * len(LIMITED)),
        why=st.text(st.characters(codec="ascii", min_codepoint=1), max_size=128),
    )
    | st.none()
)
def test_words_stand_for_limits(in_one):
    words = packed_limits(in_one)
    assert len(words) == LIMIT_COLUMNS - LIMITS
    assert all(0 <= word < 1 << 63 for word in words)
    assert limits_in(words) == in_one


def test_a_client_timeout_without_end_fits_into_a_word():
    words = packed_limits(known(client_timeout=math.inf, max_wait=1.0))
    assert limits_in(words).client_timeout > 10**9


class Reads:
    def read(self):
        return Load(0, 0, 8)


def joined(board, in_one):
    publisher = Publisher(board, Reads())
    publisher.limits = lambda: in_one
    publisher.join()
    publisher.ready()
    return publisher


def at_most(shown):
    (figure,) = (figure for figure in FIGURES if figure.name == "slots_at_most")
    return list(figure.read(shown))


def test_a_board_tells_what_is_in_force_in_how_many_processes():
    board = Board()
    publishers = [joined(board, known(now=now)) for now in (3, 8, 3)]
    shown = json.loads(json.dumps(look(Watcher(board))))
    assert [(each["processes"], each["slots"]) for each in shown["limits"]] == [(2, 3), (1, 8)]
    assert at_most(shown) == [((), 24)]
    rest = f"max_queue 32 (default), max_wait 1 s (default), {REST}"
    assert [*map(str, alike(shown))] == [f"gate: slots 3 to 8 of 8 (adapted), {rest}"]
    publishers[1].limits = lambda: in_force(GuardOptions(), "checks")
    publishers[1].beat()
    assert [*map(str, alike(look(Watcher(board))))] == [
        f"2 processes: gate: slots 3 of 8 (adapted), {rest}",
        f"1 process: only answers checks: {REST}",
    ]


WHY = "a request computes 28 ms: this interpreter cannot use more than 3 of the 8 slots"


def adapted(slots):
    waits = limits(8)
    return in_force(GuardOptions(), "gate", waits, slots, WHY if slots < 8 else None)


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        ([3], "A" + WHY[1:] + "."),
        ([3, 8], f"In 1 of 2 processes {WHY}."),
        ([8, 8], None),
    ],
)
def test_people_are_told_why_there_are_fewer_slots(slots, said):
    board = Board()
    publishers = [joined(board, adapted(now)) for now in slots]
    shown = understood(json.loads(json.dumps(look(Watcher(board)))))
    found = [one.text for one in sentences(shown) if "this interpreter" in one.text]
    assert found == ([] if said is None else [said])
    for publisher in publishers:
        publisher.leave()


def test_the_page_and_top_show_the_limits():
    board = Board()
    publisher = joined(board, known(now=3))
    shown = look(Watcher(board))
    page = parts(shown, ())["limits"]
    assert "<td>slots</td><td>3 of 8</td><td>adapted</td>" in page
    assert "<td>max_wait</td><td>1 s</td><td>default</td>" in page
    told = understood(json.loads(json.dumps(shown)))
    assert [line.plain for line in top_lines(told)] == [f"in force   {known(now=3)}"]
    publisher.leave()


def test_what_a_host_says_of_limits_may_be_anything():
    figures = look(Monitor(Reads()))
    with pytest.raises(ValueError, match="expected"):
        understood({**figures, "limits": [{"acts": "gate"}]})
    strange = {**dict.fromkeys(("processes", "client_timeout", "patience"), 1), "origins": {}}
    strange |= {"acts": "<b>\x1b[2J", "ready": "damped", "why": ""}
    shown = understood({**figures, "limits": [strange]})
    assert "&lt;b&gt;?[2J" in parts(shown, ())["limits"]


def test_who_says_nothing_of_it_has_nothing_shown():
    board = Board()
    publisher = joined(board, None)
    shown = look(Watcher(board))
    assert (shown["limits"], alike(shown), at_most(shown)) == ([], [], [])
    publisher.leave()
    assert "limits" not in look(Monitor(Reads()))


def test_a_row_is_not_taken_for_what_its_last_process_had():
    board = Board(slots=1)
    joined(board, known()).leave()
    publisher = joined(board, None)
    assert [row.limits for row in board.rows()] == [None]
    publisher.leave()


# Each guard


class Reactor(MemoryReactorClock):
    def callFromThread(self, call, *arguments):  # noqa: N802
        self.callLater(0, call, *arguments)


def waitress_front(**options):
    sockets = {}
    front = WaitressFront(4, sockets, **options)
    close_all(sockets)  # what wakes its loop
    return front


FRONTS = {
    "twisted": lambda **options: guarded_site(app, 4, reactor=Reactor(), **options).guard,
    "waitress": waitress_front,
    "cheroot": lambda **options: CherootFront(4, **options),
}


@pytest.mark.parametrize("front", FRONTS.values(), ids=FRONTS)
def test_a_front_has_as_many_slots_as_threads(front):
    guard = front(client_timeout=2.0)
    assert str(guard.limits).startswith(
        "gate: slots 4 (threads), max_queue 400 (default), max_wait"
    )
    assert "client_timeout 2 s (given)" in str(guard.limits)
    (figures,) = look(guard.monitor)["limits"]
    assert (figures["acts"], figures["slots"], figures["max_wait"]) == ("gate", 4, 1.6)


def test_a_worker_of_gunicorns_has_room_for_so_many():
    cfg = type("Cfg", (), {"threads": 4, "worker_connections": 20})
    assert pool_limits(GuardOptions(), cfg) == (4, 8, 1.6)


@pytest.fixture
def calling(monkeypatch):
    """Have a server of so many threads call the guards."""

    def set_threads(threads):
        monkeypatch.setattr(
            "wsgi_busyguard.adapters.first_request.find", lambda _: Server("Some/1", threads)
        )

    set_threads(math.inf)
    return set_threads


def test_a_gate_behind_the_threads(calling, ask):
    guard = BusyGuard(app, slots=2)
    ask(guard)
    assert str(guard.limits).startswith("gate: slots 2 (given), max_queue 8 (default)")
    assert guard.monitor.limits() == guard.limits


def test_a_gate_without_room_is_none(calling, ask):
    calling(4)
    guard = BusyGuard(app, slots=8)
    ask(guard)
    assert str(guard.limits) == f"only answers checks: {REST}"


def test_a_dry_run_tells_by_what_it_estimates(calling):
    guard = BusyGuard(app, slots=2, dry_run=True)
    said = "dry run, refuses nothing: slots 2 (given), max_queue 8 (default)"
    assert str(guard.limits).startswith(said)


def test_the_guard_in_front_tells_and_not_the_one_behind(calling):
    in_front = BusyGuard(app, slots=2)
    BusyGuard(app, monitor=in_front.monitor)
    assert in_front.monitor.limits() == in_front.limits


# The log


def in_force_lines(caplog):
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if message.startswith("in force: ")]


def test_the_log_says_it_once(calling, ask, caplog):
    caplog.set_level(logging.INFO)
    guard = BusyGuard(app, slots=2)
    assert in_force_lines(caplog) == []  # whoever imports the app serves nobody as yet
    for _ in range(3):
        ask(guard)
    assert in_force_lines(caplog) == [f"in force: {guard.limits}"]


def test_of_several_first_calls_at_once_one_says_it(calling, environ, caplog):
    caplog.set_level(logging.INFO)
    guard, steps = BusyGuard(app, slots=9), []
    guard.next_call.steps[:] = steps = [guard.next_call.steps[-1]] * 5  # each finds it
    for step in tuple(steps):
        step.work(environ())
    assert len(in_force_lines(caplog)) == 1


def test_of_those_on_a_board_one_says_it(calling, ask, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    guard = BusyGuard(app, slots=2, board=tmp_path / "board")
    guard.monitor.shared.leader = lambda: 1  # another process
    ask(guard)
    assert in_force_lines(caplog) == []


def test_the_figures_are_typed_as_they_are_told():
    assert set(LimitFigures.__annotations__) == {"processes", *GuardLimits._fields}
