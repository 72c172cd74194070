"""``busyguard top`` in a real terminal, beside real servers."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time

import pytest
from support.client import PATIENCE, eventually, many
from support.processes import environment

from servers.test_serve import COMMAND

TOP = [*COMMAND, "top"]

# Orders to a terminal: colours, and where to write.
ORDERS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")

IN, OUT = "\x1b[?1049h", "\x1b[?1049l"  # to another screen, and back from it


class Terminal:
    """A terminal of this size in which a command runs.

    :ivar said: all that was written to it.
    """

    def __init__(self, command, *, wide=100, high=40, term="xterm-256color"):
        ours, theirs = pty.openpty()
        self._ours = ours
        self.output = ""
        self.resize(wide, high)
        self.before = termios.tcgetattr(theirs)
        env = {**environment(TERM=term), "LANG": "C.UTF-8"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            env.pop(name, None)
        self.popen = subprocess.Popen(
            [str(word) for word in command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env,
            start_new_session=True,
            preexec_fn=_control,
        )
        self._theirs = theirs
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._ended = threading.Event()
        self._reader.start()

    def _read(self):
        while not self._ended.is_set():
            if select.select([self._ours], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    data = os.read(self._ours, 65536).decode("utf-8", "replace")
                    with self._lock:
                        self.output += data

    def resize(self, wide, high):
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", high, wide, 0, 0))
        self.wide = wide

    def press(self, keys):
        os.write(self._ours, keys.encode())

    @property
    def lines(self):
        """What is on the screen: the last picture that is whole."""
        with self._lock:
            pictures = self.output.split("\x1b[H")
        if len(pictures) < 3:
            return []
        return [ORDERS.sub("", line).rstrip() for line in pictures[-2].splitlines()]

    @property
    def text(self):
        return "\n".join(self.lines)

    def shows(self, what, within=PATIENCE):
        """Wait until this is on the screen."""
        until = time.monotonic() + within
        while what not in self.text:
            assert time.monotonic() < until, (
                f"no {what!r} in\n{self.text}\nbut {self.output[-900:]!r}"
            )
            time.sleep(0.02)

    def ended(self):
        """Wait for the end; the terminal has to be as it was. Return the exit code."""
        code = self.popen.wait(PATIENCE)
        after = termios.tcgetattr(self._theirs)
        assert after == self.before
        eventually(lambda: self.output.count(IN) == self.output.count(OUT))
        return code

    def reap(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(PATIENCE)
        self._ended.set()
        self._reader.join(PATIENCE)
        os.close(self._ours)
        os.close(self._theirs)


def _control():
    """Have the terminal be the one that controls the new session, for Ctrl-C."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal():
    terminals = []

    def terminal(*hosts, **options):
        terminals.append(Terminal([*TOP, *hosts], **options))
        return terminals[-1]

    yield terminal
    for each in terminals:
        each.reap()


@pytest.fixture
def nobody():
    """A port at which nobody listens, and nobody but we will."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.slow
def test_a_gunicorn_of_four_workers_from_free_to_stuck_to_its_end(gunicorn, terminal, tmp_path):
    server = gunicorn("-w", "4", "--threads", "2", max_queue=2, client_timeout=60)
    server.all_ready(4)
    top = terminal(server.check)
    top.shows("Nothing is wrong.")
    top.shows("free  127.0.0.1:")
    for pid in server.workers:
        top.shows(f"\n{pid} ")
    file = tmp_path / "let-go"

    def all_in():
        many(10, server.port, path=f"/until{file}", timeout=90)
        return server.load["active"] == 8

    try:
        eventually(all_in, every=0.3)
        top.shows("8 of 8 in the app")
        top.shows("Every thread has been in the app for more than", within=60)
        top.press("s")
        top.shows("state*")
        top.press("s")
        top.shows("queued*")
        for wide in (60, 200, 100):
            top.resize(wide, 40)
            eventually(lambda: max(map(len, top.lines), default=0) > 0.5 * wide)  # noqa: B023
            eventually(lambda: max(map(len, top.lines), default=999) <= wide)  # noqa: B023
            top.shows("queued*")
        server.signal(signal.SIGTERM)
        top.shows("draining (503)")
    finally:
        file.touch()
    assert server.ended(60) == 0
    top.shows("no answer: Connection refused; the last answer came")
    top.press("q")
    assert top.ended() == 2


@pytest.mark.slow
def test_several_hosts_one_of_which_comes_and_goes(process, terminal, site, nobody, tmp_path):
    first = site()
    top = terminal(first.check, nobody)
    top.shows(f"127.0.0.1:{nobody}: no answer: Connection refused.")
    agent = [*COMMAND, "agent", "--check", f"127.0.0.1:{nobody}", "--board", tmp_path / "board"]
    here = process(*agent)
    top.shows("absent (503)")
    here.signal()
    assert here.ended() == 0
    top.shows("no answer: Connection refused; the last answer came")
    assert f"127.0.0.1:{first.check}" in top.text
    top.press("q")
    assert top.ended() == 2


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


def drops():
    """An answer that never ends and is never silent for long."""
    yield HEAD
    while True:
        time.sleep(0.1)
        yield b" "


STRANGERS = {
    "it does not speak HTTP": lambda: [b"\x1b[2J\x1b]0;evil\x07" * 999],
    "this is no check port's /load": lambda: itertools.chain([HEAD], itertools.repeat(b"[" * 999)),
    "it took too long": drops,
}


@pytest.fixture
def strangers():
    """Ports at which somebody else answers, by what is to be said of them."""
    listeners, threads, end = [], [], threading.Event()

    def serve(listener, answer):
        while not end.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(5)
                    connection.recv(65536)
                    for piece in itertools.takewhile(lambda _: not end.is_set(), answer()):
                        connection.sendall(piece)

    ports = {}
    for why, answer in STRANGERS.items():
        listeners.append(socket.create_server(("127.0.0.1", 0)))
        listeners[-1].settimeout(0.2)
        ports[why] = listeners[-1].getsockname()[1]
        threads.append(threading.Thread(target=serve, args=(listeners[-1], answer), daemon=True))
        threads[-1].start()
    yield ports
    end.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    for listener in listeners:
        listener.close()


@pytest.mark.slow
def test_strangers_among_the_hosts_keep_nobody_waiting(terminal, site, nobody, strangers):
    good = site().check
    top = terminal(good, nobody, *strangers.values(), "--timeout=0.5")
    for why, port in {**strangers, "Connection refused": nobody}.items():
        top.shows(f"127.0.0.1:{port}: no answer: {why}. Trying again every second.")
    assert re.search(rf"^127.0.0.1:{good} +free ", top.text, re.MULTILINE)
    assert "evil" not in top.output
    top.press("q")
    assert top.ended() == 2


@pytest.mark.slow
def test_lines_go_on_beside_strangers(process, site, nobody, strangers):
    good = site().check
    top = process(*TOP, good, nobody, *strangers.values(), "--timeout=1.5")
    eventually(lambda: sum(f":{good} free ready" in line for line in top.lines) >= 3)
    for why, port in strangers.items():
        assert any(line.endswith(f":{port} no answer: {why}\n") for line in top.lines)
    top.signal(signal.SIGINT)
    assert top.ended() == 2
    assert top.errors == []


@pytest.mark.slow
def test_a_worker_that_is_stopped_is_stalled_and_so_is_a_host_of_no_others(gunicorn, terminal):
    server = gunicorn("-w", "1", "--threads", "2", stall_after=1)
    server.all_ready(1)
    [pid] = server.workers
    top = terminal(server.check, wide=60)
    top.shows("Nothing is wrong.")
    os.kill(pid, signal.SIGSTOP)
    try:
        top.shows("stalled  127.0.0.1:")
        eventually(lambda: re.search(rf"^{pid} +stalled ", top.text, re.MULTILINE))
        top.shows("No process has made any progress for ")
    finally:
        os.kill(pid, signal.SIGCONT)
    top.shows("free  127.0.0.1:")
    top.press("q")
    assert top.ended() == 0


@pytest.mark.slow
def test_ctrl_c_ends_it_with_the_code_of_the_last_look(site, terminal):
    top = terminal(site().check)
    top.shows("Nothing is wrong.")
    top.press("\x03")
    assert top.ended() == 0
    assert "Traceback" not in top.output


@pytest.mark.slow
def test_sigterm_gives_the_terminal_back(site, terminal):
    top = terminal(site().check)
    top.shows("Nothing is wrong.")
    top.popen.send_signal(signal.SIGTERM)
    assert top.ended() == 0
    assert "Traceback" not in top.output


@pytest.mark.slow
def test_a_terminal_that_can_do_nothing_gets_lines(site, terminal):
    top = terminal(site().check, term="dumb")
    eventually(lambda: top.output.count(" free ready ") >= 2)
    top.press("\x03")
    assert top.ended() == 0
    assert "\x1b" not in top.output


@pytest.mark.slow
def test_lines_go_on_through_a_host_that_comes_and_goes(process, tmp_path, nobody):
    """No terminal: a line a second."""
    top = process(*TOP, f"127.0.0.1:{nobody}")
    top.line("20")
    eventually(lambda: sum("no answer: Connection refused" in line for line in top.lines) >= 2)
    agent = [*COMMAND, "agent", "--check", f"127.0.0.1:{nobody}", "--board", tmp_path / "board"]
    here = process(*agent)
    eventually(lambda: "absent not-ready" in top.lines[-1])
    here.signal()
    here.ended()
    eventually(lambda: "no answer" in top.lines[-1])
    top.signal(signal.SIGINT)
    assert top.ended() == 2
    assert top.errors == []


@pytest.mark.slow
def test_whoever_reads_the_lines_may_have_read_enough(site):
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -n 1', "bash", *map(str, [*TOP, site().check])],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.slow
def test_what_is_piped_is_a_line_and_its_code(site):
    server = site(threads=1, max_queue=4, max_wait=30)
    many(3, server.port, path="/hang")
    server.filled(1, 2)
    command = [*TOP, "--once", str(server.check)]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=60, env=environment()
    )
    assert " busy " in done.stdout
    assert " queued=2 active=1 capacity=1 " in done.stdout
    assert done.returncode in (0, 1)
    assert (done.returncode == 0) is (" busy ready " in done.stdout)
