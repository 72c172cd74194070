from __future__ import annotations

import ast
import importlib
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import types
import zipfile

import pytest
from packaging.version import Version

import wsgi_busyguard

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "wsgi_busyguard"

SERVERS_AND_FRAMEWORKS = ["webob", "werkzeug", "twisted", "django", "gunicorn", "waitress"]


def run(*command, **options):
    # What is on somebody's PYTHONPATH is not in the empty environment.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, env=env, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_the_package_imports_no_server_and_no_framework(python):
    loaded = python("import sys, wsgi_busyguard; print(*sys.modules)").split()
    assert "wsgi_busyguard.middleware" in loaded
    assert [name for name in SERVERS_AND_FRAMEWORKS if name in loaded] == []


def test_the_core_needs_the_standard_library_only(python):
    """WebOb comes with the first guard, since it is there that answers are built.

    What an installed package's ``.pth`` file loads at the start of every interpreter is not ours.
    """
    loaded = python("""
        import sys
        before = set(sys.modules)
        import wsgi_busyguard
        gate = wsgi_busyguard.Gate(1)
        wsgi_busyguard.Monitor(gate).check()
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(*new - sys.stdlib_module_names)
        """).split()
    assert [name for name in loaded if not name.startswith(("_", "sitecustomize"))] == [
        "wsgi_busyguard"
    ]


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
]


@pytest.mark.parametrize("name", ["load", "gate", "monitor", "middleware"])
def test_this_test_sees_the_modules(name):
    assert f"wsgi_busyguard.{name}" in MODULES


def with_all():
    for name in MODULES:
        path = ROOT.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if "__all__" in path.read_text():
            yield name, path


@pytest.mark.parametrize(
    ("name", "path"), list(with_all()), ids=lambda value: str(value).split("/")[-1]
)
def test_what_is_promised_is_what_the_module_defines(name, path):
    """Each public name that a module with an ``__all__`` binds, and no other, sorted.

    What a module imports for itself it need not promise; a package imports to promise it.
    """
    bound, imported = set(), set()
    body = ast.parse(path.read_text()).body
    if any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in body):
        # It imports names of its neighbours for whoever asks; type checkers are told which.
        told = [inner for node in body if isinstance(node, ast.If) for inner in node.body]
        body += [node for node in told if isinstance(node, ast.ImportFrom) and node.level == 1]
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__" and node.level:
            imported |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.Assign):
            bound |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    promised = importlib.import_module(name).__all__
    assert promised == sorted(promised)
    bound |= imported if path.name == "__init__.py" else imported & set(promised)
    assert set(promised) == {public for public in bound if not public.startswith("_")}


def test_every_promised_name_is_there():
    namespace = {}
    exec("from wsgi_busyguard import *", namespace)
    promised = {"Adapter", "Board", "BusyGuard", "Gate", "Load", "Monitor", "State", "Transition"}
    assert promised | {"remaining", "under_pressure"} <= set(namespace)
    for name in wsgi_busyguard.__all__:
        assert not isinstance(namespace[name], types.ModuleType)


def test_the_version_is_one():
    version = Version(wsgi_busyguard.__version__)
    assert str(version) == wsgi_busyguard.__version__
    assert len(version.release) == 3


def test_the_changes_begin_with_this_version():
    """A release without a word of what is new in it is none."""
    changes = (ROOT / "CHANGES.rst").read_text()
    newest = re.search(r"^(\S+) \(.*\)\n-+$", changes, re.MULTILINE)
    assert newest[1] == wsgi_busyguard.__version__


# A wheel, from what is committed and nothing else


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clean clone: what is only on this machine is not in it."""
    clone = tmp_path_factory.mktemp("clone") / "clone"
    run("git", "clone", "--quiet", "--no-hardlinks", ROOT, clone)
    return clone


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", dist, clone)
    [wheel] = dist.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_the_source_distribution_has_docs_tests_and_benchmarks(clone, tmp_path):
    run(sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path, clone)
    [sdist] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    tracked = set(run("git", "ls-files", cwd=clone).split())
    assert tracked - names == {".gitignore"}


def test_the_readme_shows_no_picture_by_a_relative_path():
    """What shows the long description of a package has no folder to find it in."""
    readme = (ROOT / "README.rst").read_text()
    pictures = re.findall(r"(?:image|figure):: (\S+)", readme)
    assert [where for where in pictures if not where.startswith("https://")] == []


@pytest.fixture(scope="module")
def empty_venv(wheel, tmp_path_factory):
    """A virtual environment with the wheel and what it requires; return its Python."""
    venv = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", wheel)
    return python


@pytest.mark.slow
def test_the_wheel_contains_every_module_and_says_that_it_is_typed(clone, wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = run("git", "ls-files", "wsgi_busyguard", "twisted", cwd=clone).split()
    assert "wsgi_busyguard/py.typed" in tracked
    assert "twisted/plugins/busyguard_plugin.py" in tracked
    assert set(tracked) <= packed


@pytest.mark.slow
def test_the_wheel_contains_nothing_else(clone, wheel):
    """Above all no twisted/__init__.py, which would replace Twisted."""
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == set(run("git", "ls-files", "wsgi_busyguard", "twisted", cwd=clone).split())


@pytest.mark.slow
def test_the_wheel_works_where_nothing_else_is_installed(empty_venv, tmp_path):
    script = """if True:
        from wsgi_busyguard import BusyGuard
        def app(environ, start_response):
            start_response("200 OK", [])
            return [b"app"]
        guard = BusyGuard(app, slots=1)
        for method in ("OPTIONS", "GET"):
            environ = {"REQUEST_METHOD": method, "PATH_INFO": "/", "SCRIPT_NAME": ""}
            print(*guard(environ, lambda status, headers, exc_info=None: None))
    """
    assert run(empty_venv, "-c", script, cwd=tmp_path) == "b'free'\nb'app'\n"


@pytest.mark.slow
def test_the_import_takes_no_time(empty_venv, tmp_path):
    """The promise is 150 ms; the bound is for machines that have other things to do as well."""
    script = """if True:
        import time
        began = time.perf_counter()
        import wsgi_busyguard
        print(time.perf_counter() - began)
    """
    seconds = [float(run(empty_venv, "-c", script, cwd=tmp_path)) for _ in range(5)]
    print(f"import wsgi_busyguard: best of 5 is {min(seconds) * 1000:.0f} ms")
    assert min(seconds) < 1.0


def test_to_make_a_guard_and_to_answer_a_check_warns_of_nothing(python):
    """WebOb's import of cgi would, on Python 3.11 and 3.12."""
    python("""
    from wsgi_busyguard import BusyGuard

    guard = BusyGuard(lambda environ, start_response: [], slots=1)
    for accept in ("*/*", "application/json"):
        environ = {"PATH_INFO": "/readyz", "REQUEST_METHOD": "GET", "HTTP_ACCEPT": accept}
        import logging; logging.disable()
        assert guard(environ, lambda *_: None)
    """)
