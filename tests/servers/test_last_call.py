"""A plain SIGTERM among a crowd of short connections: nobody who has one is left without an answer.

A crowd does not wait for one another: each asks, on a connection of its own, until the kernel
refuses him. That may be the answer to who comes too late; a connection that is reset, or closed in
silence, may not.
"""

from __future__ import annotations

import collections
import sys
import threading
import time

import pytest
from support.balanced import Server
from support.client import Line, eventually, request, together
from support.processes import Process, ThreadedSite, environment

from servers.test_twist import port_of

CROWD = 8
ROUNDS = 3

APP = """
def application(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


class Twist(Process):
    """``twist busyguard`` with the app above."""

    def __init__(self, folder):
        (folder / "app.py").write_text(APP)
        command = [sys.executable, "-m", "twisted", "busyguard", "--wsgi=app.application"]
        env = environment()
        env["PYTHONPATH"] = f"{folder}:{env['PYTHONPATH']}"
        options = ["--threads=4", "--listen=tcp:0:interface=127.0.0.1"]
        super().__init__([*command, *options], cwd=folder, env=env)
        self.port = port_of(self, "GuardedSite")


@pytest.fixture(params=["werkzeug", "twisted", "waitress", "twist", "cheroot"])
def serving(request, started, tmp_path):
    """Starts one server or the other, with four threads."""
    kind = request.param
    if kind == "twist":
        return lambda: started(Twist, tmp_path)
    if kind == "cheroot":
        return lambda: started(ThreadedSite, server=kind, threads=4)
    return lambda: started(Server, tmp_path, "it", "--threads=4", kind=kind, app=APP).wait()


class Crowd:
    """Clients that post two bytes, each on connection after connection, until they are refused.

    :param pause: seconds that each thinks before he says a word.
    :ivar tally: how often which status, ``refused`` by the kernel, or ``lost``.
    """

    def __init__(self, port, pause=0.0, path="/length"):
        self._port, self._pause, self._path = port, pause, path
        self.tally, self.losses = collections.Counter(), []
        self._threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(CROWD)]
        for thread in self._threads:
            thread.start()

    def gone(self):
        together(self._threads)

    def _ask_on(self):
        while True:
            try:
                line = Line(self._port, timeout=10)
            except OSError:
                self.tally["refused"] += 1
                return
            with line:
                self._ask(line)

    def _ask(self, line):
        try:
            time.sleep(self._pause)
            line.send(request("POST", self._path, body=b"hi"))
            answer = line.answer()
            whole = len(answer.body) == int(answer.headers.get("content-length", -1))
            said_so = answer.status == 200 or answer.headers.get("connection") == "close"
            if whole and said_so and answer.status in (200, 503):
                self.tally[answer.status] += 1
                return
            self.losses.append(answer)
        except OSError as error:
            self.losses.append(error)
        self.tally["lost"] += 1


@pytest.mark.parametrize(
    "pause",
    [
        pytest.param(0.0, id="who speak at once"),
        # They have half a second to say a word.
        pytest.param(0.15, id="who think first", marks=pytest.mark.alone),
    ],
)
def test_of_a_crowd_around_a_sigterm_nobody_is_lost(serving, pause):
    for _ in range(ROUNDS):
        served = serving()
        crowd = Crowd(served.port, pause)
        eventually(lambda crowd=crowd: crowd.tally[200] > 3 * CROWD)
        served.signal()
        served.ended()
        crowd.gone()
        print(dict(crowd.tally))
        assert crowd.losses == []
        assert "Traceback" not in served.output
