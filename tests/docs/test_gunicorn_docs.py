"""Is what docs/gunicorn.rst shows and says so? Every command and every configuration is run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.workers.gthread import ThreadWorker
from support.client import ask, check, eventually, figures
from support.processes import ROOT, environment

from wsgi_busyguard.adapters.gunicorn.known_names import KNOWN_PARAMETERS

PAGE = (ROOT / "docs" / "gunicorn.rst").read_text()
BLOCK = re.compile(
    r"^\.\. code-block:: (\w+)\n(?:   :caption: (.*)\n)?\n((?:(?:   .*)?\n)+)", re.MULTILINE
)
APP = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]
"""


def shown(language):
    """Return what the page shows in a language, with ports from the kernel."""
    found = [code for kind, _, code in BLOCK.findall(PAGE) if kind == language]
    lines = ["\n".join(line[3:] for line in code.splitlines()) + "\n" for code in found]
    return [re.sub(r"127\.0\.0\.1:80\d\d", "127.0.0.1:0", code) for code in lines]


GUNICORNS = [
    line.removeprefix("$ ")
    for code in shown("console")
    for line in code.splitlines()
    if re.match(r"\$ ([A-Z_]+=\S+ )*gunicorn ", line)
]


@pytest.fixture
def folder(tmp_path):
    """A folder with the app that the page takes for granted."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def serves(process, command, folder, workers=1, **env):
    """Start a command of the page there; it serves, and so does its check port."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    if words[0] == "gunicorn":
        words[1:1] = ["--bind", "127.0.0.1:0", "--no-control-socket"]
        words[:1] = [sys.executable, "-m", "gunicorn"]
    else:
        run = "from wsgi_busyguard.cli import main; raise SystemExit(main())"
        words[:1] = [sys.executable, "-c", run]
        words += ["--listen", "127.0.0.1:0"]
    served = process(*words, cwd=folder, env=environment(**env))

    def port(words):
        eventually(lambda: re.search(words, served.output) or served.popen.poll() is not None)
        found = re.search(words, served.output)
        assert found, served.output
        return int(found[1])

    listens = port(r"(?:Listening at: |serving app:application at )http://127\.0\.0\.1:(\d+)")
    checks = port(r"checks at http://127\.0\.0\.1:(\d+)")
    # A SIGTERM that finds a worker still booting is lost, with and without the guard.
    eventually(lambda: [r["state"] for r in figures(checks)["processes"]] == ["ready"] * workers)
    assert check(checks).status == 200
    assert ask(listens, path="/").body == b"hello"
    assert figures(checks)["capacity"] >= 1
    served.signal()
    assert served.ended() == 0
    return served


@pytest.mark.slow
@pytest.mark.parametrize("command", GUNICORNS, ids=lambda command: command.split()[-2])
def test_a_command_on_the_page_serves(process, folder, command):
    serves(process, command, folder, workers=int(re.search(r"-w (\d+)", command)[1]))


@pytest.mark.slow
def test_serving_with_gunicorn_from_the_command_line(process, folder):
    commands = [line for code in shown("console") for line in code.splitlines()]
    (command,) = [line for line in commands if line.startswith("$ busyguard serve")]
    served = serves(process, command.removeprefix("$ "), folder, workers=2, WEB_CONCURRENCY="2")
    assert "with gunicorn: 2 x 8 at once" in served.output
    assert "Traceback" not in served.output


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(shown("python"))))
def test_a_configuration_on_the_page_serves(process, folder, number):
    text = shown("python")[number]
    (folder / "gunicorn.conf.py").write_text(text)
    workers = 2 if "workers = 2" in text else 1
    serves(process, "BUSYGUARD_CHECK=127.0.0.1:0 gunicorn app:application", folder, workers)


def test_the_names_that_are_said_to_be_used_are_there():
    part = PAGE[PAGE.index("What it uses of gunicorn") :]
    named = set(re.findall(r"``(\w+)\(\)``", part))
    assert named >= set(KNOWN_PARAMETERS)
    for name in named - {"stop", "setup", "close"}:
        assert hasattr(ThreadWorker, name), name
    assert hasattr(Arbiter, "stop")
    source = Path(sys.modules["gunicorn.arbiter"].__file__).read_text()
    for name in ("GUNICORN_PID", "self.LISTENERS = []", "self.stop()", "worker_class.check_config"):
        assert name in source
