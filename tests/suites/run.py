"""Runs servers' own tests with guarded servers in place of the stock ones.

``python tests/suites/run.py [NAME...]``, by hand and before a release. A suite that is not
installed with its server comes in a source distribution, which pip fetches. Ends with 1 if other
tests fail than those that are known to.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent

# The tests of each, and those that fail, with the reason.
BEAT = "the guard looks after its queue on the reactor, which trial calls unclean"
SUITES = {
    "twisted": (
        ["--pyargs", "twisted.web.test.test_wsgi"],
        {
            "test_applicationCalledInThread": BEAT,
            "test_iteratedValuesWrittenFromThread": BEAT,
            "test_statusWrittenFromThread": BEAT,
            "test_writeCalledFromThread": BEAT,
        },
    ),
    "waitress": (["tests/test_functional.py"], {}),
}
IN_SOURCES = {"waitress"}


def ran(name: str, folder: Path) -> tuple[int, set[str], str]:
    """Return how many tests passed, which failed, and all that pytest said."""
    tests, _ = SUITES[name]
    if name in IN_SOURCES:
        folder = sources(name, folder)
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    options = ["-q", "-c", os.devnull, "-p", "no:cacheprovider", "-p", f"{name}_guarded"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", folder, *tests],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", done.stdout, re.MULTILINE))
    return int(passed[1]) if passed else 0, failed, done.stdout


def sources(name: str, folder: Path) -> Path:
    """Fetch the sources of the version that is installed; return where they are."""
    wanted = f"{name}=={version(name)}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "-d", folder, wanted], check=True)
    [archive] = folder.glob(f"{name}-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def main(names: list[str]) -> int:
    wrong = 0
    for name in names or SUITES:
        with tempfile.TemporaryDirectory() as folder:
            passed, failed, said = ran(name, Path(folder))
        known = SUITES[name][1]
        print(f"{name}: {passed} passed, {len(failed)} failed")
        for test in sorted(failed):
            print(f"  {test}: {known.get(test, 'not known')}")
        if not passed or failed != known.keys():
            wrong = 1
            print(said[-5000:])
    return wrong


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
