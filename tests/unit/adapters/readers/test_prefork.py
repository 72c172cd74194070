from __future__ import annotations

import os

from wsgi_busyguard import Board, Load
from wsgi_busyguard.adapters.readers.prefork import Share
from wsgi_busyguard.board import Row


class Rows:
    """A board on which these processes are."""

    def __init__(self, *processes):
        self._rows = [Row(pid, state, Load(0, 0, 1), 0.0, 0, 0, 0) for pid, state in processes]

    def rows(self):
        return self._rows


ME = os.getpid()


def read(adapter, *processes):
    return Share(Rows(*processes), adapter).read()


def test_the_process_of_the_lowest_id_posts_the_queue(adapter):
    adapter.load = Load(7, 2, 4)
    assert read(adapter) == Load(7, 2, 4)
    assert read(adapter, (ME, "ready"), (ME + 1, "ready")) == Load(7, 2, 4)
    assert read(adapter, (ME - 1, "ready"), (ME, "ready")) == Load(0, 2, 4)


def test_one_that_is_starting_or_stopping_speaks_for_nobody(adapter):
    adapter.load = Load(7, 2, 4)
    assert read(adapter, (ME - 1, "stopping"), (ME - 2, "starting"), (ME, "ready")).queued == 7


def test_what_nobody_knows_is_shared_as_that(adapter):
    adapter.load = None
    assert read(adapter, (ME - 1, "ready")) is None


def test_alone_on_a_real_board_it_speaks(adapter):
    adapter.load = Load(7, 2, 4)
    assert Share(Board(), adapter).read() == Load(7, 2, 4)
