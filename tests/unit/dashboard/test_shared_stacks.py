"""In which lines the requests of all workers are, as the process above them reads it."""

from __future__ import annotations

import os

import pytest

from wsgi_busyguard import Board, Load
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.dashboard import shared_stacks
from wsgi_busyguard.dashboard.shared_stacks import SharedStacks
from wsgi_busyguard.dashboard.stack_lines import MOST_LINES, nothing, together


class Fixed:
    def __init__(self, **figures):
        self.figures = figures

    def read(self):
        return Load(0, 0, 4)

    def look(self):
        return seen(**self.figures)


def seen(threads=1, at="shop/rates.py:31 in today", oldest=1.0, complete=True):
    line = {"threads": threads, "at": at, "oldest": oldest}
    return {"threads": threads, "complete": complete, "lines": [line], "why": None}


@pytest.fixture
def board():
    return Board(slots=8)


@pytest.fixture
def shared(board, clock):
    return SharedStacks(board, clock)


@pytest.fixture
def worker(board):
    publisher = Publisher(board, Fixed())
    publisher.join()
    publisher.ready()
    return publisher


def test_the_same_line_of_several_workers_is_one_with_the_most_first():
    several = [
        seen(2, oldest=3.0),
        seen(1, oldest=41.0),
        seen(5, "shop/views.py:7 in home", oldest=None),
    ]
    assert together(several, complete=True) == {
        "threads": 8,
        "complete": True,
        "lines": [
            {"threads": 5, "at": "shop/views.py:7 in home", "oldest": None},
            {"threads": 3, "at": "shop/rates.py:31 in today", "oldest": 41.0},
        ],
        "why": None,
    }
    assert len(together([seen(at=f"{n}") for n in range(20)], complete=True)["lines"]) == MOST_LINES


def test_why_nothing_is_seen_is_told_only_where_no_worker_sees_anything():
    assert together([nothing("no"), nothing("no")], complete=True)["why"] == "no"
    some = together([nothing("no"), seen()], complete=True)
    assert (some["why"], some["threads"], some["complete"]) == (None, 1, False)


def test_workers_look_only_while_somebody_asks(shared, worker, clock):
    looks = []

    class Counted:
        def look(self):
            looks.append(1)
            return seen()

    shared.post(Counted())
    assert not looks
    assert shared.look()["why"] == "the workers have been asked; look again in a second"
    shared.post(Counted())
    assert looks
    clock.now += shared_stacks.WANTED_SECONDS
    shared.post(Counted())
    assert len(looks) == 1


def test_what_a_worker_wrote_is_read_by_the_process_above_it(shared, worker, clock):
    shared.look()
    (wrote, writes), (waits, goes) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(goes)
        publisher = Publisher(shared._board, Fixed())
        publisher.join()
        publisher.ready()
        shared.post(Fixed(threads=3))
        os.write(writes, b"x")
        os.read(waits, 1)
        os._exit(0)
    os.read(wrote, 1)
    clock.now += 1.0
    found = shared.look()
    assert (found["threads"], found["complete"], found["why"]) == (3, False, None)
    shared.post(Fixed(threads=2))
    clock.now += 1.0
    found = shared.look()
    assert (found["threads"], found["complete"], found["why"]) == (5, True, None)
    os.close(goes)
    os.waitpid(pid, 0)
    for descriptor in (wrote, writes, waits):
        os.close(descriptor)


def test_a_worker_that_does_not_answer_is_missing_and_all_that_do_not_are_told(
    shared, worker, clock
):
    for _ in range(4):
        shared.look()
        clock.now += 1.0
    assert shared.look()["why"] == "no worker has answered; none of them gets to run"


def test_lines_that_do_not_fit_are_left_out(shared, worker, clock):
    shared.look()

    class Long:
        def look(self):
            return {**seen(), "lines": [seen(at="x" * 3000)["lines"][0]] * 8}

    shared.post(Long())
    clock.now += 1.0
    assert len(shared.look()["lines"][0]["at"]) == 3000
    assert len(shared._read(0, os.getpid(), clock.now)["lines"]) == 2


def test_what_is_half_written_or_old_or_another_ones_is_not_shown(shared, worker, clock):
    shared.look()
    shared.post(Fixed())
    assert shared._read(0, os.getpid(), clock.now) == seen()
    assert shared._read(0, 1, clock.now) is None
    assert shared._read(0, os.getpid(), clock.now + shared_stacks.WANTED_SECONDS) is None
    shared._memory[shared_stacks.ROW_BYTES + 20] ^= 1
    assert shared._read(0, os.getpid(), clock.now) is None


def test_why_a_worker_cannot_be_seen_fits_however_long_it_is():
    body = shared_stacks._fitting({**nothing("\u2028" * 100_000)}, os.getpid(), 0.0)
    assert len(body) <= shared_stacks.ROW_BYTES - shared_stacks.HEAD.size
