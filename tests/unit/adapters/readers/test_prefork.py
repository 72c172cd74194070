from __future__ import annotations

import os

from wsgi_busyguard import Board, Load
from wsgi_busyguard.adapters.readers.prefork import share_of


class Led:
    """A board of which this process is the leader."""

    def __init__(self, pid):
        self._pid = pid

    def leader(self):
        return self._pid


def read(adapter, leader):
    return share_of(adapter, Led(leader)).read()


def test_the_leader_posts_the_queue(adapter):
    adapter.load = Load(7, 2, 4)
    assert read(adapter, None) == Load(7, 2, 4)
    assert read(adapter, os.getpid()) == Load(7, 2, 4)
    assert read(adapter, os.getpid() + 1) == Load(0, 2, 4)


def test_what_nobody_knows_is_shared_as_that(adapter):
    adapter.load = None
    assert read(adapter, os.getpid() + 1) is None


def test_alone_on_a_real_board_it_speaks(adapter):
    adapter.load = Load(7, 2, 4)
    assert share_of(adapter, Board()).read() == Load(7, 2, 4)
