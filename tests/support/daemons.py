"""Prometheus and carbon, the real ones: from the system, with ports of the kernel's choice."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import pytest

from support.client import eventually, free_port
from support.processes import Process

PATH = f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin"


def program(name, package):
    """Return the path of a program, or skip the test by name; in CI it has to be there."""
    found = shutil.which(name, path=PATH)
    if found is None:
        message = f"{name} is missing: apt-get install {package}"
        assert os.environ.get("CI") != "true", message
        pytest.skip(message)
    return found


def promtool(*arguments, given=None):
    """Run promtool, and return what it says; fail if it finds fault."""
    command = [program("promtool", "prometheus"), *map(str, arguments)]
    done = subprocess.run(command, input=given, capture_output=True, timeout=60, check=False)
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output
    return output


def is_open(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


class Prometheus(Process):
    """A Prometheus that scrapes these ports ten times a second."""

    def __init__(self, place, *targets, rules=()):
        found = program("prometheus", "prometheus")
        self.port = free_port()
        config = {
            "global": {"scrape_interval": "100ms", "evaluation_interval": "100ms"},
            "rule_files": [str(file) for file in rules],
            "scrape_configs": [
                {
                    "job_name": "busyguard",
                    "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in targets]}],
                }
            ],
        }
        file = place / "prometheus.yml"
        file.write_text(json.dumps(config))  # JSON is YAML
        promtool("check", "config", file)
        super().__init__(
            [
                found,
                f"--config.file={file}",
                f"--storage.tsdb.path={place / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ]
        )
        eventually(lambda: is_open(self.port))
        eventually(lambda: self.values("up == 1"))

    def ask(self, path, **query):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            shown = json.load(answer)
        assert shown["status"] == "success", shown
        return shown["data"]

    def values(self, expression):
        """Return the values of an expression now, by their labels."""
        try:
            found = self.ask("query", query=expression)
        except urllib.error.HTTPError as error:
            if error.code != 503:  # it starts
                raise
            return {}
        if found["resultType"] == "scalar":
            return {(): float(found["result"][1])}
        return {
            tuple(sorted(one["metric"].items())): float(one["value"][1]) for one in found["result"]
        }

    def value(self, expression):
        """Return the one value of an expression, ``None`` if there is none."""
        found = list(self.values(expression).values())
        assert len(found) < 2, found
        return found[0] if found else None


class Carbon(Process):
    """A carbon that keeps a value for each second."""

    def __init__(self, place, port=None):
        found = shutil.which("carbon-cache.py", path=PATH) or program(
            "carbon-cache", "graphite-carbon"
        )
        self.place = place
        self.port = port or free_port()
        conf = place / "conf"
        conf.mkdir(exist_ok=True)
        (place / "whisper").mkdir(exist_ok=True)
        (conf / "storage-schemas.conf").write_text("[all]\npattern = .*\nretentions = 1s:1h\n")
        settings = {
            "STORAGE_DIR": place,
            "CONF_DIR": conf,
            "LOG_DIR": place,
            "PID_DIR": place,
            "LOCAL_DATA_DIR": place / "whisper",
            "LINE_RECEIVER_INTERFACE": "127.0.0.1",
            "LINE_RECEIVER_PORT": self.port,
            "PICKLE_RECEIVER_INTERFACE": "127.0.0.1",
            "PICKLE_RECEIVER_PORT": free_port(),
            "CACHE_QUERY_INTERFACE": "127.0.0.1",
            "CACHE_QUERY_PORT": free_port(),
            "MAX_CREATES_PER_MINUTE": "inf",
            "MAX_UPDATES_PER_SECOND": 10000,
            "WHISPER_AUTOFLUSH": True,
        }
        lines = ["[cache]", *(f"{name} = {value}" for name, value in settings.items())]
        (conf / "carbon.conf").write_text("\n".join(lines))
        options = ["--config", conf / "carbon.conf", "--pidfile", place / f"{self.port}.pid"]
        super().__init__([found, *options, "--nodaemon", "start"], env={**os.environ})
        eventually(lambda: is_open(self.port))

    def files(self):
        """Return the paths that it keeps values of."""
        root = self.place / "whisper"
        found = (file.relative_to(root).with_suffix("") for file in root.rglob("*.wsp"))
        return {".".join(file.parts) for file in found}

    def last(self, path):
        """Return the last value of a path: the file has a time and a value for each second."""
        file = self.place.joinpath("whisper", *path.split(".")).with_suffix(".wsp")
        return _last(file.read_bytes()) if file.exists() else None


def _last(data):
    """Return the newest value in a whisper file: a header of 16 bytes, one archive's of 12."""
    import struct

    points = [struct.unpack_from("!Ld", data, at) for at in range(28, len(data), 12)]
    at, value = max(points)
    return value if at else None
