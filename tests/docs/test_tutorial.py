"""The tutorial, step by step, as a reader would: each file is written, each command is run."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from textwrap import dedent

import pytest
from support.client import eventually, figures
from support.processes import environment

from docs.test_docs import ROOT
from docs.test_docs_commands import words_of

PAGE = (ROOT / "docs" / "tutorial.rst").read_text()
STEP = re.compile(
    r"^\.\. code-block:: (?P<language>py|console)\n(?:   :caption: (?P<caption>.*)\n)?"
    r"\n(?P<code>(?:(?:   .*)?\n)+)",
    re.MULTILINE,
)
RUN = {
    "django-admin": [sys.executable, "-m", "django"],
    "gunicorn": [sys.executable, "-m", "gunicorn", "--no-control-socket"],
    "busyguard": [
        *(sys.executable, "-c"),
        "from wsgi_busyguard.cli import main; raise SystemExit(main())",
    ],
    "python": [sys.executable],
}


class Reader:
    """Whoever reads the tutorial: a folder, and the gunicorn that runs now.

    :ivar said: what each command has said, in order.
    """

    def __init__(self, folder, process):
        self.folder, self._process = folder, process
        self._gunicorn, self._ports = None, {}
        self.output = []

    def write(self, caption, code):
        name = caption.removeprefix("appended to ")
        with (self.folder / name).open("w" if name == caption else "a") as file:
            file.write(code)

    def run(self, command):
        variables, [program, *words] = words_of(self._here(command))
        if program in (".", "pip") or words[:2] == ["-m", "venv"]:
            return  # test_package.py installs the wheel, and test_docs.py knows the extras
        command = [*RUN[program], *words]
        if program == "busyguard":  # whoever types it needs longer than the workers to post
            eventually(lambda: self._figures()["active"] == 0)
            eventually(lambda: self._figures()["state"] == "free")
        if program == "gunicorn":
            self._serve(command, variables)
        else:
            self._do(command)

    def stop(self):
        self._gunicorn.signal()
        assert self._gunicorn.ended() == 0

    def _serve(self, command, variables):
        """Start it at ports of the kernel's, and know them by the numbers on the page."""
        if self._gunicorn:
            self.stop()
        kernels = re.compile(r"127\.0\.0\.1:\d+")
        command = [kernels.sub("127.0.0.1:0", word) for word in command]
        variables = {name: kernels.sub("127.0.0.1:0", text) for name, text in variables.items()}
        self._gunicorn = server = self._process(
            *command, cwd=self.folder, env=environment(**variables)
        )
        self._ports = {"8080": self._port(server, "Listening at: ")}
        if variables:
            self._ports["8081"] = self._port(server, "checks at ")
            eventually(lambda: [row["state"] for row in self._figures()["processes"]] == ["ready"])

    def _figures(self):
        return figures(self._ports["8081"])

    def _port(self, server, before):
        words = re.compile(before + r"http://127\.0\.0\.1:(\d+)")
        eventually(lambda: words.search(server.output) or server.popen.poll() is not None)
        found = words.search(server.output)
        assert found, server.output
        return int(found[1])

    def _do(self, command):
        if command[1] == "load.py":  # with the ports of the gunicorn that runs now
            command[1] = "load_here.py"
            load = self._here((self.folder / "load.py").read_text())
            (self.folder / command[1]).write_text(load)
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.output.append((shlex.join(command[1:]), done.stdout + done.stderr))

    def _here(self, text):
        for shown, real in self._ports.items():
            text = re.sub(rf"127\.0\.0\.1:({shown}\b)", f"127.0.0.1:{real}", text)
        return text


@pytest.mark.slow
@pytest.mark.timeout(300)  # ten minutes of a reader's
def test_each_step_of_the_tutorial_does_what_it_says(tmp_path, process):
    reader = Reader(tmp_path, process)
    for step in STEP.finditer(PAGE):
        if step["language"] == "py":
            reader.write(step["caption"], dedent(step["code"]))
            continue
        for line in dedent(step["code"]).splitlines():
            if line.startswith("$ "):
                reader.run(line[2:])
    reader.stop()
    loads = [said for command, said in reader.output if command.startswith("load_here.py")]
    assert [sum(pages(said).values()) for said in loads] == [40, 40, 8]
    assert set(pages(loads[0])) == {200}
    assert set(re.findall(r"check: (\S+ \w+)", loads[0])) == {"200 ok"}
    for said in loads[1:]:
        assert set(pages(said)) <= {200, 503}
        assert set(re.findall(r"check: \S+ (\w+)", said)) <= {"busy", "free"}
    told = {command.split()[0]: said for command, said in reader.output}
    assert re.search(r"W004.* the view 'mysite\.urls\.health' is never called", told["manage.py"])
    assert "free queued=0 active=0 capacity=4" in "".join(said for _, said in reader.output)


def pages(said):
    """Return how many pages there were of each status."""
    return ast.literal_eval(re.search(r"^pages: (.*)$", said, re.MULTILINE)[1])
