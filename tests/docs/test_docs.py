"""Does what the README and the docs show work, and do the docs build?"""

from __future__ import annotations

import argparse
import configparser
import doctest
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from textwrap import dedent

import pytest
from support.client import free_port

from wsgi_busyguard import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.rst", ROOT / "CHANGES.rst", *sorted((ROOT / "docs").glob("*.rst"))]
BLOCK = re.compile(
    r"^\.\. code-block:: (?P<language>\w+)\n(?:   :caption: (?P<caption>.*)\n)?"
    r"\n(?P<code>(?:(?:   .*)?\n)+)",
    re.MULTILINE,
)

# What readers have and pages do not show: an app, and a Django project around it. (A guard warns of
# a server that it does not know, and here is none.) The last three lines are for Twisted: nothing
# listens and nothing runs, for the page goes on after that.
READER = """
import logging, types, sys
logging.getLogger("wsgi_busyguard").setLevel(logging.ERROR)
from django.conf import settings
settings.configure(ROOT_URLCONF=types.ModuleType("urls"), ALLOWED_HOSTS=["*"])
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
app = application
from twisted.internet import reactor
reactor.listenTCP = lambda port, factory, backlog=50: None
reactor.run = lambda: None
"""

# What others do at their import and nobody here can change, and what a page leaves open at its end.
STRICT = (
    *("-W", "error"),
    *("-W", "ignore:'cgi' is deprecated:DeprecationWarning"),
    *("-W", "ignore:twisted.web.resource._Unsafe:DeprecationWarning"),
    *("-W", "ignore:pkg_resources is deprecated:UserWarning"),  # Paste imports it
    *("-W", "ignore:Deprecated call to `pkg_resources:DeprecationWarning"),
    *("-W", "ignore::ResourceWarning"),
)

# What must hold at the end of a page: what it has made of the app answers a check.
AFTERWARDS = """
from webob import Request
from wsgi_busyguard import BusyGuard
if isinstance(application, BusyGuard):
    assert Request.blank("/livez").get_response(application).text == "alive"
"""


def blocks(page: Path, language: str) -> list[tuple[str | None, str]]:
    """Return the captions and the code of the page's blocks in ``language``."""
    found = BLOCK.finditer(page.read_text() + "\n")
    return [(m["caption"], dedent(m["code"])) for m in found if m["language"] == language]


def table_of_servers() -> list[list[str]]:
    """Return the rows of the README's table, the head left out: what stands in each cell."""
    readme = (ROOT / "README.rst").read_text()
    table = readme.partition(".. the table of servers")[2].partition(".. end of the table")[0]
    _, _, *rows = re.split(r"^   \* - ", table, flags=re.MULTILINE)
    return [re.split(r"\n     - ", row.strip()) for row in rows]


def commands() -> list[str]:
    """Return every command that a page shows."""
    shown = [code for page in PAGES for _, code in blocks(page, "console")]
    lines = [line for code in shown for line in code.splitlines() if line.strip()]
    assert all(line.startswith("$ ") for line in lines)
    typed = [code for row in table_of_servers() for code in re.findall(r"``(.*?)``", row[1])]
    known = [one for one in typed if re.match(r"([A-Z_]+=\S+ )*[a-z]+ ", one)]
    lines += [f"$ {one}" for one in known if not one.startswith("uwsgi ")]  # servers/test_uwsgi.py
    return [part.strip() for line in lines for part in line[2:].split("&&")]


def with_name(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=path.name) for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize("page", with_name([p for p in PAGES if blocks(p, "python")]))
def test_the_python_on_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    shown = "\n".join(code for _, code in blocks(page, "python"))
    shown = re.sub(r"127\.0\.0\.1:80\d\d", "127.0.0.1:0", shown)
    shown = shown.replace('"/run/', f'"{tmp_path}/')  # which only root may write to
    script = READER + shown + AFTERWARDS
    done = subprocess.run(
        [sys.executable, *STRICT, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", with_name([p for p in PAGES if ">>> " in p.read_text()]))
def test_the_sessions_on_a_page_say_what_python_says(page: Path) -> None:
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert tried > 0
    assert failed == 0


@pytest.mark.slow
def test_the_first_site_on_the_twisted_page_serves_checks_and_drains(tmp_path: Path) -> None:
    caption, code = blocks(ROOT / "docs" / "twisted.rst", "python")[0]
    port = free_port()
    script = tmp_path / str(caption)
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{at(port, code)}")
    site = subprocess.Popen([sys.executable, script], cwd=tmp_path)
    try:
        assert said(port, "GET", "/") == "hello\n"
        assert said(port, "OPTIONS", "/") == "free"
        site.send_signal(signal.SIGTERM)
        assert site.wait(10) in (0, -signal.SIGTERM)
    finally:
        site.kill()
        site.wait()


def at(port: int, code: str) -> str:
    assert "listenTCP(8080," in code
    return code.replace("listenTCP(8080,", f"listenTCP({port},")


def said(port: int, method: str, path: str) -> str:
    """Return what the server says, once it is up."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    for _ in range(100):
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nobody listens at {port}")


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("busyguard ")])
def test_a_busyguard_command_that_is_shown_is_understood(command: str) -> None:
    _, name, *words = shlex.split(command)
    module, _ = cli.COMMANDS[name]
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    parser.parse_args(words)


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("twist ")])
def test_a_twist_command_that_is_shown_is_understood(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsgi_busyguard.cli.twist import Options

    _, name, *words = shlex.split(command)
    assert name == "busyguard"
    for module in ("app.py", "mysite/__init__.py", "mysite/wsgi.py"):
        (tmp_path / module).parent.mkdir(exist_ok=True)
        (tmp_path / module).write_text("application = print\n")
    monkeypatch.syspath_prepend(tmp_path)
    if words == ["--help"]:
        assert "--max-queue" in str(Options())
    else:
        Options().parseOptions(words)


def test_every_extra_that_is_to_be_installed_exists() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    known = set(setup["options.extras_require"])
    asked = re.findall(r"pip install [^\n]*\[([\w,]+)\]", "\n".join(commands()))
    assert asked
    assert {extra for extras in asked for extra in extras.split(",")} <= known


# What stands around a backend that is shown alone.
WHOLE = """
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s
frontend web
    bind :8080
    default_backend app
"""

CONFIGURED = [
    pytest.param(page, code, id=page.name)
    for page in PAGES
    for _, code in blocks(page, "text")
    if "agent-check" in code
]


@pytest.mark.parametrize(("page", "code"), CONFIGURED)
def test_haproxy_understands_its_configuration(page: Path, code: str, tmp_path: Path) -> None:
    from wsgi_busyguard.demo.balancers import find_haproxy

    haproxy = find_haproxy()
    if haproxy is None:
        pytest.skip("there is no HAProxy here")
    file = tmp_path / "haproxy.cfg"
    file.write_text(code if "frontend" in code else WHOLE + code)
    done = subprocess.run([haproxy, "-c", "-f", str(file)], capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "WARNING" not in output


@pytest.mark.parametrize("page", with_name(PAGES[:2]))
def test_what_pypi_and_the_forge_show_is_plain_restructuredtext(page: Path) -> None:
    docutils = pytest.importorskip("docutils.core", reason="needs the extra docs")
    html5 = pytest.importorskip("docutils.writers.html5_polyglot", reason="needs the extra docs")
    strict = {"halt_level": 2, "report_level": 2, "syntax_highlight": "none"}
    html = docutils.publish_string(
        page.read_text(), writer=html5.Writer(), settings_overrides=strict
    )
    assert b"<title>" in html


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The docs in HTML; ``.ci/run`` has built them before, by the same command."""
    if "DOCS_HTML" in os.environ:
        return Path(os.environ["DOCS_HTML"])
    built = tmp_path / "html"
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*build, "-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(built)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return built


@pytest.mark.slow
def test_the_docs_build_without_a_warning(built: Path) -> None:
    assert (built / "middleware.html").exists()
    torn = [row for page in sorted(built.glob("*.html")) for row in torn_rows(page)]
    assert torn == []


class Rows(HTMLParser):
    """The rows of a page's tables, each a list of what its cells say."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True
        elif tag == "img" and self._inside:
            self.rows[-1][-1] += "a picture"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data.strip()


def torn_rows(page: Path) -> list[tuple[str, list[str]]]:
    """Return the rows with an empty cell: where a first cell has two lines, reST makes two rows."""
    parser = Rows()
    parser.feed(page.read_text())
    return [(page.name, row) for row in parser.rows if not all(row)]
