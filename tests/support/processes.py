"""Server processes: started with ports from the kernel, always reaped, their words kept."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

from support.client import PATIENCE, ask, eventually, figures
from support.forked import fork_server

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PARENT_DEATH = ROOT / "wsgi_busyguard" / "demo" / "parent_death.py"

# What is imported by guarded servers and is not ours. A reactor is made by its import, so none is
# here; nor is anything of gevent's, which has to come before what it patches.
IMPORTS = {
    "twisted": (
        "twisted.internet.epollreactor",
        "twisted.internet.endpoints",
        "twisted.web.server",
        "twisted.web.wsgi",
    ),
    "waitress": ("waitress.server",),
    "cheroot": ("cheroot.wsgi",),
    "werkzeug": ("werkzeug.serving",),
    "gunicorn": ("gunicorn.app.wsgiapp", "gunicorn.arbiter", "gunicorn.workers.gthread"),
    "checks": (),  # and nothing else
}
CHECK_PORT = ("webob", "prometheus_client.core")


def leash():
    """Return the words before a command that have it die with these tests.

    setpriv, of every Debian, needs a tenth of the time that a Python does, two thousand times.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is not None:
        return [setpriv, "--pdeathsig", "KILL", "--"]
    return [sys.executable, "-I", "-S", str(PARENT_DEATH), str(os.getpid())]


def environment(**more):
    """Return an environment in which a process finds this package."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


class Process:
    """A process in a session of its own; its output is read as it comes.

    It dies with these tests, also when they are killed and cannot reap it.

    :param server: what this Python program serves with. It is forked then, and not executed, from a
        Python that has imported that.
    """

    def __init__(self, command, *, cwd=None, env=None, pass_fds=(), server=None):
        program, *arguments = [str(part) for part in command]
        env, path = env or environment(), environment()["PYTHONPATH"]
        alike = program == sys.executable and env.get("PYTHONPATH") == path
        if server and alike and sys.platform == "linux":
            fork = fork_server(*IMPORTS[server], *CHECK_PORT, path=path)
            self.popen = fork(arguments, env=env, cwd=cwd)
        else:
            self.popen = subprocess.Popen(
                [*leash(), shutil.which(program) or program, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="backslashreplace",
                cwd=cwd,
                env=env,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self.lines = []
        self.errors = []
        self._readers = [
            threading.Thread(target=self._keep, args=(stream, into), daemon=True)
            for stream, into in (
                (self.popen.stdout, self.lines),
                (self.popen.stderr, self.errors),
            )
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _keep(stream, into):
        with stream:
            into.extend(iter(stream.readline, ""))

    @property
    def said(self):
        return "".join(self.lines) + "".join(self.errors)

    def line(self, begins, within=PATIENCE):
        """Wait for a line of standard output that begins so, and return the rest of it."""
        lines = self.says(lambda: [line for line in self.lines if line.startswith(begins)], within)
        return lines[0][len(begins) :].strip()

    def says(self, find, within=PATIENCE):
        """Wait until this finds something in what is said; fail if the process ends before."""

        def found():
            ended = self.popen.poll() is not None
            if ended:
                for reader in self._readers:
                    reader.join(2)
            seen = find()
            assert seen or not ended, f"ended with {self.popen.returncode}"
            return seen

        try:
            return eventually(found, within, every=0.01)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says\n{self.said}") from None

    def signal(self, number=signal.SIGTERM):
        self.popen.send_signal(number)

    def ended(self, within=PATIENCE):
        """Wait for the end and return the exit code."""
        code = self.popen.wait(within)
        for reader in self._readers:
            reader.join(2)
        return code

    def reap(self):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(PATIENCE)
        for reader in self._readers:
            reader.join(2)


class Site(Process):
    """The guarded Twisted site of twisted_site.py, with the given options."""

    program = "twisted_site.py"

    def __init__(self, *, env=None, python=sys.executable, **options):
        command = [python, HERE / self.program, json.dumps(options)]
        super().__init__(command, env=env, server=options.get("server", "twisted"))
        try:
            ports = json.loads(self.line("ports: "))
        except BaseException:
            self.reap()  # nobody else has it yet
            raise
        self.port = ports["web"]
        self.check = ports["check"]
        self.agent = ports["agent"]
        self.control = ports["control"]
        self.unix = ports.get("unix")

    def tell(self, what):
        """Ask the control port, which answers on a thread of its own."""
        return json.loads(ask(self.control, path=f"/{what}").body)

    @property
    def ran(self):
        """How many requests ran, by path."""
        return self.tell("ran")

    @property
    def load(self):
        return figures(self.check)

    def at_rest(self):
        """Wait until nobody is inside or waits."""
        eventually(lambda: (self.load["active"], self.load["queued"]) == (0, 0))

    def filled(self, active, queued=0):
        """Wait until so many are inside and so many wait."""
        eventually(lambda: (self.load["active"], self.load["queued"]) == (active, queued))


class ThreadedSite(Site):
    """The guarded waitress or cheroot of threaded_site.py: option ``server``."""

    program = "threaded_site.py"
