"""mod_wsgi's module is a stand-in here; tests/servers/test_mod_wsgi.py has the real one."""

from __future__ import annotations

import math
import socket
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard import Board, BusyGuard, Load
from wsgi_busyguard.adapters.mod_wsgi import guarded_app
from wsgi_busyguard.adapters.readers.mod_wsgi import ModWsgiAdapter, ProcessAdapter, queue_time

NOW = 1_795_378_403

START, DAEMON = "mod_wsgi.queue_start", "mod_wsgi.daemon_start"


@pytest.mark.parametrize(
    ("start", "end", "waited"),
    [
        ("1795378403039635", "1795378412553835", 9.5142),
        ("1795378403039635", "1795378403039766", 0.000131),
        ("1795378403039635", "1795378403039635", 0.0),
        (NOW + 0.5, NOW + 3.0, 2.5),
        ("1795378403500000", NOW + 3.0, 2.5),
        (0.0, 0.0, None),
        (0.0, NOW + 3.0, None),
        (None, NOW + 3.0, None),
        ("1795378403500000", None, None),
        (None, None, None),
        ("1795378403500000", "1795378403400000", None),
        ("1795378403500000", "1795379403500000", None),
        ("0", "0", None),
        ("", "", None),
        ("1795378403.5", "1795378404.5", None),
        ("-1795378403500000", "1795378404500000", None),
        (" 1795378403500000", "1795378404500000", None),
        ("1795378403500000\n", "1795378404500000", None),
        ("1_795_378_403_500_000", "1795378404500000", None),
        ("\u0661" * 16, "1795378404500000", None),
        (b"1795378403500000", b"1795378404500000", None),
        (NOW, NOW + 2, None),
        (True, True, None),
        (math.nan, math.nan, None),
        (-math.inf, math.inf, None),
        (NOW + 0.5, math.inf, None),
        ("9" * 5000, "9" * 5000, None),
    ],
    ids=lambda value: str(value)[:24],
)
def test_the_time_in_the_queue_is_between_the_two_moments(start, end, waited):
    environ = {START: start, DAEMON: end}
    said = queue_time({name: value for name, value in environ.items() if value is not None})
    assert said == (None if waited is None else pytest.approx(waited, abs=1e-6))


anything = st.one_of(
    *(
        st.none(),
        st.text(" 0123456789.-+eE_t=\n\u0661"),
        st.binary(),
        st.floats(),
        st.integers(),
        st.booleans(),
    ),
    st.integers(10**13, 10**18).map(str),
    st.floats(NOW - 1000, NOW + 1000),
    st.integers(NOW * 10**6, (NOW + 1000) * 10**6).map(str),
    st.lists(st.integers()),
)


@given(st.dictionaries(st.sampled_from([START, DAEMON]), anything))
def test_whatever_stands_there_it_is_a_time_that_can_be_or_none(environ):
    said = queue_time(environ)
    assert said is None or (type(said) is float and 0.0 <= said <= 600.0)


@given(st.integers(NOW * 10**6, (NOW + 10**6) * 10**6), st.integers(0, 600 * 10**6 - 1))
def test_every_format_says_the_same(start, waited):
    end = start + waited
    old = {START: str(start), DAEMON: str(end)}
    new = {START: start / 1e6, DAEMON: end / 1e6}
    assert queue_time(old) == queue_time(new) == pytest.approx(waited / 1e6, abs=1e-6)


# The adapters


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "wsgi.31452.0.1.sock"))
        listener.listen(20)
        yield listener


@pytest.fixture
def clients(listener):
    """Come to the door and wait."""
    open_ones = []

    def clients(count):
        for _ in range(count):
            client = socket.socket(socket.AF_UNIX)
            open_ones.append(client)
            client.connect(listener.getsockname())

    yield clients
    for client in open_ones:
        client.close()


@pytest.fixture
def mod_wsgi(monkeypatch):
    """The module as it is in a daemon process group of one process with four threads."""
    module = types.ModuleType("mod_wsgi")
    module.process_group = "app"
    module.maximum_processes, module.threads_per_process = 1, 4
    module.active_requests = {}
    module.told = []
    module.subscribe_shutdown = module.told.append
    monkeypatch.setitem(sys.modules, "mod_wsgi", module)
    return module


def test_a_group_of_one_process_is_read_as_it_is(mod_wsgi, listener, clients):
    adapter = ModWsgiAdapter()
    assert adapter.read() == Load(0, 0, 4)
    mod_wsgi.active_requests.update(one={}, two={})
    clients(3)
    assert adapter.read() == Load(3, 2, 4)
    listener.close()
    assert adapter.read() is None


def test_in_a_group_of_several_all_are_taken_to_be_active_while_one_waits(
    mod_wsgi, listener, clients
):
    mod_wsgi.maximum_processes = 3
    adapter = ModWsgiAdapter()
    mod_wsgi.active_requests.update(one={}, two={})
    assert adapter.read() == Load(0, 2, 12)
    clients(1)
    assert adapter.read() == Load(1, 12, 12)
    assert ProcessAdapter().read() == Load(1, 2, 4)


def test_in_embedded_mode_only_the_active_are_known(mod_wsgi):
    mod_wsgi.process_group = ""
    mod_wsgi.active_requests.update(one={}, two={})
    adapter = ModWsgiAdapter()
    assert adapter.read() == Load(0, 2, None)
    assert repr(adapter) == "<ModWsgiAdapter: embedded; no queue, no capacity>"


def test_the_check_for_which_it_is_read_is_not_counted(mod_wsgi, listener, ask):
    mod_wsgi.active_requests.update(check={})
    assert "active=0" in ask(guarded_app(print, expose_load=True), "OPTIONS", "/").text


def test_a_listener_of_the_app_is_told_from_the_groups(mod_wsgi, listener, tmp_path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "own"))
        other.listen()
        assert ModWsgiAdapter().read() == Load(0, 0, 4)
        assert listener.getsockname() in repr(ModWsgiAdapter())


def test_without_a_listener_it_says_what_was_expected(mod_wsgi):
    with pytest.raises(RuntimeError, match=r"^expected one Unix listener, .*, not \[\]$"):
        ModWsgiAdapter()


def test_outside_apache_it_says_so(monkeypatch):
    for module in (None, types.ModuleType("mod_wsgi")):  # PyPI's can be imported anywhere
        monkeypatch.setitem(sys.modules, "mod_wsgi", module)
        with pytest.raises(RuntimeError, match=r"^expected to run inside Apache with mod_wsgi"):
            ModWsgiAdapter()


def test_a_process_is_on_the_board_until_it_shuts_down(mod_wsgi, listener):
    board = Board()
    guard = guarded_app(print, board=board)
    try:
        assert [(row.state, row.load) for row in board.rows()] == [("ready", Load(0, 0, 4))]
        assert guard.monitor.check("exact").word == "free"
        [shuts_down] = mod_wsgi.told
        shuts_down("process_stopping", shutdown_reason="")
        assert [row.state for row in board.rows()] == ["stopping"]
        assert guard.monitor.check("exact").word == "draining"
    finally:
        guard.monitor.adapter.stop()
        guard.monitor.adapter.leave()


def test_an_old_mod_wsgi_tells_nothing_of_its_shutdown(mod_wsgi, listener):
    del mod_wsgi.subscribe_shutdown
    assert isinstance(guarded_app(print), BusyGuard)
