"""Do the benchmarks run, and do their bounds hold, with slack for a machine that is busy?

What the guard costs a request and a check is held by ``benchmarks/quick.py``, which .ci/run runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.alone, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SLACK = 1.25


def test_a_scrape_of_sixteen_processes_is_soon_done(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "metrics.py"), "--scrapes-only"]
    done = subprocess.run(
        [*command, "--json", str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["scrapes"]["16"]
    # CPU time; what a client waits on a machine that is busy elsewhere is for the benchmark to say.
    assert max(found[way] for way in ("look", "text", "openmetrics")) <= 5 * SLACK
