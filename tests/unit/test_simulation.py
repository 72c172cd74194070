"""Does the simulated fleet say what the real one said, and do the defaults hold in it?"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fleet() -> Any:
    pytest.importorskip("simpy")
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("fleet")
    finally:
        sys.path.remove(folder)


@pytest.mark.parametrize("row", ["nothing", "gate, one retry", "gate, one retry, leastconn"])
def test_it_says_what_the_real_servers_and_balancers_said(fleet: Any, row: str) -> None:
    """Within four points of what balancing.py measured; the dice are the same each time."""
    for scenario in ("one slow", "blip"):
        measured = fleet.MEASURED[2, scenario][row]
        assert abs(fleet.simulated(2, scenario, row, seeds=3) - measured) <= 4, scenario


@pytest.mark.parametrize("scenario", ["steady", "synchronised probes", "one slow", "blip"])
def test_damped_costs_next_to_nothing_and_does_not_flap(fleet: Any, scenario: str) -> None:
    usual = fleet.Cell(scenario=scenario, load=1.2, times=fleet.Times(3.0, 8.0, 18.0, 30.0))
    (pair,) = fleet.compare([usual])
    assert pair.is_held, str(pair)


def test_an_overload_that_all_balancers_probe_at_once_takes_no_server_out(fleet: Any) -> None:
    """By an estimate without a limit they took one out and back fourteen times a minute."""
    cell = fleet.Cell(scenario="synchronised probes", rules=fleet.RULES[1], retry=False, load=2.0)
    times = fleet.Times(3.0, 8.0, 18.0, 30.0)
    assert fleet.play(cell._replace(seed=2, times=times)).most_changes == 0


def test_a_policy_that_flaps_is_seen_to_flap(fleet: Any) -> None:
    """The exact rule at a constant load is what the bounds are for."""
    usual = fleet.Cell(load=0.8)
    always, exact = (fleet.play(usual._replace(ready=ready)) for ready in ("always", "exact"))
    assert not fleet.Pair(usual, always, exact).is_held
    assert exact.most_changes > fleet.HELD_CHANGES


def test_each_request_ends_and_the_same_dice_fall_alike(fleet: Any) -> None:
    cell = fleet.Cell(servers=2, load=2.0, retry=True, times=fleet.Times(8.0, 9.0, 10.0, 14.0))
    first, second = fleet.play(cell), fleet.play(cell)
    assert first == second
    assert first.good <= 1 - first.refused
    assert 0.4 < first.good < 0.55  # of twice what can be served
