"""A bulkhead on real servers: while a service hangs, half of the threads are everybody else's."""

from __future__ import annotations

import re
import socket
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.client import ask, eventually

MAIN = "import sys; from wsgi_busyguard.cli import main; sys.exit(main())"

APP = """
import http.client, os
from wsgi_busyguard import BusyGuard
from wsgi_busyguard.bulkhead import Bulkhead
from wsgi_busyguard.deadlines import NotMade

rates = Bulkhead("rates")

def application(environ, start_response):
    body = b"live"
    if environ["PATH_INFO"] == "/rates":
        try:
            with rates:
                connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["SERVICE"]))
                connection.request("GET", "/")
                connection.getresponse().read()
        except NotMade:
            body = b"fallback"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

if __name__ == "__main__":
    import waitress

    server = waitress.create_server(BusyGuard(application), listen="127.0.0.1:0", threads=4)
    print(f"serving http://127.0.0.1:{server.effective_port}/", flush=True)
    server.run()
"""

SERVE = ["-c", MAIN, "serve", "shop:application", "--threads", "4", "--listen", "127.0.0.1:0"]


class Hanging:
    """A service that takes connections and says nothing until it is told to."""

    def __init__(self):
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._socket.settimeout(0.05)
        self.port = self._socket.getsockname()[1]
        self.calls = []

    def called(self):
        """Return how many calls there are."""
        try:
            while True:
                self.calls.append(self._socket.accept()[0])
        except TimeoutError:
            return len(self.calls)

    def answer(self):
        for call in self.calls:
            call.recv(65536)
            call.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            call.close()

    def close(self):
        for call in self.calls:
            call.close()
        self._socket.close()


@pytest.fixture
def hanging():
    service = Hanging()
    yield service
    service.close()


@pytest.mark.slow
@pytest.mark.parametrize("server", ["twisted", "gunicorn", "waitress", "stock waitress"])
def test_while_a_service_hangs_half_of_the_threads_are_everybody_elses(
    server, hanging, process, tmp_path, monkeypatch
):
    (tmp_path / "shop.py").write_text(textwrap.dedent(APP))
    monkeypatch.setenv("SERVICE", str(hanging.port))
    command = ["shop.py"] if server.startswith("stock") else [*SERVE, "--server", server]
    serving = process(sys.executable, *command, cwd=tmp_path)
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)", serving.line("serving "))[1])
    assert ask(port, path="/").body == b"live"
    with ThreadPoolExecutor(8) as visitors:
        calling = [visitors.submit(ask, port, path="/rates") for _ in range(8)]
        eventually(lambda: sum(one.done() for one in calling) == 6)
        eventually(lambda: hanging.called() == 2)
        assert [ask(port, path="/").body for _ in range(20)] == [b"live"] * 20
        hanging.answer()
        bodies = sorted(one.result().body for one in calling)
    assert bodies == [b"fallback"] * 6 + [b"live"] * 2
