from __future__ import annotations

import itertools
import os
import subprocess
import time

import pytest

from support.gunicorns import Gunicorn
from support.processes import Process, Site


@pytest.fixture
def started():
    """Starts processes and, whatever happens, reaps them."""
    processes = []

    def start(kind, /, *arguments, **options):
        process = kind(*arguments, **options)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.reap()


@pytest.fixture
def site(started):
    """Starts a guarded Twisted site with these options."""
    return lambda **options: started(Site, **options)


@pytest.fixture
def process(started):
    """Starts a process from a command line."""
    return lambda *command, **options: started(Process, command, **options)


@pytest.fixture
def gunicorn(started):
    """Starts a gunicorn of guarded workers with these arguments."""
    return lambda *arguments, **options: started(Gunicorn, *arguments, **options)


@pytest.fixture
def conf(tmp_path):
    """Writes a gunicorn.conf.py and returns the argument for it."""
    file, written = tmp_path / "gunicorn.conf.py", itertools.count(int(time.time()))

    def conf(text):
        file.write_text(text)
        now = next(written)  # what was compiled is told from a text as long by the second
        os.utime(file, (now, now))
        return f"-c{file}"

    return conf


class Held:
    def __init__(self, file):
        self._file = file
        self.path = f"/until{file}"

    def let_go(self):
        self._file.touch()


@pytest.fixture
def held(tmp_path):
    """A path whose requests stay in the app until ``held.let_go()``."""
    return Held(tmp_path / "go")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A file with a key and the certificate that it signed itself."""
    folder = tmp_path_factory.mktemp("certificate")
    key, signed = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", signed], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text(key.read_text() + signed.read_text())
    return str(both)
