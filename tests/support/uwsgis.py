"""uWSGI masters: started with ports from the kernel, their logs kept, always reaped."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from support.client import figures, shows
from support.gunicorns import Gunicorn
from support.processes import HERE, PARENT_DEATH, Process, environment

# Where pip puts it, which is not always on the path; or Debian's, with its plugin for Python 3.
BESIDE = str(Path(sys.executable).parent)


def command():
    """Return what starts uWSGI, or skip the test by name."""
    found = shutil.which("uwsgi", path=BESIDE)
    if found:
        return [found]
    found = shutil.which("uwsgi")
    if found is None:
        pytest.skip("uWSGI is missing: pip install pyuwsgi")
    return [found, "--plugin=python3"]


class Uwsgi(Process):
    """A uWSGI of so many processes and threads: ``port`` is where it serves.

    :param checks: who answers checks from the board: ``"mule"`` or ``"agent"``.
    :param agent_ready: what the agent's ready checks follow.
    :param site: the options of uwsgi_site.py.
    """

    def __init__(
        self, folder, processes, threads, *arguments, checks=None, agent_ready="exact", **site
    ):
        board = folder / "board"
        if checks:
            site = {"board": str(board), **site}
        attached = {
            "mule": [f"--mule={HERE / 'uwsgi_mule.py'}"],
            "agent": [f"--attach-daemon={agent(board, agent_ready)}"],
            None: [],
        }[checks]
        numbers = [f"--processes={processes}", f"--threads={threads}"]
        super().__init__(
            [
                *(*command(), "--master", "--need-app", "--enable-threads", "--die-on-term"),
                *("--http-socket=127.0.0.1:0", f"--wsgi-file={HERE / 'uwsgi_site.py'}"),
                *(*numbers, *attached, f"--master-fifo={folder / 'fifo'}", *arguments),
            ],
            env=environment(SITE=json.dumps(site), BOARD=str(board)),
        )
        try:
            self.fifo = folder / "fifo"
            self.port = int(self.logged(r"bound to TCP address 127\.0\.0\.1:(\d+)"))
            for worker in range(processes):
                self.logged(rf"spawned uWSGI worker {worker + 1} ")
            if checks:
                self.check = int(self.logged(r"checks at http://127\.0\.0\.1:(\d+)"))
            if site.get("side"):
                self.check = int(self.logged(r"side at (\d+)"))
        except BaseException:
            self.reap()  # nobody else has it yet
            raise

    logged = Gunicorn.logged

    def tell(self, order):
        """Tell the master: ``q`` is to stop gracefully, ``c`` to reload one worker at a time."""
        self.fifo.write_text(order)

    @property
    def load(self):
        return figures(self.check)

    def shows(self, *, queued, active, capacity):
        """Whether the figures are these."""
        return shows(self.load, queued=queued, active=active, capacity=capacity)


def agent(board, ready):
    """Return the command of an agent for this board, for a shell; it dies with its uWSGI.

    uWSGI gives it a session of its own, so it is not in the group that is killed here.
    """
    run = "import sys; from wsgi_busyguard.cli import main; sys.exit(main())"
    options = f"agent --board={board} --check=127.0.0.1:0 --ready={ready}"
    leash = f"exec {sys.executable} -I {PARENT_DEATH} $PPID"
    return f'{leash} {sys.executable} -u -c "{run}" {options}'
