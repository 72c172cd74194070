"""gunicorn masters: started with ports from the kernel, their logs kept, always reaped."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import threading

from support.client import PATIENCE, Answer, check, eventually, figures
from support.processes import HERE, Process, Site, environment

CLASSES = "wsgi_busyguard.adapters.gunicorn."

# Seconds within which a master acts on a signal. Half a second is the guard's; gunicorn's own are
# as many as it waits for one in its queue: one that comes just before that does not wake it.
HEARD = 0.5 + 1.0


# They refuse at pick-up while those who wait will wait for longer than clients do, as in tests that
# hold requests for as long as they like.
AT_PICK_UP = ("GuardedSync", "GuardedGevent")


class Gunicorn(Process):
    """A gunicorn of guarded workers: ``port``, ``check`` and ``agent`` are where it listens.

    :param kind: the worker class; one without a dot is ours, none if a configuration says it.
    :param script: runs gunicorn, in the place of ``-m gunicorn``, with which USR2 executes a file
        in gunicorn's own folder, where ``http`` is not the standard library's.
    :param guard: BUSYGUARD_*, in small letters.
    """

    def __init__(
        self,
        *arguments,
        kind="GuardedThreads",
        app="gunicorn_app:app",
        bind="127.0.0.1:0",
        env=None,
        python=sys.executable,
        ports=True,
        wait=True,
        script=None,
        **guard,
    ):
        if ports:
            guard = {"check": "127.0.0.1:0", "agent": "127.0.0.1:0", **guard}
        if kind in AT_PICK_UP and not {"slots", "client_timeout"} & guard.keys():
            guard = {"max_wait": 600, **guard}
        variables = {f"BUSYGUARD_{name.upper()}": str(value) for name, value in guard.items()}
        command = [
            python,
            *([script] if script else ["-m", "gunicorn"]),
            "--bind",
            bind,
            "--log-level",
            "info",
        ]
        if kind is not None:
            command += ["-k", kind if "." in kind or kind.islower() else CLASSES + kind]
        env = env or environment()
        command += ["--chdir", HERE]
        if _has_control(python, env.get("PYTHONPATH")):  # all would share one, in the user's home
            command.append("--no-control-socket")
        forked = "gunicorn" if kind in ("GuardedThreads", "GuardedSync") and not script else None
        super().__init__([*command, *arguments, app], env={**env, **variables}, server=forked)
        try:
            if wait:
                self._listens(bind, ports)
        except BaseException:
            self.reap()  # nobody else has it yet
            raise

    def _listens(self, bind, ports):
        self.logged("Booting worker")
        if bind.startswith("127.") and not bind.endswith(":0"):
            self.port = int(bind.rpartition(":")[2])
        elif bind.startswith("127."):
            self.port = int(self.logged(r"Listening at: http\S*:(\d+)"))
        if ports:
            self.check = int(self.logged(r"checks at http\S*:(\d+)"))
            self.agent = int(self.logged(r"agent at tcp\S*:(\d+)"))
            eventually(lambda: self.ready() >= 1)

    def logged(self, pattern, within=PATIENCE):
        """Wait for a line of the log in which this is found; return the group, or the match."""
        found = self.says(lambda: re.search(pattern, self.output), within)
        return found[found.re.groups]

    @property
    def load(self):
        return figures(self.check)

    def ready(self):
        """How many workers are ready."""
        return sum(row["state"] == "ready" for row in self.load["processes"])

    def all_ready(self, count):
        """Wait until so many workers, and no others, are there, and are ready."""
        eventually(lambda: [row["state"] for row in self.load["processes"]] == ["ready"] * count)

    @property
    def workers(self):
        """The pids of the workers."""
        return sorted(row["pid"] for row in self.load["processes"])

    def filled(self, active, queued=0):
        """Wait until so many are inside and so many wait."""
        eventually(lambda: (self.load["active"], self.load["queued"]) == (active, queued))

    def at_rest(self):
        """Wait until nobody is inside or waits."""
        self.filled(0)


class FrontGunicorn(Gunicorn):
    """A gunicorn with one guarded worker, which serves the app of front_app.py."""

    def __init__(self, *, threads, kind="GuardedThreads", grace=None, **guard):
        arguments = [] if grace is None else ["--graceful-timeout", str(max(1, int(grace)))]
        if kind == "GuardedSync":
            guard.pop("max_queue", None)  # its one thread asks the kernel, where all wait
        elif kind == "GuardedGevent":
            guard["slots"] = threads
        else:
            arguments += ["--threads", str(threads)]
        guard = {"on_busy": "front_app:heard", "on_free": "front_app:heard", **guard}
        env = {**environment(), "TEST_CONTROL": "1"}
        super().__init__(*arguments, kind=kind, app="front_app:app", env=env, **guard)
        self.control = int(self.line("control: "))

    tell, ran = Site.tell, Site.ran


class Prober:
    """Asks for a check every 50 ms at each of these ports, as a balancer does, while it is open.

    It waits longer for an answer than a balancer would: the machine may be busy elsewhere.

    :ivar answers: the answers so far; of the status -1 where there was none.
    """

    def __init__(self, *ports, timeout=10.0):
        self.answers = []
        self._ports = ports
        self._timeout = timeout
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._probe, args=(p,), daemon=True) for p in ports
        ]

    def _probe(self, port):
        while not self._end.wait(0.05):
            try:
                answer = check(port, self._timeout)
            except OSError as error:
                answer = Answer(-1, {}, repr(error).encode(), self._timeout)
            self.answers.append(answer)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        eventually(lambda: len(self.answers) >= len(self._ports))
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    @property
    def failed(self):
        """What was not an answer of 200."""
        return [(a.status, a.text) for a in self.answers if a.status != 200]


@functools.cache
def _has_control(python, path):
    """Return whether this gunicorn has the control socket of 25.1."""
    ask = "import gunicorn; print(gunicorn.version_info >= (25, 1))"
    env = {**os.environ, "PYTHONPATH": path or ""}
    return subprocess.check_output([python, "-c", ask], env=env).strip() == b"True"
