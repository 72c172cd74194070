"""Does a comparison of two runs see what got worse, and nothing else? Does the quick set?"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def compare() -> Any:
    return imported("compare")


@pytest.fixture(scope="module")
def quick() -> Any:
    for peer in ("django", "opentelemetry.instrumentation.wsgi", "prometheus_client", "whitenoise"):
        pytest.importorskip(peer)
    return imported("quick")


def imported(name: str) -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def a_run(compare: Any, ratio: float, seed: int, better: str = "less", noise: float = 0.1) -> Any:
    """The figure of a run of 50 rounds, each of which is off by some noise."""
    dice = random.Random(seed)
    figures = sys.modules["figures"]
    return figures.figure([ratio * dice.gauss(1, noise) for _ in range(50)], better)


def change(compare: Any, before: Any, after: Any) -> Any:
    (found,) = compare.changes({"x": before}, {"x": after})
    return found


@pytest.mark.parametrize("better", ["less", "more"])
def test_noise_is_no_worsening(compare: Any, better: str) -> None:
    for seed in range(200):
        before, after = (a_run(compare, 2.5, 2 * seed + n, better) for n in (0, 1))
        assert not change(compare, before, after).is_worse


@pytest.mark.parametrize(("better", "worse"), [("less", 1.5), ("more", 1 / 1.5)])
def test_a_worsening_by_half_is_seen_through_a_noise_of_a_tenth(
    compare: Any, better: str, worse: float
) -> None:
    for seed in range(200):
        before = a_run(compare, 2.5, 2 * seed, better)
        after = a_run(compare, 2.5 * worse, 2 * seed + 1, better)
        assert change(compare, before, after).is_worse
        back = change(compare, after, before)
        assert back.is_better
        assert not back.is_worse


def test_in_quiet_runs_a_tenth_is_seen_and_a_twentieth_is_not(compare: Any) -> None:
    before = a_run(compare, 1.0, 1, noise=0.005)
    assert change(compare, before, a_run(compare, 1.1, 2, noise=0.005)).is_worse
    assert not change(compare, before, a_run(compare, 1.04, 3, noise=0.005)).is_worse


def in_processes(
    ratio: float, dice: random.Random, off: float = 0.05, odd: float = 0.0, better: str = "less"
) -> Any:
    """The figure of a run of ten processes; some may be a fifth slower than the others."""
    medians = [ratio * dice.gauss(1, off) * (1.2 if dice.random() < odd else 1) for _ in range(10)]
    low, middle, high = statistics.quantiles(medians, n=4)
    return sys.modules["figures"].Figure(middle, low, high, better, tuple(medians))


@pytest.mark.parametrize("odd", [0.0, 0.25], ids="{:.0%} slower by chance".format)
def test_of_forty_comparisons_of_equal_code_hardly_one_calls_any_figure_worse(
    compare: Any, odd: float
) -> None:
    """Each figure by itself would be called worse in one of twenty, and there are forty-six."""
    dice, called = random.Random(1), 0
    for _ in range(40):
        runs = ({f"{n}": in_processes(2.5, dice, odd=odd) for n in range(46)} for _ in range(2))
        called += any(found.is_worse for found in compare.changes(*runs))
    assert called <= 3  # one is to be expected; more than three in one of fifty such tests


@pytest.mark.parametrize(("better", "worse"), [("less", 1.15), ("more", 1 / 1.15)])
def test_one_figure_of_many_that_is_a_seventh_worse_is_seen(
    compare: Any, better: str, worse: float
) -> None:
    dice, seen = random.Random(1), 0
    for _ in range(10):
        before, after = (
            {f"{n}": in_processes(2.5, dice, better=better) for n in range(46)} for _ in range(2)
        )
        after["0"] = in_processes(2.5 * worse, dice, better=better)
        found = {each.name: each for each in compare.changes(before, after)}
        seen += found["0"].is_worse
    assert seen >= 8


def test_the_tail_of_students_distribution_is_that_of_the_tables(compare: Any) -> None:
    for degrees, t, tail in ((4, 2.776, 0.025), (8, 4.501, 0.001), (14, 1.761, 0.05), (7, 0, 0.5)):
        assert compare.beyond(t, degrees) == pytest.approx(tail, rel=0.01)


def test_holm_goes_on_until_one_may_be_chance(compare: Any) -> None:
    assert compare.apart({"a": 0.02, "b": 0.01, "c": 0.2}) == {"a", "b"}
    assert compare.apart({"a": 0.02, "b": 0.04, "c": 0.2}) == set()


def test_a_noisy_run_hides_what_a_quiet_one_shows(compare: Any) -> None:
    quiet, noisy = a_run(compare, 1.0, 1, noise=0.01), a_run(compare, 1.2, 2, noise=0.3)
    assert not change(compare, quiet, noisy).is_worse
    assert not change(compare, noisy, quiet).is_better


def files(folder: Path, **ratios: float) -> list[str]:
    found = []
    for name, ratio in ratios.items():
        said = {"ratio": ratio, "low": ratio - 0.01, "high": ratio + 0.01, "us": 3.0}
        file = folder / f"{name}.json"
        file.write_text(json.dumps({"figures": {"gate": said}}))
        found.append(str(file))
    return found


def told(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "compare.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command_fails_on_a_worsening_and_names_it(tmp_path: Path) -> None:
    said = told(*files(tmp_path, before=2.5, after=3.5))
    assert said.returncode == 1
    assert said.stderr == "worse: gate\n"
    assert "WORSE" in said.stdout


def test_the_command_is_content_with_two_equal_runs(tmp_path: Path) -> None:
    said = told(*files(tmp_path, before=2.5, after=2.51))
    assert (said.returncode, said.stderr) == (0, "")
    assert "WORSE" not in said.stdout


def test_a_file_without_figures_is_a_mistake_and_no_success(tmp_path: Path) -> None:
    (before,) = files(tmp_path, before=2.5)
    (tmp_path / "other.json").write_text("{}")
    said = told(before, str(tmp_path / "other.json"))
    assert said.returncode == 2
    assert "has no figures" in said.stderr


def part(quick: Any, *measured: dict[str, float]) -> Any:
    runs = iter(measured)
    held = [quick.Held("cost", 3.0), quick.Held("served", 0.8, least=True)]
    return quick.Part(lambda: next(runs), held)


def test_what_is_kept_is_measured_once(quick: Any) -> None:
    found = {"cost": 2.5, "served": 0.97}
    assert quick.best(part(quick, found)) == found


def test_noise_that_comes_once_misses_nothing(quick: Any) -> None:
    runs = {"cost": 4.5, "served": 0.9}, {"cost": 2.5, "served": 0.5}
    assert quick.best(part(quick, *runs)) == {"cost": 2.5, "served": 0.9}


def test_a_fault_is_missed_three_times_out_of_three(quick: Any) -> None:
    runs = [{"cost": 2.5, "served": served} for served in (0.4, 0.6, 0.5)]
    found = quick.best(part(quick, *runs))
    assert found["served"] == 0.6
    assert "MISSED" in quick.line(quick.Held("served", 0.8, least=True), found["served"])


def test_what_a_busy_machine_could_not_measure_is_said_and_breaks_nothing(quick: Any) -> None:
    found = quick.best(part(quick, {"cost": 2.5}, {"cost": 2.5}, {"cost": 2.5}))
    assert found["served"] is None
    assert "not counted" in quick.line(quick.Held("served", 0.8, least=True), None)


OUTSIDE = {
    "seconds": {
        "twisted": {
            "hangs": [1, 3],
            "served": {"nothing": [100, 0, 0, 50], "bulkhead": [100] * 4},
        }
    }
}
SERIES = {
    "visits": [[0.5, 0.2], [1.5, None], [2.5, 0.1]],
    "checks": [[0.1, 0.001, True], [1.1, 2.0, False]],
    "queues": [[0.5, 0, 3], [0.5, 1, 2]],
    "balancers": [[0.5, 4, 3, 3], [1.5, 0, 3, 3]],
}
DEMO = {
    "seconds": 3.1,
    "patience": 2.0,
    "timeline": {"before": 1.0, "blip": 1.0, "after": 1.0},
    "acts": [{"name": "one", "title": "as it was", "text": "no guard", "series": SERIES}],
}


@pytest.mark.slow
def test_a_picture_is_drawn_of_the_report_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "run.json").write_text(json.dumps(OUTSIDE))
    picture = tmp_path / "run.png"
    command = [sys.executable, str(BENCHMARKS / "plot.py"), str(tmp_path / "run.json")]
    subprocess.run([*command, str(picture)], check=True, timeout=60)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_demos_picture_is_drawn_of_its_report_too(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "demo.png"
    imported("plot").draw_report(DEMO, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
