"""What a crowd of clients that mean harm can do to a visitor and to a check, with and without us.

Twenty-four at four threads say something and fall silent; then a visitor asks for a page, and a
balancer for a check. On the stock servers the check goes through the app, as OPTIONS / does there.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

THREADS, CROWD, PATIENCE = 4, 24, 8.0

SAID = {
    "nothing": b"",
    "one byte": b"G",
    "half a head": b"GET / HTTP/1.1\r\nHost: a\r\nX: y",
    "12 KB of a head": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 2000,
    "a TLS hello": bytes.fromhex("16030100c8010000c40303") + b"a" * 190,
    "10 bytes of an upload": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
    + b"0123456789",
    "20 questions, reads no answer": b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n" * 20,
}

APP = """
def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    body = b"x" * (1_000_000 if environ["PATH_INFO"] == "/large" else 2)
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
"""

GUNICORN = ["-m", "gunicorn", "--threads", str(THREADS), "--bind", "127.0.0.1:{port}", "-k"]
SERVERS = {
    "gunicorn gthread": [*GUNICORN, "gthread", "site_app:app"],
    "gunicorn GuardedThreads": [
        *GUNICORN,
        "wsgi_busyguard.adapters.gunicorn.GuardedThreads",
        "site_app:app",
    ],
    "waitress": [
        "-c",
        "import waitress, site_app; waitress.serve(site_app.app, port={port}, threads=4)",
    ],
    "waitress guarded": [
        "-c",
        "from wsgi_busyguard.adapters.waitress import guarded_server; import site_app;"
        "guarded_server(site_app.app, port={port}, threads=4).run()",
    ],
    "cheroot": [
        "-c",
        "from cheroot.wsgi import Server; import site_app;"
        "Server(('127.0.0.1', {port}), site_app.app, numthreads=4).start()",
    ],
    "cheroot guarded": [
        "-c",
        "from wsgi_busyguard.adapters.cheroot import guarded_server; import site_app;"
        "guarded_server(site_app.app, ('127.0.0.1', {port}), threads=4).start()",
    ],
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def serving(words: list[str], folder: Path):
    """Start a server; yield its port."""
    port = free_port()
    command = [sys.executable, *(word.replace("{port}", str(port)) for word in words)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.getcwd()])}
    nothing = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **nothing)
    try:
        for _ in range(300):
            if asked(port, b"GET / HTTP/1.0\r\n\r\n")[0] == "200":
                break
            time.sleep(0.1)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def asked(port: int, request: bytes) -> tuple[str, float]:
    """Return the status of an answer, or what came of it, and the seconds that it took."""
    began = time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            client.sendall(request)
            status = re.match(rb"HTTP/1\.[01] ([0-9]{3})", client.recv(1000))
    except OSError:
        status = None
    return "none" if status is None else status[1].decode(), time.monotonic() - began


def attacked(port: int, said: bytes) -> list[tuple[str, float]]:
    """Have the crowd come; return what a visitor and a balancer got."""
    with contextlib.ExitStack() as lines:
        for _ in range(CROWD):
            line = lines.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            with contextlib.suppress(OSError):
                line.sendall(said)
        time.sleep(0.5)
        visitor = asked(port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        return [visitor, asked(port, b"OPTIONS / HTTP/1.0\r\n\r\n")]


def main() -> None:
    print(f"{'':26}" + "".join(f"{name:>32}" for name in SAID))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "site_app.py").write_text(APP)
        for name, words in SERVERS.items():
            row = []
            for said in SAID.values():
                with serving(words, Path(folder)) as port:
                    got = attacked(port, said)
                row.append(", ".join(f"{status} {seconds:.3f} s" for status, seconds in got))
            print(f"{name:26}" + "".join(f"{cell:>32}" for cell in row), flush=True)


if __name__ == "__main__":
    main()
