"""The whole files of the recipes: put where they belong, with ports of the kernel's, and run."""

from __future__ import annotations

import argparse
import configparser
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import yaml
from support.apaches import AnyApache, apache2, furnished
from support.balanced import Daemon, caddy
from support.client import ask, check, eventually, figures, free_port, many, together
from support.daemons import promtool
from support.haproxies import Visitors
from support.kubelet import Kubelet
from support.processes import PARENT_DEATH, ROOT, Process, environment
from support.uwsgis import command as uwsgi_command

from wsgi_busyguard import Board, cli

RECIPES = ROOT / "docs" / "recipes"
PAGES = ("recipes", "kubernetes", "docker", "systemd", "celery", "monitoring")

# Whoever asks who is lost, and not who is refused, gives servers time for what comes all at once
# after a pause of the machine.
ROOMY = {"BUSYGUARD_MAX_WAIT": "20", "BUSYGUARD_CLIENT_TIMEOUT": "60"}
LONG = (
    60  # seconds that so many interpreters may take to start, on a machine that is busy elsewhere
)

BUSYGUARD = [sys.executable, "-c", "from wsgi_busyguard.cli import main; raise SystemExit(main())"]
SITE = """
import os
import time

def application(environ, start_response):
    path = environ["PATH_INFO"]
    while path.startswith("/until/") and not os.path.exists(path[6:]):
        time.sleep(0.02)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"home\\n"]
"""


def text(name):
    return (RECIPES / name).read_text()


@pytest.fixture
def folder(tmp_path):
    """A folder with the site that the recipes serve."""
    (tmp_path / "mysite").mkdir()
    (tmp_path / "mysite" / "__init__.py").touch()
    (tmp_path / "mysite" / "wsgi.py").write_text(SITE)
    return tmp_path


def test_each_file_is_on_a_page():
    shown = "".join((ROOT / "docs" / f"{page}.rst").read_text() for page in PAGES)
    files = {path.name for path in RECIPES.iterdir() if path.is_file()}
    assert files == set(re.findall(r"literalinclude:: recipes/(\S+)", shown))


# Kubernetes and Docker


@pytest.fixture
def manifest():
    """The Deployment, the Service and the budget."""
    return list(yaml.safe_load_all(text("kubernetes.yml")))


def setting(name):
    """Return what gunicorn.conf.py sets."""
    settings: dict[str, object] = {}
    exec(text("gunicorn.conf.py"), settings)
    return settings[name]


def test_the_names_and_the_times_in_the_manifest_agree(manifest):
    deployment, service, budget = manifest
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert service["spec"]["selector"] == labels
    for one in (deployment, budget):
        assert one["spec"]["selector"]["matchLabels"] == labels
    [container] = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert setting("bind") == f"0.0.0.0:{ports['web']}"
    assert f"BUSYGUARD_CHECK=0.0.0.0:{ports['check']}" in setting("raw_env")
    assert container["resources"]["requests"]["cpu"] == str(setting("workers"))
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before + setting("graceful_timeout") < pod["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", ["scaling-keda.yml", "scaling-hpa.yml"])
def test_a_scaler_scales_the_deployment_by_a_figure_that_there_is(manifest, name):
    scaler = yaml.safe_load(text(name))
    assert scaler["spec"]["scaleTargetRef"]["name"] == manifest[0]["metadata"]["name"]
    least = scaler["spec"].get("minReplicaCount", scaler["spec"].get("minReplicas"))
    assert least >= 2, "the readiness probe follows the load"
    [figure] = set(re.findall(r"busyguard_\w+", text(name)))
    assert f"``{figure}``" in (ROOT / "docs" / "metrics.rst").read_text()


class Container(Process):
    """The container of the manifest, as a process."""

    def __init__(self, folder, container):
        (folder / "gunicorn.conf.py").write_text(
            re.sub(r"0\.0\.0\.0:\d+", "127.0.0.1:0", text("gunicorn.conf.py"))
        )
        assert container["command"] == ["gunicorn"]
        words = [sys.executable, "-m", "gunicorn", "--no-control-socket", *container["args"]]
        super().__init__(words, cwd=folder, env=environment(**ROOMY))

    def ports(self):
        """The ports by the names in the manifest, as far as it listens."""
        kinds = {"web": r"Listening at: ", "check": r"checks at "}
        found = {
            name: re.search(before + r"http://127\.0\.0\.1:(\d+)", self.output)
            for name, before in kinds.items()
        }
        return {name: int(match[1]) for name, match in found.items() if match}


@pytest.mark.slow
def test_the_kubelet_starts_the_container_and_stops_it_and_loses_nobody(
    started, folder, manifest, held
):
    pod = manifest[0]["spec"]["template"]["spec"]
    process = started(Container, folder, pod["containers"][0])
    killed = []
    with Kubelet(pod, process, process.ports, 0.1) as kubelet:
        eventually(lambda: kubelet.ready, LONG)
        ports = process.ports()
        answers, threads = many(3, ports["web"], path=held.path)
        eventually(lambda: figures(ports["check"])["active"] == 3)
        stopping = threading.Thread(target=lambda: killed.append(kubelet.terminate()))
        with Visitors([ports["web"]], 5, "x") as visitors:
            visitors.came(5)
        stopping.start()
        eventually(lambda: check(ports["check"]).text == "draining")
        held.let_go()
        together([*threads, stopping])
    assert {answer.status for answer in visitors.answers} == {200}
    assert [answer.status for answer in answers] == [200] * 3
    assert (killed, kubelet.restarts) == ([False], 0)


def test_the_containers_check_and_command_are_understood():
    dockerfile = text("Dockerfile")
    health = re.search(r"^HEALTHCHECK [^\[]*CMD (\[.*\])$", dockerfile, re.M)[1]
    program, name, *words = yaml.safe_load(health)
    parser = argparse.ArgumentParser(exit_on_error=False)
    cli.COMMANDS[name][0].add_arguments(parser)
    parser.parse_args(words)
    assert program == "busyguard"
    [command] = re.findall(r"^CMD (\[.*\])$", dockerfile, re.M)
    assert yaml.safe_load(command) == ["gunicorn", "-c", "gunicorn.conf.py", "mysite.wsgi"]


def test_compose_and_its_caddy_know_the_same_containers():
    services = yaml.safe_load(text("compose.yml"))["services"]
    sites = [name for name, service in services.items() if "build" in service]
    proxied = re.search(r"reverse_proxy (.*) \{", text("docker.Caddyfile"))[1]
    assert proxied.split() == [f"{name}:8000" for name in sites]
    assert set(services["caddy"]["depends_on"]) == set(sites)
    for name in sites:
        grace = services[name]["stop_grace_period"]
        assert int(grace.removesuffix("s")) > setting("graceful_timeout")


@pytest.mark.parametrize("name", ["Caddyfile", "docker.Caddyfile"])
def test_caddy_understands_its_file(name, tmp_path):
    adapted = [caddy(), "adapt", "--adapter", "caddyfile", "--config", RECIPES / name]
    done = subprocess.run(
        adapted, capture_output=True, text=True, env=environment(HOME=str(tmp_path)), timeout=60
    )
    assert done.returncode == 0, done.stderr


# One machine


def unit():
    """Return what the unit says of its service."""
    parser = configparser.ConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string(text("shop.service"))
    return parser["Service"]


class Service(Process):
    """The service of the unit, at a port that Caddy knows."""

    def __init__(self, folder, port):
        program, *words = shlex.split(unit()["ExecStart"])
        assert program.endswith("/bin/busyguard")
        words = [word.replace("127.0.0.1:8000", f"127.0.0.1:{port}") for word in words]
        words = [word.replace("127.0.0.1:8081", "127.0.0.1:0") for word in words]
        words += ["--max-wait", ROOMY["BUSYGUARD_MAX_WAIT"]]
        super().__init__([*BUSYGUARD, *words], cwd=folder)


class FrontCaddy(Daemon):
    """Caddy with the recipe's file, without TLS."""

    def __init__(self, folder, server):
        port = free_port()
        shown = text("Caddyfile").replace("shop.example {", f":{port} {{", 1)
        shown = shown.replace("127.0.0.1:8000", f"127.0.0.1:{server}")
        shown = shown.replace("lb_try_duration 15s", "lb_try_duration 25s")
        file = folder / "Caddyfile"
        file.write_text("{\n\tadmin off\n}\n" + shown)
        homes = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(folder))
        command = [caddy(), "run", "--adapter", "caddyfile", "--config", file]
        super().__init__(command, port, env=environment(**homes))


def test_the_unit_gives_a_stop_the_time_that_it_takes():
    words = shlex.split(unit()["ExecStart"])
    assert float(words[words.index("--grace") + 1]) < float(unit()["TimeoutStopSec"])


@pytest.mark.slow
def test_a_restart_of_the_service_loses_nobody_behind_caddy(started, folder, held):
    port = free_port()
    service = started(Service, folder, port)
    service.line("serving ", LONG)
    checks = int(service.line("checks at http://127.0.0.1:"))
    front = started(FrontCaddy, folder, port).answers()
    answers, threads = many(2, front.port, path=held.path)
    eventually(lambda: figures(checks)["active"] == 2)
    with Visitors([front.port], 5, "x", patience=25) as visitors:
        visitors.came(5)
        service.signal()
        eventually(lambda: check(checks).text == "draining")
        held.let_go()
        assert service.ended() == 0
        started(Service, folder, port).line("serving ", LONG)
        visitors.came(5)
    together(threads)
    assert {answer.status for answer in visitors.answers} == {200}
    assert [answer.status for answer in answers] == [200, 200]
    assert ask(front.port, path="/readyz").status == 404


# uWSGI


class Sixteen(Process):
    """The uWSGI of the recipe."""

    def __init__(self, folder):
        ini = text("uwsgi.ini").replace("/run/shop/", f"{folder}/")
        ini = re.sub(r"127\.0\.0\.1:80\d\d", "127.0.0.1:0", ini)
        agent = folder / "agent"
        agent.write_text(f'#!/bin/sh\nexec {shlex.join(BUSYGUARD)} "$@"\n')
        agent.chmod(0o755)
        # uWSGI gives it a session of its own, so it has to die with its uWSGI by itself.
        leash = f"exec {sys.executable} -I {PARENT_DEATH} $PPID"
        (folder / "uwsgi.ini").write_text(ini.replace("busyguard agent", f"{leash} {agent} agent"))
        app = text("uwsgi_app.py").replace("/run/shop/", f"{folder}/")
        (folder / "app.py").write_text(app)
        super().__init__([*uwsgi_command(), "--ini", "uwsgi.ini"], cwd=folder)

    def port(self, before):
        words = re.compile(before + r"(?:http://)?127\.0\.0\.1:(\d+)")
        eventually(lambda: words.search(self.output))
        return int(words.search(self.output)[1])


@pytest.mark.slow
def test_sixteen_processes_of_uwsgi_are_told_by_the_agent(started, tmp_path):
    server = started(Sixteen, tmp_path)
    web, checks = server.port("bound to TCP address "), server.port("checks at ")
    eventually(lambda: figures(checks)["capacity"] == 16, LONG)
    assert ask(web, path="/").text == "home\n"
    eventually(lambda: check(checks).text == "free")


# mod_wsgi


class SixteenOfApache(AnyApache):
    """The Apache of the recipe, which may look into no folder of pytest's."""

    def __init__(self):
        apache2()  # or the test is skipped
        place = Path(tempfile.mkdtemp(prefix="busyguard-"))
        furnished(place)
        for name in ("shop.wsgi", "health.wsgi"):
            (place / name).write_text(text(name).replace("/run/shop/", f"{place}/"))
        shown = text("mod_wsgi.conf").replace("/srv/shop/venv", "/srv/venv")
        shown = shown.replace(" user=shop python-home=/srv/venv", f" python-path={place}")
        super().__init__(place, shown.replace("/srv/shop", str(place)))


@pytest.mark.slow
def test_sixteen_processes_of_mod_wsgi_are_told_by_a_seventeenth(started):
    server = started(SixteenOfApache)
    eventually(lambda: "resuming normal operations" in server.output)
    eventually((server.place / "board").exists, LONG)  # which is for those who serve to make
    board = Board(server.place / "board")
    eventually(lambda: board.read()[:3] == (0, 0, 16), LONG)
    assert ask(server.port, path="/").text == "home\n"
    eventually(lambda: ask(server.port, path="/readyz").text == "free")
    assert board.drain()
    eventually(lambda: ask(server.port, path="/readyz").text == "draining")
    assert ask(server.port, path="/").text == "home\n"


# Prometheus


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_promtool_finds_no_fault_with_the_configuration(tmp_path, name):
    (tmp_path / "alerts.yml").write_text((ROOT / "docs" / "alerts.yml").read_text())
    # Debian's promtool knows nothing of Kubernetes.
    known = text(name).replace("kubernetes_sd_configs: [{role: pod}]", "static_configs: []")
    (tmp_path / name).write_text(known)
    promtool("check", "config", tmp_path / name)
