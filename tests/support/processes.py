"""Server processes: started with ports from the kernel, always reaped, their words kept."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
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


class Output:
    """A file without a name for what a process says, which is there when it has said it.

    Through a pipe it would be there a moment later, when a thread of ours has had its turn.
    """

    def __init__(self):
        self.fd, name = tempfile.mkstemp()
        os.unlink(name)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_APPEND)
        weakref.finalize(self, os.close, self.fd)

    def lines(self):
        """Return what has been said, line by line; of the last one perhaps only the beginning."""
        said = io.BytesIO(os.pread(self.fd, os.fstat(self.fd).st_size, 0))
        with io.TextIOWrapper(said, "utf-8", "backslashreplace") as text:
            return text.readlines()


class Process:
    """A process in a session of its own; what it says is kept.

    It dies with these tests, also when they are killed and cannot reap it.

    :param server: what this Python program serves with. It is forked then, and not executed, from a
        Python that has imported that.
    """

    def __init__(self, command, *, cwd=None, env=None, pass_fds=(), server=None):
        program, *arguments = [str(part) for part in command]
        self._output, self._errors = Output(), Output()
        outputs = self._output.fd, self._errors.fd
        env, path = env or environment(), environment()["PYTHONPATH"]
        alike = program == sys.executable and env.get("PYTHONPATH") == path
        if server and alike and sys.platform == "linux":
            fork = fork_server(*IMPORTS[server], *CHECK_PORT, path=path)
            self.popen = fork(arguments, env=env, cwd=cwd, output=outputs)
        else:
            self.popen = subprocess.Popen(
                [*leash(), shutil.which(program) or program, *arguments],
                stdout=outputs[0],
                stderr=outputs[1],
                cwd=cwd,
                env=env,
                start_new_session=True,
                pass_fds=pass_fds,
            )

    def _whole(self, output):
        """Return the lines that are said to the end: more of the last one may come."""
        ended, lines = self.popen.poll() is not None, output.lines()
        return lines if ended or not lines or lines[-1].endswith("\n") else lines[:-1]

    @property
    def lines(self):
        return self._whole(self._output)

    @property
    def errors(self):
        return self._whole(self._errors)

    @property
    def output(self):
        return "".join(self.lines) + "".join(self.errors)

    def line(self, begins, within=PATIENCE):
        """Wait for a line of standard output that begins so, and return the rest of it."""
        lines = self.says(lambda: [line for line in self.lines if line.startswith(begins)], within)
        return lines[0][len(begins) :].strip()

    def says(self, find, within=PATIENCE):
        """Wait until this finds something in what is said; fail if the process ends before."""

        def found():
            ended = self.popen.poll() is not None
            seen = find()
            assert seen or not ended, f"ended with {self.popen.returncode}"
            return seen

        try:
            return eventually(found, within, every=0.01)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says\n{self.output}") from None

    def signal(self, number=signal.SIGTERM):
        self.popen.send_signal(number)

    def ended(self, within=PATIENCE):
        """Wait for the end and return the exit code."""
        return self.popen.wait(within)

    def reap(self):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(PATIENCE)


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
