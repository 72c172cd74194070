from __future__ import annotations

import os

import pytest

from wsgi_busyguard import Board, Load
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.cli import main


class Fixed:
    def read(self):
        return Load(0, 1, 4)


@pytest.fixture
def publisher(tmp_path):
    publisher = Publisher(Board(tmp_path / "board"), Fixed())
    publisher.join()
    publisher.ready()
    yield publisher
    publisher.leave()


def drain(publisher, *more):
    return main(["drain", "--board", str(publisher.board.path), *more])


def test_it_says_whom_it_has_told(publisher, capsys):
    assert drain(publisher) == 0
    assert publisher.board.draining
    assert capsys.readouterr().out == f"draining: 1 process ({os.getpid()})\n"


def test_off_takes_it_back(publisher, capsys):
    drain(publisher)
    capsys.readouterr()
    assert drain(publisher, "--off") == 0
    assert not publisher.board.draining
    assert drain(publisher, "--off") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"no longer draining: 1 process ({os.getpid()})",
        "no longer draining: no process was",
    ]


def test_where_nobody_is_there_it_has_told_nobody(publisher, capsys):
    publisher.leave()
    assert drain(publisher) == 2
    assert "no process is on the board" in capsys.readouterr().err


def test_a_board_that_is_missing_is_not_made(tmp_path, capsys):
    assert main(["drain", "--board", str(tmp_path / "board")]) == 2
    assert "no board at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_board_is_said_in_one_line(tmp_path, capsys):
    (tmp_path / "notes").write_text("milk")
    assert main(["drain", "--board", str(tmp_path / "notes")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
