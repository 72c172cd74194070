"""The cases of django_cases.py on old and new versions of Django, side by side."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from frameworks.djangos import ROOT, VERSIONS, path_to


@pytest.mark.parametrize("version", VERSIONS)
def test_the_integration_holds_on_each_django(version, tmp_path_factory):
    folder = path_to(version, tmp_path_factory)
    script = (
        "import django, pytest, sys; print('Django', django.get_version());"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "tests/frameworks/django_cases.py"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [folder, str(ROOT)]))},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
    if version != "newest":
        assert f"Django {version}." in done.stdout
