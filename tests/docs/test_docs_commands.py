"""The commands of other programs that the pages show: run, or looked at by a test that is named."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from wsgiref.simple_server import make_server

import pytest
from support.processes import environment

from docs.test_docs import BLOCK, PAGES, ROOT, blocks, commands, table_of_servers
from wsgi_busyguard import BusyGuard, Load, Monitor
from wsgi_busyguard.checkport import CheckPort
from wsgi_busyguard.metrics.orca import Rates, report

# Where the commands of each kind are run or understood.
LOOKED_AT = {
    "busyguard": "test_docs.py: its arguments; test_check, test_demo, integration/: runs",
    "twist": "test_docs.py: its arguments; servers/test_twist.py: runs",
    "pip": "test_docs.py: the extras are there; test_package.py: the wheel installs",
    "sphinx-build": "test_docs.py: the docs build",
    "pytest": "you are looking at it",
    "python": "test_docs_frameworks.py: run",
    "flask": "test_docs_frameworks.py: its arguments; frameworks/test_flask.py: run",
    "uwsgi": "test_docs_frameworks.py: run; servers/test_uwsgi.py",
    "gunicorn": "here: its configuration is checked; test_docs_frameworks.py: run",
    "waitress-serve": "here: its arguments; test_docs_frameworks.py: run",
    "curl": "here: run",
    "export": "a variable for the command after it",
    "granian": "here: its arguments; servers/test_gate_anywhere.py: run",
    "django-admin": "test_tutorial.py: run",
    "sleep": "a pause before the command after it",
    "mkdir": "a folder for the command after it",
    "systemctl": "test_recipes.py: its unit is run",
    ".": "a virtual environment, before what is installed there",
}


# Where blocks that are neither Python nor commands are read by what they are for.
READ_BY = {
    ("README.rst", "text"): "test_docs.py: haproxy -c",
    ("README.rst", "ini"): "test_docs_frameworks.py: part of paste.rst's",
    ("paste.rst", "ini"): "test_docs_frameworks.py: PasteDeploy",
    ("balancers.rst", "text"): "here: the report has these names",
    ("balancers.rst", "yaml"): "balancers/test_envoy.py: run, as part of envoy.yaml",
    ("metrics.rst", "yaml"): "servers/test_prometheus.py: promtool",
    ("dryrun.rst", "text"): "test_dry_run.py: compared",
    ("haproxy.rst", "text"): "test_docs.py: haproxy -c",
    ("servers.rst", "text"): "test_few_threads in servers/test_gate_anywhere.py: these words",
    ("cli.rst", "docker"): "test_check.py: what it runs",
    ("cli.rst", "text"): "servers/test_serve.py: such a line",
    ("uwsgi.rst", "ini"): "servers/test_uwsgi.py: run",
    ("options.rst", "text"): "unit/gate/test_limits_in_force.py",
    ("uwsgi.rst", "py"): "servers/test_uwsgi.py: run",
    ("mod_wsgi.rst", "apache"): "servers/test_mod_wsgi.py: run, with paths of its own",
    ("tutorial.rst", "py"): "test_tutorial.py: run",
    ("tutorial.rst", "text"): "test_tutorial.py: compared, but for what depends on the machine",
    ("stopping.rst", "ini"): "cli/test_drain.py: such a command",
    ("stopping.rst", "text"): "balancers/test_haproxy.py: such a command",
    ("mod_wsgi.rst", "py"): "servers/test_mod_wsgi.py: run, with paths of its own",
}


def words_of(command: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables that are set in front of a command, and its words."""
    words = shlex.split(command)
    variables = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    return variables, words


def of(program: str) -> list[str]:
    return [one for one in dict.fromkeys(commands()) if words_of(one)[1][0] == program]


def test_no_command_is_shown_that_nobody_looks_at() -> None:
    programs = {words_of(command)[1][0] for command in commands()}
    assert programs <= set(LOOKED_AT)


def test_no_other_block_is_shown_that_nobody_looks_at() -> None:
    found = {
        (page.name, match["language"])
        for page in PAGES
        for match in BLOCK.finditer(page.read_text())
    }
    assert {one for one in found if one[1] not in ("python", "console")} <= set(READ_BY)


def test_a_report_looks_as_it_is_shown() -> None:
    [(_, shown)] = blocks(ROOT / "docs" / "balancers.rst", "text")
    name, _, value = shown.strip().partition(": ")
    assert name == "endpoint-load-metrics"
    told = report(Load(2, 8, 8), Rates(41.3, 0.2))
    assert json.loads(value.removeprefix("JSON ")) == json.loads(told.removeprefix("JSON "))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the apps that the pages name."""
    folder = tmp_path_factory.mktemp("apps")
    app = "def application(environ, start_response):\n    return []\n"
    (folder / "mysite").mkdir()
    for name in ("app.py", "mysite/__init__.py", "mysite/wsgi.py"):
        (folder / name).write_text(app)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in of("gunicorn") if "django" not in c])
def test_gunicorn_understands_its_command(command, folder) -> None:
    variables, [_, *words] = words_of(command)
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--check-config", *words],
        env=environment(**variables),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [c for c in of("waitress-serve") if "django" not in c])
def test_waitress_understands_its_command(command) -> None:
    adjustments = pytest.importorskip("waitress.adjustments")
    _, [_, *words] = words_of(command)
    said, *rest = adjustments.Adjustments.parse_args(words)
    assert said["threads"] == "42"
    assert "mysite.wsgi:application" in (*rest[0], said.get("app"))


@pytest.mark.parametrize("command", of("granian"))
def test_granian_understands_its_command(command) -> None:
    granian = pytest.importorskip("granian.cli")
    _, [_, *words] = words_of(command)
    said = granian.cli.make_context("granian", words).params
    assert (said["app"], said["interface"]) == ("app:application", "wsgi")
    assert said["blocking_threads"] == 42


@pytest.fixture
def site(start, adapter):
    """A site and a check port; return what stands in commands, and what to put there."""
    monitor = Monitor(adapter)
    server = make_server("127.0.0.1", 0, BusyGuard(lambda e, s: [], monitor=monitor))
    server.RequestHandlerClass.log_message = lambda *_: None
    port = CheckPort(monitor, "127.0.0.1:0").start()
    thread = start(server.serve_forever, 0.01)
    yield {
        "127.0.0.1:8080": f"127.0.0.1:{server.server_port}",
        "127.0.0.1:8081": "{}:{}".format(*port.address),
    }
    server.shutdown()
    thread.join(10)
    server.server_close()
    port.stop()


SAYS = ("free", '{"status": "pass", "state": "free"}')


@pytest.mark.parametrize("command", of("curl"))
def test_curl_gets_an_answer(command, site) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl here")
    for shown, real in site.items():
        command = command.replace(shown, real)
    _, [_, *words] = words_of(command)
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run([curl, *words], capture_output=True, text=True, timeout=20, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout in SAYS or '"queued": 0' in done.stdout


def test_the_table_of_servers_gives_each_as_many_threads_as_the_gate_needs() -> None:
    slots = {row[0]: re.search(r"slots=(\d+)", row[1]) for row in table_of_servers()}
    assert len([one for one in slots.values() if one]) == 4
    for name, typed, *_, threads in table_of_servers():
        if slots[name]:
            assert int(threads) == 5 * int(slots[name][1]) + 2
            assert threads in typed
        elif threads != "none":
            assert re.search(rf"threads[= ]{threads}\b", typed)
