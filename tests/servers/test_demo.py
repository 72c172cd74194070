"""The demo as people run it: for real, and ended in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from support.client import eventually

COMMAND = [
    sys.executable,
    "-c",
    "import sys; from wsgi_busyguard.cli import main; sys.exit(main())",
]
WELL = 0.9
EVERYBODY = 8  # the one who tells the story, the outside service, two servers, four HAProxies


class Run:
    """A run of the demo that can be recognised by a mark in the environment of its processes."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._mark = f"BUSYGUARD_DEMO_RUN={uuid.uuid4()}"
        name, value = self._mark.split("=")
        self._words = (directory / "words.txt").open("w+")
        # A long path on purpose: a unix socket's may have 97 characters in HAProxy.
        self.temporary = directory / "a-directory-for-temporary-files" / "with-a-long-name"
        self.temporary.mkdir(parents=True)
        self.process = subprocess.Popen(
            [*COMMAND, "demo", "--quick", "--picture", str(directory / "demo.png"), *arguments],
            env={**os.environ, name: value, "TMPDIR": str(self.temporary)},
            stdout=self._words,  # no terminal: plain lines
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def alive(self) -> dict[int, str]:
        """Return the processes of this run, by id, with their command lines."""
        found = {}
        for directory in Path("/proc").iterdir():
            try:
                if self._mark.encode() in (directory / "environ").read_bytes().split(b"\0"):
                    command = (directory / "cmdline").read_bytes()
                    found[int(directory.name)] = command.replace(b"\0", b" ").decode()
            except (OSError, ValueError):
                continue
        return found

    def wait_for_all(self) -> None:
        """Wait until everybody is on the stage, some perhaps not yet dressed."""
        eventually(lambda: len(self.alive()) >= EVERYBODY, within=30)

    def wait_for(self, words: str) -> None:
        """Wait until it has said so."""
        eventually(lambda: words in self.output(), within=30)

    def output(self) -> str:
        self._words.flush()
        return Path(self._words.name).read_text()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._words.close()


@pytest.fixture
def run(tmp_path):
    one = Run(tmp_path)
    yield one
    one.end()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One whole run, looked at by several tests.

    Played again if the machine could not serve the visitors even before anything had happened to
    them.
    """
    for _ in range(3):
        played = play(tmp_path_factory.mktemp("demo"))
        if min(act["goodput_before"] for act in played[1]["acts"]) > WELL:
            break
    return played


def play(directory):
    """Return where it was played, what it told and said, and what it left behind."""
    one = Run(directory, "--json", str(directory / "demo.json"))
    try:
        assert one.process.wait(timeout=200) == 0, one.output()
        told = json.loads((directory / "demo.json").read_text())
        left = [*one.alive().values(), *one.temporary.iterdir()]
        return directory, told, one.output(), left
    finally:
        one.end()


@pytest.mark.alone
@pytest.mark.timeout(500)
def test_a_quick_run_leaves_a_picture_and_nothing_else(quick) -> None:
    directory, told, said, left = quick
    assert sorted(file.name for file in directory.iterdir()) == [
        "a-directory-for-temporary-files",
        "demo.json",
        "demo.png",
        "words.txt",
    ]
    assert left == []
    picture = (directory / "demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert (int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")) == (
        1600,
        900,
    )
    assert said.rstrip().endswith(str(directory / "demo.png"))
    assert told["seconds"] < 100  # 75 are promised, on two cores that do nothing else


@pytest.mark.alone
def test_the_figures_are_those_of_this_run(quick) -> None:
    _, told, _, _ = quick
    assert [act["name"] for act in told["acts"]] == ["one", "two", "three"]
    assert len({act["visits"] for act in told["acts"]}) == 1
    for act in told["acts"]:
        assert act["visits"] == len(act["series"]["visits"])
        assert act["goodput_before"] > WELL
        assert max(queued for _, _, queued in act["series"]["queues"]) == act["longest_queue"]
        assert {up for _, _, up, of in act["series"]["balancers"]} <= set(range(9))


@pytest.mark.alone
def test_each_act_is_what_its_title_says(quick) -> None:
    one, two, three = quick[1]["acts"]
    assert one["pages_for_checks"] > 0
    assert one["slowest_check"] > 2
    assert one["longest_queue"] > 100
    assert two["pages_for_checks"] == 0
    assert two["longest_queue"] > 50
    assert three["pages_for_checks"] == 0
    assert three["longest_queue"] <= quick[1]["threads"]
    assert three["slowest_check"] < 0.5
    assert three["times_down"] == 0


@pytest.mark.alone
def test_the_guard_is_well_again_soon_and_better_than_the_rest(quick) -> None:
    one, two, three = quick[1]["acts"]
    assert three["recovery"] is not None
    assert three["recovery"] <= 3  # 2 are promised
    assert three["goodput_after"] > max(one["goodput_after"], two["goodput_after"]) + 0.2
    assert three["pages_for_nobody"] < one["pages_for_nobody"] / 10
    assert "Act three (the guard) is better than act two" in quick[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_stopped_in_the_middle_it_ends_all_that_it_started(run, number) -> None:
    run.wait_for("all is well")
    run.process.send_signal(number)
    assert run.process.wait(timeout=10) == 128 + number
    assert run.alive() == {}
    assert "Traceback" not in run.output()
    assert list(run.temporary.iterdir()) == []


def test_killed_it_leaves_nobody_behind(run) -> None:
    run.wait_for_all()
    run.process.kill()
    run.process.wait()
    eventually(lambda: not run.alive())


def test_a_server_that_ends_in_the_middle_ends_the_demo_with_a_word(run) -> None:
    run.wait_for("all is well")
    server = next(pid for pid, command in run.alive().items() if "--act one" in command)
    os.kill(server, signal.SIGKILL)
    assert run.process.wait(timeout=20) == 1
    assert run.alive() == {}
    assert "ended with status -9" in run.output()
    assert "Traceback" not in run.output()


def test_a_site_that_computes_is_played_without_the_guard_and_with_it(tmp_path) -> None:
    one = Run(tmp_path, "--computes", "--json", str(tmp_path / "demo.json"))
    try:
        assert one.process.wait(timeout=100) == 0, one.output()
        assert list(one.alive().values()) == []
        assert "pages that came in time" in one.output()
    finally:
        one.end()
    told = json.loads((tmp_path / "demo.json").read_text())
    assert [site["site"] for site in told] == ["without the guard", "with the guard"]
