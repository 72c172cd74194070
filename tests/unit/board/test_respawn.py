"""A process that a server makes in the place of another."""

from __future__ import annotations

import errno
import os

import pytest

from wsgi_busyguard import Board, BusyGuard
from wsgi_busyguard.adapters import first_request as meeting
from wsgi_busyguard.adapters.detect import Server
from wsgi_busyguard.adapters.front.prefork import GuardedProcess
from wsgi_busyguard.board import membership as posting
from wsgi_busyguard.board import respawn as late
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.board.respawn import STARTING_SECONDS, is_late
from wsgi_busyguard.load import Load

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def born(monkeypatch):
    """Says when this process and its parent began, and whether this one listens."""

    def say(ours, servers, listens=True):
        begins = {os.getpid(): int(ours * TICKS), os.getppid(): int(servers * TICKS)}
        monkeypatch.setattr(late, "born", lambda pid, _: begins[pid])
        monkeypatch.setattr(late, "listens", lambda: listens)

    return say


@pytest.mark.parametrize(
    ("ours", "servers", "listens", "expected"),
    [
        (1001, 1000, True, False),
        (1001 + STARTING_SECONDS, 1000, True, True),
        (1001 + STARTING_SECONDS, 1000, False, False),  # a shell's child, say
        (0, 0, True, False),  # nobody knows
    ],
    ids=["at the start", "a respawn", "does not listen", "no /proc"],
)
def test_late_is_who_listens_and_is_much_younger_than_its_server(
    born, ours, servers, listens, expected
):
    born(ours, servers, listens)
    assert is_late() is expected


def test_this_process_is_not():
    assert not is_late()


@pytest.mark.parametrize("is_respawn", [False, True])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.EMFILE, None])
def test_a_board_that_cannot_be_opened_is_an_error_only_while_people_configure(
    monkeypatch, caplog, tmp_path, number, is_respawn
):
    error = ValueError("no board") if number is None else OSError(number, os.strerror(number))

    def fail(_):
        raise error

    monkeypatch.setattr(posting, "is_late", lambda: is_respawn)
    monkeypatch.setattr(posting.Board, "__init__", lambda *_: fail(_))
    if is_respawn or number == errno.EMFILE:
        board = posting.opened(tmp_path / "board")
        assert board.path == tmp_path / "board"
        assert [record.levelname for record in caplog.records] == ["ERROR"]
    else:
        with pytest.raises(type(error)):
            posting.opened(tmp_path / "board")
        assert caplog.records == []


def test_a_server_of_another_user_may_be_hidden(monkeypatch):
    def hidden(pid, _):
        if pid != os.getpid():
            raise PermissionError(errno.EPERM, "hidepid=1")
        return 10**9

    monkeypatch.setattr(late, "born", hidden)
    monkeypatch.setattr(late, "listens", lambda: True)
    assert not is_late()


@pytest.mark.parametrize("is_respawn", [False, True])
def test_too_few_threads_are_an_error_only_while_people_configure(
    monkeypatch, ask, caplog, is_respawn
):
    """A reload with other settings, say: gunicorn would end its master."""
    few = Server("Peanut", 4, start="peanut --threads={0}")
    monkeypatch.setattr(meeting, "find_early", lambda: few)
    monkeypatch.setattr(meeting, "find", lambda _: few)
    monkeypatch.setattr(meeting, "is_late", lambda: is_respawn)

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"served"]

    if not is_respawn:
        with pytest.raises(ValueError, match="threads=4 is too few"):
            BusyGuard(app, slots=8)
        return
    guard = BusyGuard(app, slots=8)
    assert ask(guard, path="/x").text == "served"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "threads=4 is too few" in caplog.text


class Idle:
    def read(self):
        return Load(0, 1, 4)

    def share(self, _):
        return self


def test_a_later_board_becomes_the_one_at_its_path(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    board = Board.later(folder / "board")
    now = [board.now()]
    monkeypatch.setattr(board, "_clock", lambda: now[0] / 1e9)
    publisher = Publisher(board, Idle())
    publisher.join()
    publisher.ready()
    publisher.beat()
    assert [row.pid for row in board.rows()] == [os.getpid()]
    assert not board.is_leader()  # others may be there
    now[0] += 2_000_000_000
    publisher.beat()
    assert not folder.exists()

    folder.mkdir()
    now[0] += 2_000_000_000
    publisher.beat()  # finds it
    now[0] += 2_000_000_000
    publisher.beat()
    assert [row.pid for row in Board(folder / "board").rows()] == [os.getpid()]
    assert board.is_leader()
    publisher.leave()
    assert Board(folder / "board").rows() == []


@pytest.mark.parametrize("slots", [None, 4])
def test_so_it_is_under_uwsgi_and_mod_wsgi(monkeypatch, tmp_path, slots):
    board = tmp_path / "missing" / "board"
    with pytest.raises(FileNotFoundError, match="is missing"):
        GuardedProcess(print, Idle, board=board, slots=slots)
    monkeypatch.setattr(posting, "is_late", lambda: True)
    guarded = GuardedProcess(print, Idle, board=board, slots=slots)
    guarded.begin()
    assert guarded.guard.monitor.check("always", 2.0)[0] == "free"
    guarded.end()
    guarded.guard.monitor.adapter.stop()
