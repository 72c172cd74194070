"""How many connections a worker takes in while others wait in the kernel."""

from __future__ import annotations

import pytest

from wsgi_busyguard.adapters.gunicorn.backlog import AT_ONCE, CROWD_SECONDS, Backlog


class World:
    """A worker with so many requests that wait, and so many connections in the kernel."""

    def __init__(self, queued, in_kernel):
        self.now, self.queued, self.in_kernel, self.accepted = 0.0, queued, in_kernel, 0
        self.backlog = Backlog(lambda: self.queued, lambda: self.now)

    def accept(self):
        if not self.in_kernel:
            return False
        self.in_kernel -= 1
        self.accepted += 1
        return True

    def take_in(self):
        before = self.accepted
        self.backlog.take_in(self.accept)
        return self.accepted - before


@pytest.mark.parametrize(
    ("queued", "in_kernel", "taken"),
    [(0, 5, 1), (0, 0, 0), (1, 5, 5), (1, 0, 0), (1, 1000, AT_ONCE)],
)
def test_one_at_a_time_is_taken_in_while_nobody_waits_and_else_what_there_is(
    queued, in_kernel, taken
):
    assert World(queued, in_kernel).take_in() == taken


def test_for_a_moment_after_somebody_has_waited_there_may_be_others_in_the_kernel():
    world = World(queued=1, in_kernel=1000)
    world.take_in()
    world.queued = 0  # those who waited have left, say
    world.now = CROWD_SECONDS / 2
    assert world.take_in() == AT_ONCE
    world.now = CROWD_SECONDS
    assert world.take_in() == 1
