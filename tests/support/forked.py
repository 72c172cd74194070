"""Programs that fork_server.py runs, with the face of :class:`subprocess.Popen`."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

PROGRAM = Path(__file__).parent / "fork_server.py"


class Forked:
    """A program's process; it speaks to two descriptors, its standard output and its errors."""

    def __init__(self, control, argv, *, env, cwd, output):
        written, theirs = os.pipe()
        program = {"argv": argv, "env": env, "cwd": str(cwd or Path.cwd())}
        socket.send_fds(control, [json.dumps(program).encode()], [*output, theirs])
        os.close(theirs)
        self._written = os.fdopen(written)
        self.pid = int(self._written.readline())
        self.returncode = None
        self._ended = threading.Event()
        threading.Thread(target=self._wait_for_it, daemon=True).start()

    def _wait_for_it(self):
        with self._written:
            self.returncode = int(self._written.readline())
        self._ended.set()

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


@functools.cache
def fork_server(*modules, path):
    """Return what runs programs, in a Python that has these modules and looks there for others."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, PROGRAM, str(theirs.fileno()), *modules],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )

    def end():
        control.shutdown(socket.SHUT_RDWR)  # also for a child of ours that has it, too
        control.close()
        server.wait()

    atexit.register(end)
    return functools.partial(Forked, control)
