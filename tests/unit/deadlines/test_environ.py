from __future__ import annotations

import time

import pytest

from wsgi_busyguard import Load, Monitor, remaining, under_pressure
from wsgi_busyguard.deadlines.environ import DEADLINE, MONITOR, WAITED, stamping


def test_the_names_are_the_promised_ones():
    assert (WAITED, MONITOR, DEADLINE) == (
        "busyguard.waited",
        "busyguard.monitor",
        "busyguard.deadline",
    )


def test_remaining_counts_down_to_the_deadline(monkeypatch, clock):
    monkeypatch.setattr(time, "monotonic", clock)
    environ = {DEADLINE: clock.now + 3.0}
    assert remaining(environ) == 3.0
    clock.now += 2.0
    assert remaining(environ) == 1.0


def test_remaining_is_never_below_zero():
    assert remaining({DEADLINE: time.monotonic() - 60.0}) == 0.0


def test_remaining_is_the_whole_client_timeout_where_nothing_was_stamped():
    assert remaining({}) == 5.0


def test_there_is_no_pressure_where_nothing_was_stamped():
    assert under_pressure({}) is False


def test_there_is_pressure_while_the_server_is_busy(adapter):
    environ = {MONITOR: Monitor(adapter)}
    assert under_pressure(environ) is False
    adapter.load = Load(9, 4, 4)
    assert under_pressure(environ) is True


@pytest.fixture
def seen():
    """What the app saw in its environ."""
    return {}


@pytest.fixture
def app(seen):
    def app(environ, start_response):
        seen.update(environ)
        return [b"app"]

    return app


def test_a_stamped_request_knows_its_deadline(monkeypatch, clock, app, seen):
    monkeypatch.setattr(time, "monotonic", clock)
    monitor = object()
    assert stamping(app, monitor, 3.0)({}, None) == [b"app"]
    assert seen == {WAITED: 0.0, MONITOR: monitor, DEADLINE: clock.now + 3.0}


def test_the_stamps_of_a_guard_in_front_stay(app, seen):
    """It knows when the request arrived and which queue it stood in; who is behind does not."""
    stamps = {WAITED: 0.7, MONITOR: object(), DEADLINE: 17.0}
    stamping(app, object(), 3.0)(dict(stamps), None)
    assert seen == stamps
