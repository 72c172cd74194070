from __future__ import annotations

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from wsgi_busyguard import BusyGuard, Load, Monitor
from wsgi_busyguard._support.health_client import ask as ask_state
from wsgi_busyguard._support.health_client import default_target, split
from wsgi_busyguard.checkport import CheckPort
from wsgi_busyguard.cli import main


@pytest.fixture
def monitor(adapter):
    return Monitor(adapter)


@pytest.fixture
def port(monitor):
    """A check port that tells what ``adapter`` reads."""
    port = CheckPort(monitor, "127.0.0.1:0", ready="exact")
    port.start()
    yield port
    port.stop()


@pytest.fixture
def address(port):
    return "{}:{}".format(*port.address)


@pytest.fixture
def other():
    """A server that answers everything in one way and is no guard."""
    servers = []

    def other(status, body=b"", **headers):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Say nothing."""

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/readyz"

    yield other
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_free_is_0(address, capsys):
    assert main(["check", f"http://{address}/readyz"]) == 0
    assert capsys.readouterr().out == "free\n"


def test_busy_is_1(address, adapter, capsys):
    adapter.load = Load(9, 4, 4)
    assert main(["check", f"http://{address}/readyz"]) == 1
    assert capsys.readouterr().out == "busy\n"


def test_draining_is_1(monitor, address, capsys):
    monitor.drain()
    assert main(["check", f"http://{address}/readyz"]) == 1
    assert capsys.readouterr().out == "draining\n"


def test_no_answer_is_2(capsys):
    assert main(["check", "http://127.0.0.1:1/readyz"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        "no answer from http://127.0.0.1:1/readyz: Connection refused\n",
    )


def test_a_check_port_tells_its_figures(address, adapter, capsys):
    adapter.load = Load(9, 4, 4)
    assert main(["check", address]) == 1
    assert capsys.readouterr().out == "busy queued=9 active=4 capacity=4\n"


def test_a_port_alone_is_one_of_this_machine(port, capsys):
    assert main(["check", str(port.address[1])]) == 0
    assert capsys.readouterr().out.startswith("free ")


@pytest.mark.parametrize(
    ("option", "meant"),
    [("--quie", " (is --quiet meant?)"), ("--time=2", " (is --timeout meant?)"), ("--colour", "")],
)
def test_an_option_has_its_whole_name(address, option, meant, capsys):
    """Else a later version's option could take its meaning from a shortened one."""
    with pytest.raises(SystemExit) as left:
        main(["check", option, address])
    assert left.value.code == 2
    wrong = f"busyguard: unrecognized arguments: {option}{meant}; see busyguard check --help\n"
    assert capsys.readouterr().err == wrong


def test_quiet_says_nothing(address, capsys):
    assert main(["check", address, "--quiet"]) == 0
    assert main(["check", "127.0.0.1:1", "--quiet"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_who_does_not_answer_in_time_gives_no_answer(capsys):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/readyz"
        assert main(["check", url, "--timeout", "0.1"]) == 2
    assert "it took too long" in capsys.readouterr().err


def test_who_answers_in_drops_gives_no_answer_either(capsys):
    """Each comes in time, and all of them never do."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip():
        with listener, listener.accept()[0] as line, contextlib.suppress(OSError):
            line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not over.wait(0.05):
                line.sendall(b"f")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/readyz"
        assert main(["check", url, "--timeout", "0.5"]) == 2
    finally:
        over.set()
        thread.join(10)
    assert "it took too long" in capsys.readouterr().err


def test_the_figures_of_many_processes_are_not_too_long(other):
    rows = [{"pid": pid, "state": "free", "queued": 0, "active": 0} for pid in range(2000)]
    load = {"state": "free", "ready": True, "queued": 0, "processes": rows}
    port = other(200, json.dumps(load).encode()).split(":")[-1].split("/")[0]
    assert ask_state(port) == (0, "free queued=0")


@pytest.mark.parametrize("status", [301, 404, 500])
def test_what_is_no_answer_to_a_check_is_none(other, status):
    """A site without a guard has a 404 here, and one that redirects to HTTPS sends elsewhere."""
    said = ask_state(other(status, b"<!doctype html>", Location="http://127.0.0.1:1/"))
    assert said.code == 2
    assert said.text.startswith("no answer to a check from http://127.0.0.1:")


def test_a_proxy_that_has_no_server_is_not_now(other):
    assert ask_state(other(503, b"<h1>no server is available</h1>")).code == 1


NO_LOADS = {
    "no JSON": b"hello",
    "too deep": b"[" * 100_000,
    "a list": b'["state", "ready"]',
    "a state that is none": b'{"state": "free\\nbeer", "ready": true}',
    "a state that is no text": b'{"state": ["free"], "ready": true}',
}


@pytest.mark.parametrize("body", NO_LOADS.values(), ids=NO_LOADS)
def test_what_is_no_load_is_no_answer(other, body):
    url = other(200, body).replace("/readyz", "/load")
    assert ask_state(url) == (2, "no answer to a check: this is no check port's /load")


ORDER = b"\x1b]0;owned\x07"  # which has a terminal change its title


@pytest.mark.parametrize("status", [500, 503])
def test_what_is_an_order_to_a_terminal_is_not_shown(other, status, capsys):
    assert main(["check", other(status, ORDER)]) == (1 if status == 503 else 2)
    said = "".join(capsys.readouterr())
    assert "?]0;owned?" in said
    assert said.strip().isprintable()


def test_figures_are_numbers(other):
    load = {"state": "busy", "ready": False, "queued": 7, "active": ORDER.decode(), "delay": [1]}
    url = other(200, json.dumps(load).encode()).replace("/readyz", "/load")
    assert ask_state(url) == (1, "busy queued=7")


@pytest.mark.parametrize(
    "line", [ORDER, b"HTTP/1.1 " + ORDER, b"HTTP/1.1 200 OK\r\nContent-Type: " + ORDER]
)
def test_nor_what_is_an_order_in_a_head(line):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(line + b"\r\n\r\n")

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        said = ask_state(f"http://127.0.0.1:{listening.getsockname()[1]}/readyz")
        thread.join(10)
    assert said.code == 2
    assert said.text.isprintable()


def test_what_is_no_http_is_no_answer():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk():
            connection, _ = listening.accept()
            connection.sendall(b"SSH-2.0-OpenSSH\r\n")
            connection.close()

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        assert ask_state(f"http://127.0.0.1:{listening.getsockname()[1]}/").code == 2
        thread.join(10)


TARGETS = {
    "8081": "http://127.0.0.1:8081/load",
    "10.0.0.1:8081": "http://10.0.0.1:8081/load",
    "web1:8080/healthz": "http://web1:8080/healthz",
    "http://web1": "http://web1/readyz",
    "https://web1/readyz?ready=exact": "https://web1/readyz?ready=exact",
    "[::1]:8081": "http://[::1]:8081/load",
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_a_url_or_a_check_port(target):
    assert split(target).geturl() == TARGETS[target]


@pytest.mark.parametrize("target", ["ftp://web1/", "http://", "web1:port", "http://web1:99999/"])
def test_what_is_none_is_a_mistake(target, capsys):
    assert main(["check", target]) == 2
    assert "busyguard: expected a URL such as http://host:8080/readyz" in capsys.readouterr().err


def test_the_default_is_where_the_check_port_is():
    assert default_target({}) == "127.0.0.1:8081"
    assert default_target({"BUSYGUARD_CHECK": "10.0.0.1:9000"}) == "10.0.0.1:9000"


def test_time_must_pass(capsys):
    assert main(["check", "8081", "--timeout", "0"]) == 2
    assert "timeout must be more than 0 seconds, not 0.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<!doctype html><title>Shop</title>", "text/html; charset=utf-8"),
        (b"free", "text/html"),
        (b"", "text/plain"),
        (b"ok", "text/plain"),
        (b"free shipping", "text/plain; charset=utf-8"),
        (b"free\nbeer", "text/plain; charset=utf-8"),
        (b'{"status": "ok"}', "application/json"),
    ],
)
def test_what_is_no_guards_answer_is_none(body, content_type, other, capsys):
    """A wrong path must not be green for ever."""
    url = other(200, body, **{"Content-Type": content_type})
    assert main(["check", url]) == 2
    error = f"{url} is no check of a guard (is the path right?): 200 {content_type}\n"
    assert capsys.readouterr().err == error


@pytest.mark.parametrize("options", [{}, {"expose_load": True}])
@pytest.mark.parametrize("path", ["/readyz", "/livez"])
def test_a_guards_answer_is_known_with_and_without_figures(options, path, other, ask, adapter):
    answer = ask(BusyGuard(print, monitor=Monitor(adapter), **options), path=path)
    url = other(answer.status, answer.body, **{"Content-Type": answer.headers["Content-Type"]})
    assert main(["check", url]) == 0


def test_the_root_of_a_check_port_is_asked_as_balancers_ask_it(address, monitor, capsys):
    assert main(["check", f"http://{address}/"]) == 0
    monitor.drain()
    assert main(["check", f"http://{address}/"]) == 1
    assert capsys.readouterr().out == "free\ndraining\n"


def test_docker_reserves_2(address, monitor, other, capsys):
    assert main(["check", "--docker", f"http://{address}/readyz"]) == 0
    assert main(["check", "--docker", "http://127.0.0.1:1/readyz"]) == 1
    assert main(["check", "--docker", other(200, b"<p>", **{"Content-Type": "text/html"})]) == 1
    monitor.drain()
    assert main(["check", "--docker", f"http://{address}/readyz"]) == 1
