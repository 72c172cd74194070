"""Dials for the tests to turn: a clock, an adapter, a deadline, and a call through a lint."""

from __future__ import annotations

import gc
import io
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from typing import NamedTuple
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from hypothesis import HealthCheck, settings
from werkzeug.middleware.lint import LintMiddleware

from wsgi_busyguard import Load
from wsgi_busyguard._support import launcher

with warnings.catch_warnings():  # WebTest imports WebOb, and that cgi, which warns
    warnings.simplefilter("ignore", DeprecationWarning)
    from webtest.lint import middleware as webtest_lint

ROOT = pathlib.Path(__file__).parents[1]

pytest_plugins = ["support.fixtures"]

# Whoever starts the tests in the background of a shell has them ignore Ctrl-C, and so would every
# program that they start and tell to end by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The machine may be busy elsewhere, and a first text of Hypothesis takes seconds on a new one.
patient = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("patient", settings.default, **patient)
settings.register_profile("quick", settings.default, max_examples=25, **patient)

# All are errors but one that is not ours: a fork in a process that has threads, which is what some
# of these tests are about.
WARNINGS = [
    *("-W", "error"),
    *("-W", "ignore:This process:DeprecationWarning"),
]

# Seconds within which what must happen has happened, even on a machine that is busy elsewhere.
DEADLINE = 20.0


class Clock:
    """Monotonic seconds that move when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeAdapter:
    """Reads what it is told to; an exception is raised."""

    def __init__(self) -> None:
        self.load = Load(0, 0, 4)
        self.looks = 0

    def read(self):
        self.looks += 1
        if isinstance(self.load, BaseException):
            raise self.load
        return self.load


class Telling(FakeAdapter):
    """Notices by itself when its load changes."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = []

    def subscribe(self, changed) -> None:
        self.changed.append(changed)

    def set(self, load) -> None:
        self.load = load
        for changed in self.changed:
            changed()


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    text: str


@pytest.fixture(autouse=True)
def no_thread_is_left_to_be_started():
    """Else what one test could not start is started in another, and logged there."""
    yield
    launcher._postponed.clear()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def adapter():
    return FakeAdapter()


@pytest.fixture
def telling():
    return Telling()


@pytest.fixture
def until():
    """Wait for a condition, and fail if it does not come."""

    def until(condition):
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, "the condition did not come"
            time.sleep(0.001)

    return until


@pytest.fixture
def start(until):
    """Start a function in a thread of its own; all are joined, and what they raised is raised."""
    threads, raised = [], []

    def start(work, *args):
        def run():
            try:
                work(*args)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=run, daemon=True)
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive(), "a thread is stuck"
    if raised:
        raise raised[0]


@pytest.fixture
def hurry():
    """Have threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def python():
    """Run a script in a fresh interpreter that raises its warnings, and return its output."""

    def python(script, *args):
        done = subprocess.run(
            [sys.executable, *WARNINGS, "-c", textwrap.dedent(script), *args],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    return python


@pytest.fixture
def environ():
    """Build the environ of a request."""

    def environ(method="GET", path="/", query="", script="", **more):
        built = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": script,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
            "REMOTE_ADDR": "127.0.0.1",
            **more,
        }
        setup_testing_defaults(built)
        return built

    return environ


@pytest.fixture(
    params=[validator, LintMiddleware, webtest_lint], ids=["wsgiref", "werkzeug", "webtest"]
)
def lint(request):
    """A middleware that looks for breaches of PEP 3333, on either side of it."""
    return request.param


@pytest.fixture
def ask(lint, environ):
    """Ask a WSGI app as a server would, with a lint in between."""

    def ask(app, *args, **more):
        got = []

        def start_response(status, headers, exc_info=None):
            got[:] = [status, headers]
            return lambda data: None

        with warnings.catch_warnings():
            if "HEAD" in args:  # which Werkzeug's lint has not heard of
                warnings.filterwarnings("ignore", "Content-Length and the number of bytes")
            body = lint(app)(environ(*args, **more), start_response)
            try:
                data = b"".join(body)
            finally:
                close = getattr(body, "close", None)
                if close is not None:
                    close()
        status, headers = got
        assert len({name.lower() for name, _ in headers}) == len(headers)
        return Response(int(status[:3]), dict(headers), data, data.decode())

    return ask


REAL = ("servers", "balancers", "frameworks", "hostile", "chaos")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also run what is slow")
    parser.addoption(
        "--seconds", type=float, help="how long each fuzz target (3) and each chaos (20) go on"
    )
    parser.addoption("--seed", type=int, help="of chaos; chosen and printed beside --seconds alone")


def only_quick(config):
    """Whether what is slow is left out: nothing is named, and not everything is asked for."""
    named = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    return not (named or config.getoption("--all"))


def pytest_configure(config):
    """Try a quarter of the examples where all quick tests are run by hand, and all in CI."""
    few = only_quick(config) and not os.environ.get("CI")
    settings.load_profile("quick" if few else "patient")


def pytest_collection_finish():
    """Have the collector leave alone what is there for good: 200 tests have it run, 0.1 s each."""
    gc.collect()
    gc.freeze()


def pytest_ignore_collect(collection_path, config):
    """Leave alone the files of which all tests would be left out.

    They import every server, balancer and framework, which takes as long as a thousand quick tests.
    """
    tests = ROOT / "tests"
    if not (only_quick(config) and collection_path.is_relative_to(tests)):
        return None
    folder, *others = collection_path.relative_to(tests).parts or ("",)
    is_file = bool(others) and collection_path.name.startswith("test_")
    if folder in REAL and is_file and "mark.smoke" not in collection_path.read_text():
        return True
    return None


def pytest_collection_modifyitems(config, items):
    """Mark tests by their folders; leave out what is slow unless it is asked for."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        item.add_marker(folder)
        if folder in REAL and item.get_closest_marker("smoke") is None:
            item.add_marker("slow")
    if not only_quick(config):
        return
    slow = [item for item in items if item.get_closest_marker("slow") is not None]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item.get_closest_marker("slow") is None]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fail what is skipped in CI: there a missing server is somebody's mistake."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {call.excinfo.value}"
    return report
