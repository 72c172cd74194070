"""The projects that the pages on frameworks show, put together and run."""

from __future__ import annotations

import shlex
import sys
import textwrap
from pathlib import Path

import pytest
from support.client import ask, eventually, free_port
from support.processes import Process, environment
from webob import Request

from docs.test_docs import ROOT, blocks, commands

DJANGO = ROOT / "docs" / "django.rst"

# What a project has and the page does not show.
AROUND = {
    "manage.py": """
        import os, sys
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
        from django.core.management import execute_from_command_line
        execute_from_command_line(sys.argv)
        """,
    "mysite/__init__.py": "",
    "mysite/urls.py": """
        from django.urls import path
        from . import receivers, views
        urlpatterns = [path("", views.everything), path("report", views.report)]
        """,
}
SETTINGS = """
SECRET_KEY = "only a test"
ALLOWED_HOSTS = ["shop.example"]
ROOT_URLCONF = "mysite.urls"
USE_TZ = True
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS += ["mysite"]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project of the page on Django."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "mysite").mkdir()
    for name, text in AROUND.items():
        (folder / name).write_text(textwrap.dedent(text))
    for caption, code in blocks(DJANGO, "python"):
        assert caption is not None
        (folder / caption).write_text(code + (SETTINGS if "settings" in caption else ""))
    return folder


@pytest.fixture
def run(project):
    """Run a command in the project."""
    running = []

    def run(*command: str, **variables: str) -> Process:
        variables = {"DJANGO_SETTINGS_MODULE": "mysite.settings", **variables}
        env = environment(**variables)
        env["PYTHONPATH"] = f"{project}:{env['PYTHONPATH']}"
        running.append(Process(command, cwd=project, env=env))
        return running[-1]

    yield run
    for process in running:
        process.reap()


def shown(begins: str) -> list[str]:
    return [command for command in commands() if command.startswith(begins)]


def python(command: str) -> list[str]:
    _, *words = shlex.split(command)
    return [sys.executable, *words]


@pytest.mark.slow
@pytest.mark.parametrize("command", shown("python manage.py check"))
def test_the_projects_checks_have_no_complaint(command, run) -> None:
    checking = run(*python(command))
    assert checking.ended() == 0
    assert "no issues" in checking.output or "busyguard.I001" in checking.output


@pytest.mark.slow
@pytest.mark.parametrize("module", ["mysite.wsgi", "wsgi_busyguard.integrations.django"])
def test_the_project_answers(module, run) -> None:
    script = f"""if True:
        from {module} import application
        from webob import Request
        for path in ("/", "/report", "/healthz"):
            request = Request.blank(path, headers={{"Host": "shop.example"}})
            print(request.get_response(application).text)
    """
    asking = run(sys.executable, "-c", script)
    assert asking.ended() == 0, asking.output
    assert asking.lines == ["all of them\n", "a long report\n", "free\n"]


SERVERS = {
    "gunicorn": lambda words, port: [*words[:1], "--bind", f"127.0.0.1:{port}", *words[1:]],
    "waitress-serve": lambda words, port: [*words[:1], f"--listen=127.0.0.1:{port}", *words[1:]],
    "uwsgi": lambda words, port: [f"127.0.0.1:{port}" if w == ":8080" else w for w in words],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if "integrations.django" in c])
def test_the_servers_serve_the_project(command, run) -> None:
    words = shlex.split(command)
    port = free_port()
    program, *arguments = SERVERS[words[0]](words, port)
    starters = {
        "gunicorn": [sys.executable, "-m", "gunicorn"],
        "waitress-serve": [sys.executable, "-m", "waitress"],
        "uwsgi": [str(Path(sys.executable).with_name("uwsgi")), "--master", "--die-on-term"],
    }
    if program == "uwsgi" and not Path(starters["uwsgi"][0]).exists():
        # The wheel that tests have it from is a module: pyuwsgi.
        call = "import sys, pyuwsgi; pyuwsgi.run(sys.argv[1:])"
        starters["uwsgi"] = [sys.executable, "-c", call]
    serving = run(*starters[program], *arguments)

    def up() -> bool:
        assert serving.popen.poll() is None, serving.output
        try:
            return ask(port, path="/healthz").text == "free"
        except OSError:
            return False

    eventually(up)
    assert ask(port, host="shop.example").text == "all of them"
    assert ask(port, host="10.0.0.5").status == 400


@pytest.mark.slow
@pytest.mark.parametrize("command", shown("python manage.py busyguard"))
def test_the_management_command_tells_the_state(command, run, adapter) -> None:
    from wsgi_busyguard import Monitor
    from wsgi_busyguard.checkport import CheckPort

    port = CheckPort(Monitor(adapter), "127.0.0.1:0").start()
    where = "{}:{}".format(*port.address)
    try:
        words = [word.replace("127.0.0.1:8080", where) for word in python(command)]
        asking = run(*words, BUSYGUARD_CHECK=where)
        assert asking.ended() == 0, asking.output
        assert asking.output.startswith("free")
    finally:
        port.stop()


@pytest.mark.parametrize("command", shown("flask "))
def test_a_flask_command_that_is_shown_is_understood(command) -> None:
    from wsgi_busyguard.integrations import flask

    _, name, *words = shlex.split(command)
    assert name == flask.command.name
    flask.command.make_context(name, words)


def test_the_ini_file_puts_the_guard_in_front_of_a_pyramid_app(tmp_path, monkeypatch) -> None:
    deploy = pytest.importorskip("paste.deploy")
    [(_, ini)] = blocks(ROOT / "docs" / "paste.rst", "ini")
    [(_, short)] = blocks(ROOT / "README.rst", "ini")
    assert set(short.splitlines()) <= set(ini.splitlines())
    [pyramid, *_] = [code for _, code in blocks(ROOT / "docs" / "paste.rst", "python")]
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shop.py").write_text(pyramid)
    # The entry point may not be installed here; test_paste.py looks at it in setup.cfg.
    named = "paste.filter_app_factory = wsgi_busyguard.integrations.paste:filter_app_factory"
    file = tmp_path / "production.ini"
    assert "use = egg:wsgi-busyguard" in ini
    file.write_text(ini.replace("use = egg:wsgi-busyguard", named))
    app = deploy.loadapp(f"config:{file}")
    assert Request.blank("/").get_response(app).text == "home"
    assert Request.blank("/readyz").get_response(app).text == "free"
    assert app.monitor.load.capacity == 8


@pytest.mark.parametrize("number", [0, 1, 2, 3], ids=["Pyramid", "Falcon", "Bottle", "CherryPy"])
def test_each_framework_on_the_page_serves_behind_the_guard(number) -> None:
    """The page as a whole runs in test_docs.py; here each is asked for its page and for a check."""
    codes = [code for _, code in blocks(ROOT / "docs" / "paste.rst", "python")]
    names: dict[str, object] = {}
    exec(codes[0], names)
    if number:
        exec(codes[number], names)
    application = names["application"]
    assert Request.blank("/").get_response(application).text == "home"
    assert Request.blank("/healthz").get_response(application).text == "free"
    assert Request.blank("/", method="OPTIONS").get_response(application).text == "free"
