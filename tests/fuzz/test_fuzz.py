"""Each parser before bytes that nobody would send: those that are known, then new ones.

By itself these are always the same, on any machine (machine.py), so that what breaks a target was
broken by a change.
``pytest tests/fuzz -n 2 --seconds 600`` has others each time, for an hour or so. What breaks a
target is printed; it belongs into the target's corpus once the parser is mended.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
TARGETS = sorted(folder.name for folder in CORPUS.iterdir())
KNOWN = sorted(file for file in CORPUS.glob("*/*"))

# So many by themselves, for so long at most.
RUNS, SECONDS = 5000, 10


@pytest.mark.parametrize("file", KNOWN, ids=lambda file: f"{file.parent.name}, {file.name}")
def test_known_bytes(file):
    importlib.import_module(f"fuzz.{file.parent.name}").target(file.read_bytes())


@pytest.mark.slow
@pytest.mark.timeout(0)  # it ends by itself
@pytest.mark.parametrize("name", TARGETS)
def test_new_bytes(name, tmp_path, pytestconfig):
    pytest.importorskip("atheris")
    words = HERE / ("haproxy.dict" if name == "config_linter" else "http.dict")
    seconds = pytestconfig.getoption("--seconds")
    arguments = [f"-max_total_time={seconds or SECONDS:.0f}"]
    arguments += [f"-artifact_prefix={tmp_path}/", f"-dict={words}"]
    # Files in their order, for each file system has one of its own, and none read once more, as
    # libFuzzer does each second.
    known = ",".join(str(file) for file in KNOWN if file.parent.name == name)
    arguments += ["-max_len=2000", "-reload=0", f"-seed_inputs={known}"]
    arguments += [] if seconds else ["-seed=1", f"-runs={RUNS}"]
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", name, *arguments, tmp_path],
        cwd=HERE.parent,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=lambda: os.nice(5),  # the tests of servers beside it go first
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "DONE" in done.stdout
