"""What other programs find of this package by its entry points, once it is installed."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from wsgi_busyguard import Monitor
from wsgi_busyguard.checkport import CheckPort

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with this package, installed from what is committed."""
    base = tmp_path_factory.mktemp("installed")
    for command in (
        ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(base / "clone")],
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-compile", "--target", str(base / "target"), str(base / "clone")),
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
    return base / "target"


def run(installed, folder, *command, **variables):
    env = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{folder}", **variables}
    return subprocess.run(
        [sys.executable, *command],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.slow
def test_flask_has_the_command(installed, tmp_path, adapter):
    (tmp_path / "shop.py").write_text("from flask import Flask\napp = Flask('shop')\n")
    port = CheckPort(Monitor(adapter), "127.0.0.1:0").start()
    try:
        where = "{}:{}".format(*port.address)
        command = ["-m", "flask", "--app", "shop", "busyguard"]
        done = run(installed, tmp_path, *command, BUSYGUARD_CHECK=where)
        assert (done.returncode, done.stdout[:5]) == (0, "free "), done.stderr
    finally:
        port.stop()
    done = run(installed, tmp_path, *command, BUSYGUARD_CHECK=where)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.slow
def test_paste_deploy_has_the_filter(installed, tmp_path):
    (tmp_path / "shop.ini").write_text(
        textwrap.dedent("""
        [app:main]
        use = call:shop:main
        filter-with = busyguard

        [filter:busyguard]
        use = egg:wsgi-busyguard
        slots = 3
        """)
    )
    (tmp_path / "shop.py").write_text(
        "def main(global_config):\n    return lambda environ, start_response: []\n"
    )
    script = """if True:
        from paste.deploy import loadapp
        import wsgi_busyguard
        print(loadapp("config:shop.ini", relative_to=".").monitor.load.capacity)
        print(wsgi_busyguard.__file__)
    """
    done = run(installed, tmp_path, "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["3", str(installed / "wsgi_busyguard" / "__init__.py")]


@pytest.mark.slow
def test_django_finds_the_app_and_its_command(installed, tmp_path):
    script = """if True:
        from django.conf import settings
        settings.configure(INSTALLED_APPS=["wsgi_busyguard.integrations.django"])
        import django
        django.setup()
        from django.core.management import get_commands
        print(get_commands()["busyguard"])
    """
    done = run(installed, tmp_path, "-c", script)
    assert done.stdout.strip() == "wsgi_busyguard.integrations.django", done.stderr
