"""The manifests of the docs, under a kubelet's rules, against a real guarded server."""

from __future__ import annotations

import contextlib
import re
import signal
import time

import pytest
import yaml
from support.balanced import APP, COMMAND, load_average, tally
from support.client import ask, eventually, many, together
from support.haproxies import Visitors
from support.kubelet import Kubelet
from support.processes import ROOT, Process, environment

MANIFESTS = sorted((ROOT / "docs" / "kubernetes").glob("*.yml"))

# Probes come ten times as often as the manifests say. Timeouts and thresholds are theirs.
SCALE = 0.1


class Container(Process):
    """The container of a manifest, as a process."""

    def __init__(self, folder, container, slow=0.0):
        (folder / "app.py").write_text(f"import time; time.sleep({slow})\n{APP}")
        name, *words = [*container["command"], *container["args"]]
        assert name == "busyguard"
        words = [re.sub(r"0\.0\.0\.0:\d+$", "127.0.0.1:0", word) for word in words]
        env = environment(NAME="pod", RAN=str(folder / "ran"))
        super().__init__([*COMMAND, *words], cwd=folder, env=env)
        self._listens = {
            port["name"]: re.search(rf"--(\w+)=0\.0\.0\.0:{port['containerPort']}", text)[1]
            for port in container["ports"]
            for text in [" ".join(container["args"])]
        }

    def ports(self):
        """The ports by the names in the manifest, as far as it listens."""
        said = "".join(self.lines)
        kinds = {"listen": r"serving .* at http://", "check": r"checks at http://"}
        found = {
            name: re.search(kinds[kind] + r"127\.0\.0\.1:(\d+)", said)
            for name, kind in self._listens.items()
        }
        return {name: int(match[1]) for name, match in found.items() if match}


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.stem)
def manifest(request):
    """A manifest's Deployment and Service."""
    deployment, service = yaml.safe_load_all(request.param.read_text())
    return deployment, service


@pytest.fixture
def pod(manifest):
    return manifest[0]["spec"]["template"]["spec"]


@pytest.fixture
def running(started, tmp_path, pod):
    """Starts the container and a kubelet for it."""
    with contextlib.ExitStack() as stack:

        def running(slow=0.0):
            process = started(Container, tmp_path, pod["containers"][0], slow)
            kubelet = Kubelet(pod, process, process.ports, SCALE)
            return process, stack.enter_context(kubelet)

        yield running


def option(pod, name):
    """Return what the container's server is told."""
    return float(re.search(rf"--{name}=(\S+)", " ".join(pod["containers"][0]["args"]))[1])


def test_the_names_in_a_manifest_agree(manifest, pod):
    deployment, service = manifest
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    [container] = pod["containers"]
    names = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for probe in ("startup", "liveness", "readiness"):
        assert container[f"{probe}Probe"]["httpGet"]["port"] in names


def test_a_pod_that_is_stopped_has_time_for_everything(pod):
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before + option(pod, "grace") < pod["terminationGracePeriodSeconds"]


def test_a_slow_start_is_no_reason_to_restart_and_gets_no_requests(running):
    process, kubelet = running(slow=2.0)
    eventually(lambda: kubelet.probes["startup"].asked >= 2)
    assert not kubelet.ready
    assert kubelet.probes["readiness"].asked == kubelet.probes["liveness"].asked == 0
    eventually(lambda: kubelet.ready)
    assert kubelet.restarts == 0
    assert ask(process.ports()["web"], path="/x").status == 200


@pytest.mark.alone  # it holds the slowest probe to the time that a kubelet gives it
def test_overload_neither_restarts_a_pod_nor_takes_it_out(running):
    """Four times what it can do, for longer than any threshold takes."""
    process, kubelet = running()
    eventually(lambda: kubelet.ready)
    probe = kubelet.probes["readiness"]
    asked = probe.asked
    with Visitors([process.ports()["web"]], 160, "sleep/0.2") as visitors:
        eventually(lambda: probe.asked >= asked + 3 * probe.failureThreshold)
    counts = tally(visitors.answers)
    print(f"\n{counts}, slowest probe {probe.slowest * 1000:.0f} ms", load_average())
    assert set(counts) == {200, 503}
    assert (kubelet.restarts, kubelet.changes) == (0, [True])
    assert probe.slowest < probe.timeoutSeconds


def test_stuck_threads_take_one_of_several_pods_out_until_they_move(running, manifest):
    process, kubelet = running()
    eventually(lambda: kubelet.ready)
    web = process.ports()["web"]
    live = kubelet.probes["liveness"]
    threads = many(8, web, path="/sleep/7")[1]
    with Visitors([web], 20, "sleep/0.01"):
        if manifest[0]["spec"]["replicas"] > 1:
            eventually(lambda: not kubelet.serving)
            eventually(lambda: kubelet.serving)
            assert kubelet.changes == [True, False, True]
        else:
            eventually(lambda: ask(process.ports()["check"], path="/readyz").status == 503)
            together(threads)
            assert kubelet.changes == [True]
    together(threads)
    assert live.asked >= 3
    assert kubelet.restarts == 0


def test_a_pod_that_is_stopped_serves_until_it_is_told_and_then_what_it_has(running):
    process, kubelet = running()
    eventually(lambda: kubelet.ready)
    web = process.ports()["web"]
    answers, threads = many(3, web, path=f"/sleep/{SCALE * 10 + 1.5}")
    with Visitors([web], 20, "x") as visitors:
        killed = kubelet.terminate()
    together(threads)
    # The nodes that have not heard that it leaves send requests for as long as preStop takes.
    told = visitors.now - (time.monotonic() - kubelet.told)
    during = [answer for answer in visitors.answers if answer.at + answer.took < told]
    print(f"\nwhile preStop sleeps: {tally(during)}, of all {tally(visitors.answers)}")
    assert len(during) > 10
    assert tally(during) == {200: len(during)}
    assert tally(answers) == {200: 3}
    assert not killed
    assert process.popen.returncode == 0
    assert kubelet.restarts == 0


def test_draining_takes_a_pod_out(running):
    process, kubelet = running()
    eventually(lambda: kubelet.ready)
    answers, threads = many(1, process.ports()["web"], path="/sleep/4")
    eventually(lambda: ask(process.ports()["check"], path="/load").text.count('"active": 1'))
    process.signal()
    eventually(lambda: not kubelet.ready)
    together(threads)
    assert tally(answers) == {200: 1}


def test_an_interpreter_that_makes_no_progress_is_restarted(running):
    """That the kubelet of these tests restarts anything at all."""
    process, kubelet = running()
    eventually(lambda: kubelet.ready)
    kubelet.probes["liveness"].timeoutSeconds = 0.5
    process.signal(signal.SIGSTOP)
    try:
        eventually(lambda: kubelet.restarts, within=40)
    finally:
        process.signal(signal.SIGCONT)
    assert not kubelet.ready
