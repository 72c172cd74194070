"""Other versions of a package, each in a folder of its own; installed once, and kept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from typing import NamedTuple

import pytest

# Seconds for all of those that are installed at once.
PATIENCE = 120


class Folders(NamedTuple):
    """Where the versions are, by their requirements; what went wrong with the others."""

    there: dict[str, str]
    missing: dict[str, str]
    needs: str = ""

    def __getitem__(self, requirement):
        """Return the folder; without it the test is skipped, and fails in CI."""
        if requirement in self.missing:
            needs = f" (needs {self.needs})" if self.needs else ""
            message = f"{requirement} could not be installed{needs}: {self.missing[requirement]}"
            assert os.environ.get("CI") != "true", message
            pytest.skip(message)
        return self.there[requirement]


def folders(tmp_path_factory, requirements, *, python=None, needs=""):
    """Return the folders of these, such as ``Twisted==21.7.0``; what is missing is installed.

    They stay for the next run. Of several test processes one installs them, and the others wait.

    :param python: the interpreter for which they are installed, if it is not this one.
    :param needs: what those that are compiled need of the system, for whoever has to get it.
    """
    base = tmp_path_factory.getbasetemp().parent
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    tag = f"python{sys.version_info.major}.{sys.version_info.minor}"
    install = [sys.executable, "-m", "pip", "install"]
    if python is not None:
        tag = "".join(filter(_plain, python))
        # What pip keeps may be linked to another interpreter of the same version.
        install[3:] = ["--python", python, "install", "--no-cache-dir"]
    found = {name: base / f"{''.join(filter(_plain, name))}-{tag}" for name in requirements}
    with open(f"{min(found.values())}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = _install(found, install, tmp_path_factory)
    return Folders({name: str(folder) for name, folder in found.items()}, missing, needs)


def _install(found, install, tmp_path_factory):
    """Install what is not there; return what went wrong, by name."""
    installing, missing = {}, {}
    for name, folder in found.items():
        if not folder.exists():
            new = tmp_path_factory.mktemp("version")
            command = [*install, "--quiet", "--no-deps", "--disable-pip-version-check"]
            command += ["--no-compile", "--target", new, name]  # of most no module is imported
            pip = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            installing[name] = new, pip
    for name, (new, pip) in installing.items():
        _, errors = pip.communicate(timeout=PATIENCE)
        if pip.returncode:
            missing[name] = errors.decode(errors="replace").strip()[-200:]
        else:
            with contextlib.suppress(OSError):  # another run was sooner
                new.rename(found[name])
    return missing


def _plain(character):
    return character.isalnum() or character in ".-"
