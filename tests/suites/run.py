"""Runs servers' own tests with guarded servers in place of the stock ones.

``python tests/suites/run.py [NAME...]``, by hand and before a release. A suite that is not
installed with its server comes in a source distribution, which pip fetches; what cheroot's needs
is the extra ``suites``. Ends with 1 if other tests fail than those that are known to.
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
HALF = (
    "a part of a head, which the guard gives no thread: it waits for the rest, and closes it itself"
)
WRAPPED = "looks for its own app at the server, which has the guarded one"
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
    "gunicorn": (
        [
            *("tests/test_gthread.py", "tests/test_gthread_keepalive_shutdown.py"),
            *("tests/workers", "tests/test_http2_live.py"),
            *("tests/test_control_socket_integration.py", "-k", "not asgi"),
        ],
        {},
    ),
    "cheroot": (
        [
            "--pyargs",
            *(f"cheroot.test.test_{name}" for name in ("conn", "core", "server", "wsgi")),
        ],
        {
            "test_broken_connection_during_tcp_fin": HALF,
            "test_broken_connection_during_http_communication_fallback": HALF,
            "test_remains_alive_post_unhandled_exception": HALF,
            "test_kb_int_from_http_handler": WRAPPED,
            "test_unhandled_exception_in_request_handler": WRAPPED,
            "test_parse_uri_asterisk_uri": "OPTIONS * is a check",
        },
    ),
}
SLOWEST = 30
IN_SOURCES = {"waitress", "gunicorn"}


def ran(name: str, folder: Path) -> tuple[int, set[str], str]:
    """Return how many tests passed, which failed, and all that pytest said."""
    tests, _ = SUITES[name]
    if name in IN_SOURCES:
        folder = sources(name, folder)
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    options = ["-q", "-c", os.devnull, "-p", "no:cacheprovider", "-p", f"{name}_guarded"]
    options += [f"--timeout={SLOWEST}"]  # one that waits for what the guard does not do ends, too
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
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", done.stdout, re.MULTILINE))
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
