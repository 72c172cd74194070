"""The guarded site with old versions of Twisted, each installed beside the one that is tested."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .client import Line, ask, check, eventually, many, request, together
from .processes import Site, environment

VERSIONS = ["24.7.0"]
if sys.version_info < (3, 13):  # from there on the standard library has no cgi, which these import
    VERSIONS += ["22.10.0", "21.7.0"]

REFUSALS = "busyguard-refused"


@pytest.fixture(scope="session")
def targets(tmp_path_factory):
    """The folders with the old versions; installed once, and kept for the next run."""
    base = tmp_path_factory.getbasetemp().parent
    tag = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folders = {version: base / f"twisted-{version}-{tag}" for version in VERSIONS}
    installing = {}
    for version, folder in folders.items():
        if not folder.exists():
            new = tmp_path_factory.mktemp("twisted")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            command += ["--disable-pip-version-check", "--target", new, f"Twisted=={version}"]
            done = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            installing[version] = new, done
    errors = {}
    for version, (new, process) in installing.items():
        _, said = process.communicate(timeout=120)
        if process.returncode:
            errors[version] = said.decode(errors="replace").strip().splitlines()[-1:]
        else:
            new.rename(folders[version])
    return folders, errors


@pytest.fixture(params=VERSIONS)
def old(request, targets, started):
    """Starts a site with an old Twisted."""
    folders, errors = targets
    version = request.param
    if version in errors:
        words = f"Twisted {version} could not be installed: {errors[version]}"
        assert os.environ.get("CI") != "true", words
        pytest.skip(words)
    env = environment()
    env["PYTHONPATH"] = f"{folders[version]}{os.pathsep}{env['PYTHONPATH']}"
    return version, lambda **options: started(Site, env=env, **options)


def test_the_guard_holds_on_an_old_twisted(old):
    version, start = old
    guarded = start(threads=2, max_queue=2, max_wait=1.0, ready="exact")
    assert guarded.tell("version") == version

    # checks
    assert check(guarded.port).text == "free"
    assert ask(guarded.port, "OPTIONS", "*").text == "free"
    assert ask(guarded.port, "HEAD", "/readyz").headers["content-length"] == "4"
    assert ask(guarded.port, path="/echo").status == 200
    assert ask(guarded.port, "POST", "/length", body=b"b" * 200_000).text == "200000"

    # an age limit in the queue, while every thread is stuck
    stuck, stuck_threads = many(2, guarded.port, path="/hang")
    guarded.filled(2)
    aged, threads = many(2, guarded.port, path="/aged")
    guarded.filled(2, 2)
    assert check(guarded.port).status == 503

    # a length limit
    refused = ask(guarded.port, path="/refused")
    assert (refused.status, refused.headers[REFUSALS]) == (503, "queue-full")
    together(threads)
    assert {answer.headers[REFUSALS] for answer in aged} == {"queue-age"}

    # a client that leaves
    with Line(guarded.port) as line:
        line.send(request(path="/gone"))
        guarded.filled(2, 1)
    eventually(lambda: guarded.load["queued"] == 0, within=0.8)

    guarded.tell("release")
    together(stuck_threads)
    assert [answer.status for answer in stuck] == [200] * 2
    guarded.at_rest()
    eventually(lambda: check(guarded.port).text == "free")
    assert set(guarded.ran) == {"/echo", "/length", "/hang"}

    # the drain
    answers, threads = many(2, guarded.port, path="/sleep/1")
    guarded.filled(2)
    guarded.signal()
    eventually(lambda: check(guarded.port).text == "draining", within=0.8)
    assert ask(guarded.port, path="/new").headers[REFUSALS] == "draining"
    together(threads)
    assert [answer.status for answer in answers] == [200] * 2
    assert guarded.ended(within=5) == 0
