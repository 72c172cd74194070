"""What counts as lost: by whom a request was accepted, and whether that was killed meanwhile."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest
from support.chaos import Asked, Sent
from support.losses import LATE_SECONDS

KILLED, OTHER, VISITOR = 11, 12, 40_000


@pytest.fixture
def accepted(accepts):
    """Has a process accept a connection, from a port, at a time."""
    said = os.open(accepts.fifo, os.O_WRONLY)
    yield lambda pid, port, at: os.write(said, b"%d %d %.9f\n" % (port, pid, at))
    os.close(said)


def asked(began=1.0, ended=3.0, status=-1, spoke=None):
    return Asked(began, ended, status, "", VISITOR, began if spoke is None else spoke)


CASES = {
    "in flight in the process that was killed": (KILLED, asked(), True),
    "accepted by another process": (OTHER, asked(), False),
    "refused by another process": (OTHER, asked(status=503), False),
    "cut off before the process was killed": (KILLED, asked(ended=1.5), False),
    "accepted by nobody, before the kill": (None, asked(ended=1.5), False),
    "accepted by nobody, after the kill": (None, asked(began=2.5), False),
    "accepted by the process that was killed a moment later": (None, asked(), True),
    "silent for so long that a process that ends gives up": (
        OTHER,
        asked(spoke=1.0 + LATE_SECONDS),
        True,
    ),
}


@pytest.mark.parametrize(("pid", "one", "is_in_flight"), CASES.values(), ids=CASES)
def test_a_request_is_lost_unless_its_process_was_killed(accepts, accepted, pid, one, is_in_flight):
    accepted(OTHER, VISITOR, 0.5)  # another visitor, from the same port, before
    if pid is not None:
        accepted(pid, VISITOR, 1.1)
    lost = accepts.lost([one], [Sent(KILLED, 2.0, 2.1)])
    assert lost == ([] if is_in_flight else [(pid, one)])


def test_each_kill_has_one_that_nobody_has_accepted_at_the_most(accepts):
    one, two = asked(), asked(ended=4.0)
    assert accepts.lost([one, two], [Sent(KILLED, 2.0, 2.1)]) == [(None, two)]
    assert accepts.lost([one, two], [Sent(KILLED, 2.0, 2.1), Sent(OTHER, 2.2, 2.3)]) == []


@pytest.mark.parametrize("pid", [KILLED, OTHER])
def test_behind_a_haproxy_its_log_says_from_which_port_a_request_was_passed_on(
    accepts, accepted, pid
):
    accepted(pid, 50_000, 1.1)
    wall = time.time() - time.monotonic()
    lines = [f"asked {VISITOR} 50000 {(wall + 1) * 1000:.0f}\n", "Server app/web1 is DOWN\n"]
    balancer, one = SimpleNamespace(popen=SimpleNamespace(pid=13), lines=lines), asked(status=502)
    lost = accepts.lost_behind([balancer], SimpleNamespace(all=[one]), [Sent(KILLED, 2.0, 2.1)])
    assert lost == ([] if pid == KILLED else [(OTHER, one)])


def test_what_was_in_flight_in_a_haproxy_that_was_killed_is_not_lost_by_its_workers(accepts):
    balancer, one = SimpleNamespace(popen=SimpleNamespace(pid=13), lines=[]), asked()
    for pid, lost in {13: [], 14: [(None, one)]}.items():
        killed = [Sent(pid, 2.0, 2.1)]
        assert accepts.lost_behind([balancer], SimpleNamespace(all=[one]), killed) == lost
