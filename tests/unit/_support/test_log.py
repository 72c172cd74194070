"""Nothing that a log's filters and handlers do reaches a request, a check, or a thread of ours."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
import threading

import pytest
from conftest import ROOT

from wsgi_busyguard import Board, BusyGuard, Load, Monitor
from wsgi_busyguard._support.log import FailOpen, Logger, logger, unraised
from wsgi_busyguard._support.notifier import ListenerThread
from wsgi_busyguard._support.periodic import Periodic
from wsgi_busyguard.adapters.cheroot.reply_thread import ReplyThread
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.metrics.sender import Sender

LEVELS = ["debug", "info", "warning", "error", "exception", "critical"]


class OutsideOfARequest(RuntimeError):
    pass


class Who(logging.Filter):
    """What people write who want each record to tell of the current request."""

    def __init__(self):
        super().__init__()
        self.messages = []

    @property
    def raised(self):
        return len(self.messages)

    def filter(self, record):
        self.messages.append(record.getMessage())
        raise OutsideOfARequest("no request here")


@pytest.fixture
def who():
    real, added = logging.getLogger("wsgi_busyguard"), Who()
    before = real.level
    real.addFilter(added)
    real.setLevel(logging.DEBUG)
    yield added
    real.removeFilter(added)
    real.setLevel(before)


@pytest.fixture
def app():
    def app(environ, start_response):
        app.calls += 1
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"app"]

    app.calls = 0
    return app


@pytest.mark.parametrize("level", LEVELS)
def test_a_filter_that_raises_does_not_raise_into_whoever_writes(who, capsys, level):
    getattr(logger, level)("%d of %d", 1, 2)
    assert who.raised == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "busyguard: a filter or handler raised OutsideOfARequest('no request here')"
        f" in {__file__}, filter(); not logged: 1 of 2"
    )


def test_nor_does_one_of_a_record_whose_level_is_given(who, capsys):
    logger.log(logging.INFO, "%s", "words", extra={"busyguard_state": "free"})
    assert capsys.readouterr().err.endswith("not logged: words\n")


def test_nothing_is_said_where_logging_is_to_say_nothing(who, capsys, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.error("words")
    assert who.raised == 1
    assert capsys.readouterr().err == ""


def test_nor_where_there_is_no_stderr(who, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    logger.error("words")
    assert who.raised == 1


def test_what_ends_a_process_passes():
    def exits(*_):
        raise SystemExit

    with pytest.raises(SystemExit):
        unraised(exits, "words")


@pytest.mark.parametrize("level", LEVELS)
def test_a_record_tells_which_line_wrote_it(caplog, level):
    caplog.set_level(logging.DEBUG, "wsgi_busyguard")
    try:
        raise ValueError("why")
    except ValueError:
        getattr(logger, level)("words")
    (record,) = caplog.records
    assert (record.name, record.levelname) == (
        "wsgi_busyguard",
        "ERROR" if level == "exception" else level.upper(),
    )
    assert record.pathname == __file__
    assert record.funcName == "test_a_record_tells_which_line_wrote_it"
    assert (record.exc_info is not None) is (level == "exception")


def test_a_logger_has_the_name_that_it_is_given(caplog):
    Logger("concurrent.futures").critical("words")
    assert [record.name for record in caplog.records] == ["concurrent.futures"]


def calls(tree):
    return [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "wsgi_busyguard").rglob("*.py")), ids=lambda file: file.name
)
def test_nobody_in_the_package_writes_to_a_log_in_another_way(file):
    """Wherever it is written: sooner or later each line is on the path of somebody's request."""
    if file.name == "log.py":
        return
    for function in calls(ast.parse(file.read_text())):
        if isinstance(function, ast.Attribute):
            owner = ast.unparse(function.value)
            assert (owner, function.attr) != ("logging", "getLogger"), function.lineno
            if function.attr in {*LEVELS, "log"} and owner.rpartition(".")[2] in {"log", "logger"}:
                assert owner == "logger", function.lineno


# The first call


def test_the_first_call_is_served(who, app, ask):
    guard = BusyGuard(app)
    assert [ask(guard).text for _ in range(3)] == ["app"] * 3
    assert who.raised == 2  # it meets the server, and says what is in force


@pytest.mark.parametrize("path", ["/", "/readyz"])
def test_so_is_that_of_a_gate(who, app, ask, path):
    guard = BusyGuard(app, slots=2)
    assert [ask(guard, "GET", path).status for _ in range(3)] == [200] * 3
    assert who.raised == 2


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_is_raised_while_the_server_is_looked_at_is_raised_once_at_most(
    app, environ, monkeypatch, caplog, error
):
    looks = []

    def find(environ):
        looks.append(environ)
        raise error("out of nowhere")

    monkeypatch.setattr("wsgi_busyguard.adapters.first_request.find", find)
    guard = BusyGuard(app)

    def call():
        return list(guard(environ(), lambda *_: None))

    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            call()
        assert app.calls == 0
    else:
        assert call() == [b"app"]
        assert [r.getMessage() for r in caplog.records] == [
            "could not find out which server this is"
        ]
    assert call() == call() == [b"app"]
    assert len(looks) == 1


def test_a_push_that_cannot_begin_costs_no_request(app, ask, monkeypatch, caplog):
    guard = BusyGuard(app, slots=2, push="tcp:127.0.0.1:1#app/web1")

    def cannot():
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(guard._pushes, "start", cannot)
    assert [ask(guard).text for _ in range(2)] == ["app"] * 2
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [
        "could not begin to push"
    ]


def test_nor_does_a_board_that_cannot_be_told(app, ask, monkeypatch, caplog):
    guard = BusyGuard(app, slots=2, board=Board())

    def cannot():
        raise OSError("too many open files")

    monkeypatch.setattr(guard.monitor.adapter, "call", cannot)
    assert [ask(guard).text for _ in range(2)] == ["app"] * 2
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [
        "could not tell the board that this process serves"
    ]


# Checks


def test_a_check_is_answered_when_the_adapter_raises(who, app, ask, adapter):
    adapter.load = OSError("gone")
    guard = BusyGuard(app, monitor=Monitor(adapter))
    assert [ask(guard, "GET", "/readyz").status for _ in range(3)] == [200] * 3
    assert who.raised == 2  # and once for what is in force


def test_and_when_the_state_changes(who, app, ask, adapter):
    guard = BusyGuard(app, monitor=Monitor(adapter))
    said = []
    for load in [Load(9, 1, 1, 9.0, 1.0), Load(0, 0, 1)] * 2:
        adapter.load = load
        said.append(ask(guard, "GET", "/readyz").text)
    assert said == ["busy", "free"] * 2
    assert who.raised


def test_and_when_a_listener_raises(who, app, ask, adapter):
    heard = []

    def raises(change):
        raise ValueError

    guard = BusyGuard(app, monitor=Monitor(adapter, on_busy=raises))
    guard.monitor.quiet = True
    guard.monitor.on_busy(heard.append)
    adapter.load = Load(9, 1, 1, 9.0, 1.0)
    assert ask(guard, "GET", "/readyz").status == 503
    assert len(heard) == 1  # and the next listener heard of it
    assert who.raised == 2  # once for what is in force


def test_and_when_the_board_cannot_say_who_writes_the_log(app, ask, caplog, until):
    caplog.set_level(logging.INFO)
    board, heard = Board(), []
    gate_of_one = BusyGuard(app, slots=1, max_queue=0, board=board)
    gate_of_one.monitor.on_busy(heard.append)
    board.is_leader = 1 / 2  # so that to call it raises
    shared = gate_of_one.monitor.adapter
    shared.adapter = type("Full", (), {"read": lambda self: Load(9, 1, 1, 9.0, 1.0)})()
    assert ask(gate_of_one, "GET", "/readyz").status == 503
    until(lambda: heard)  # by a beat, if that was first
    assert len(heard) == 1


# Threads of the guard's own, which a log that raises would end


@pytest.fixture
def raises_twice(until):
    """What a thread is given to do, and whether it has come to do it a third time."""

    def work(*_):
        work.calls += 1
        if work.calls < 3:
            raise OSError("gone")

    work.calls = 0
    work.well = lambda: until(lambda: work.calls > 2)
    return work


def test_a_beat_goes_on(who, raises_twice):
    beat = Periodic(raises_twice, 0.001, "a beat")
    beat.start()
    raises_twice.well()
    beat.stop()
    # Once a streak; a thread that another test has left may have something to say, too.
    assert sum("a beat" in message for message in who.messages) == 1


def test_so_do_the_beats_on_a_board(who, raises_twice, adapter, monkeypatch):
    monkeypatch.setattr("wsgi_busyguard.board.publisher.POST_SECONDS", 0.001)
    publisher = Publisher(Board(), adapter)
    publisher.start(raises_twice)
    raises_twice.well()
    publisher.stop()
    assert sum("raised at a beat" in message for message in who.messages) == 1


def test_the_next_listener_is_told(who, raises_twice):
    listeners = ListenerThread()
    listeners.start()
    for _ in range(3):
        listeners.put(raises_twice)
    raises_twice.well()
    listeners.stop()


def test_the_next_connection_is_seen_to(who, raises_twice):
    replies = ReplyThread("busyguard-test")
    replies.start()
    for _ in range(3):
        replies.put(raises_twice)
    raises_twice.well()
    replies.stop()
    replies._thread.join()
    replies._bell.close()


def test_figures_are_sent_again(who, raises_twice, adapter):
    class Raising(Sender):
        send = raises_twice

    sender = Raising(Monitor(adapter), "127.0.0.1:1", every=0.001).start()
    raises_twice.well()
    sender.stop()
    assert who.raised >= 1


def test_a_thread_that_waits_at_the_gate_is_woken(who, start, until):
    """Who leaves wakes the next, and tells a watcher, which raises, and its log raises."""
    from wsgi_busyguard import Gate

    gate, inside = Gate(1), threading.Event()

    def changed():
        raise ValueError

    gate.subscribe(changed)
    slot = gate.enter()

    def wait():
        gate.leave(gate.enter())
        inside.set()

    start(wait)
    until(lambda: gate._waiting)
    gate.leave(slot)
    assert inside.wait(20)
    assert who.raised


SAYS = "from wsgi_busyguard._support.log import logger; logger.warning('%d wait', 3)"
SET_UP = {
    "nobody": ("", "busyguard: 3 wait"),
    "basicConfig()": ("logging.basicConfig()", "WARNING:wsgi_busyguard:3 wait"),
    "a handler": ("logging.getLogger().addHandler(logging.StreamHandler())", "3 wait"),
}


@pytest.mark.parametrize(("setting", "line"), SET_UP.values(), ids=SET_UP)
def test_a_line_says_whose_it_is_where_nobody_has_configured_logging(setting, line):
    """In a process of its own: pytest has handlers everywhere."""
    script = f"import logging\n{setting}\n{SAYS}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == f"{line}\n"


def test_a_step_that_raises_is_outlived_and_said_once_until_it_has_gone_well(caplog):
    safely, goes_well = FailOpen("the server"), [False]

    def step(number):
        if not goes_well[0]:
            raise AttributeError("renamed")
        return number

    assert [safely(step, 1), safely(step, 2)] == [None, None]
    [record] = caplog.records
    assert record.getMessage().endswith("step raised; the server goes on as without it")
    goes_well[0] = True
    assert safely(step, 3) == 3
    goes_well[0] = False
    assert safely(step, 4) is None
    assert len(caplog.records) == 2
    assert safely(len, "abc") == 3
