"""A small HTTP client on raw sockets: every wait has a deadline, and nothing is done for you."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import os
import random
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

PATIENCE = 20.0

# What a check may say where its state is not what is tested: a server whose loop is late by a
# quarter of a second is busy, and the machine may be to blame for that; and at equality, which is
# as many requests as threads, a check that still waits in the kernel is the one too many.
STATES = {"free", "busy"}


def is_check(answer):
    """Whether this is an answer to a check, of whatever state; a refusal says busy, too."""
    return answer.text in STATES and "busyguard-refused" not in answer.headers


# How many times as long as it should take something may, on a machine that is busy elsewhere.
MOST_TIMES = 4


# One byte a port, locked by the process of tests that has handed it out, until that ends.
PORTS = os.open(
    Path(tempfile.gettempdir()) / f"busyguard-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT, 0o600
)
_handed_out = set()


def free_port():
    """Return a port that nobody has, for servers that cannot say which one the kernel chose.

    None of those that the kernel chooses from: it might be a client's before the server is up. And
    none that these tests have had before, or others beside them: theirs may not be up yet.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        if port in _handed_out:
            continue
        with contextlib.suppress(OSError):
            fcntl.lockf(PORTS, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            with socket.create_server(("127.0.0.1", port)):
                _handed_out.add(port)
                return port


class Answer(NamedTuple):
    """What a server said; ``status`` 0 and no headers if it said nothing and closed."""

    status: int
    headers: dict[str, str]
    body: bytes
    took: float
    version: str = ""

    @property
    def text(self) -> str:
        return self.body.decode()


NOTHING = (0, {}, b"")


class Line:
    """One connection to a server."""

    def __init__(self, port, *, timeout=PATIENCE, path=None):
        if path is None:
            self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout)
            self.socket.connect(path)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._file = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)

    def answer(self, method="GET"):
        """Read one answer."""
        began = time.monotonic()
        first = self._file.readline()
        if not first:
            return Answer(*NOTHING, time.monotonic() - began)
        version, status = first.decode().split()[:2]
        headers = {}
        while (line := self._file.readline().decode("latin-1").strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = b"" if method == "HEAD" or status == "100" else self._body(headers)
        return Answer(int(status), headers, body, time.monotonic() - began, version)

    def _body(self, headers):
        if "content-length" in headers:
            return self._file.read(int(headers["content-length"]))
        if headers.get("transfer-encoding") != "chunked":
            return self._file.read()
        parts = []
        while size := int(self._file.readline() or b"0", 16):
            parts.append(self._file.read(size))
            self._file.readline()
        self._file.readline()
        return b"".join(parts)

    def closed(self):
        """Whether the server closes without another word."""
        return self._file.read(1) == b""

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def request(method="GET", path="/", *, headers=(), body=b"", version="1.1", host="localhost"):
    """Return the bytes of a request."""
    lines = [f"{method} {path} HTTP/{version}"]
    if host and version != "1.0":
        lines.append(f"Host: {host}")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in dict(headers).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def ask(port, method="GET", path="/", *, timeout=PATIENCE, unix=None, **kind):
    """Ask on a new connection and return the answer; ``took`` counts from before connecting."""
    began = time.monotonic()
    with Line(port, timeout=timeout, path=unix) as line:
        line.send(request(method, path, **kind))
        answer = line.answer(method)
    return answer._replace(took=time.monotonic() - began)


def check(port, timeout=PATIENCE):
    """Ask as bare ``option httpchk`` does: HTTP/1.0, no headers at all."""
    return ask(port, "OPTIONS", "/", version="1.0", timeout=timeout)


class Stopwatch:
    """Seconds, of those in which somebody who asks for the processor again and again gets it.

    As many as on the clock, but where the machine is busy elsewhere: there each pause of a
    hundredth of a second takes longer, and so does what a server does meanwhile.
    """

    def __enter__(self):
        self.seconds, self._stopped = 0.0, False
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped = True
        self._thread.join()

    def _count(self):
        while not self._stopped:
            time.sleep(0.01)
            self.seconds += 0.01


def checks(port, count=20):
    """Check so often, and return the answers: each comes, and none waits for anything else."""
    answers = []
    for _ in range(count):
        with Stopwatch() as watch:
            answers.append(check(port))
        assert watch.seconds < 1
    return answers


def figures(port):
    """Return what the check port's /load shows."""
    return json.loads(ask(port, path="/load").body)


def many(count, port, method="GET", path="/", **kind):
    """Ask ``count`` times at once, each on a connection and thread of its own.

    Returns a list that is filled as the answers come, and the threads.
    """
    answers = []

    def one():
        try:
            answers.append(ask(port, method, path, **kind))
        except OSError as error:
            answers.append(Answer(-1, {}, str(error).encode(), 0.0))

    threads = [threading.Thread(target=one, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return answers, threads


def of_forty_24_are_served(port, held, is_full, check_ports, state=None):
    """Send 40 requests to a server that runs 4 and lets 20 wait; checks wait for none of them.

    :param is_full: returns whether the queue has been seen to be.
    :param check_ports: where checks are answered meanwhile; ``state`` is what each says.
    """
    answers, threads = many(40, port, path=held.path)
    eventually(is_full)
    eventually(lambda: len(answers) == 16)
    for check_port in check_ports:
        texts = {answer.text for answer in checks(check_port)}
        assert state is None or texts == {state}
    assert {answer.status for answer in answers} == {503}
    held.let_go()
    together(threads, 60)
    assert collections.Counter(answer.status for answer in answers) == {200: 24, 503: 16}


def shows(load, *, queued, active, capacity):
    """Return whether the figures are these, and ``idle`` what follows of them."""
    seen = tuple(load[name] for name in ("queued", "active", "capacity", "idle"))
    return seen == (queued, active, capacity, capacity - active)


def together(threads, within=PATIENCE):
    """Wait for all the threads."""
    until = time.monotonic() + within
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "some were not answered in time"


def eventually(holds, within=PATIENCE, every=0.02):
    """Wait until ``holds()`` is true and return it; fail, with what it was, if it never is.

    Where a look takes long, for the machine is busy elsewhere, it gets as many looks in more time.
    """
    began, looks = time.monotonic(), 0
    while not (seen := holds()):
        looks += 1
        took = time.monotonic() - began
        enough = looks * every >= within or took >= MOST_TIMES * within
        assert took < within or not enough, f"still {seen!r} after {took:.1f} s, {looks} looks"
        time.sleep(every)
    return seen
