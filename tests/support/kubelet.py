"""A kubelet for one container: its probes and how it stops one, as Kubernetes has them.

From the documentation of probes and of the pod lifecycle, and pkg/kubelet/prober: every probe is a
new connection with a deadline, 200-399 passes, a result counts after so many of its kind in a row;
nothing but the startup probe is asked before that has passed; a liveness or startup probe that has
failed restarts the container. Periods can be made shorter, timeouts stay what they are.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time

from support.client import ask

# What may be said of a probe, and what is meant where it is not.
DEFAULTS = {
    "initialDelaySeconds": 0,
    "periodSeconds": 10,
    "timeoutSeconds": 1,
    "successThreshold": 1,
    "failureThreshold": 3,
}
HEADERS = {"User-Agent": "kube-probe/1.31", "Accept": "*/*", "Connection": "close"}


class Probe:
    """One probe of a container.

    :param ports: the port on this machine, by the name in the manifest.
    :param begins: the result before the first.
    """

    def __init__(self, spec, ports, begins):
        unknown = set(spec) - {"httpGet", *DEFAULTS}
        assert not unknown, f"{unknown} is nothing that a probe has"
        assert set(spec["httpGet"]) <= {"path", "port", "httpHeaders", "scheme", "host"}
        for name, value in DEFAULTS.items():
            setattr(self, name, spec.get(name, value))
        self.path, self._port = spec["httpGet"].get("path", "/"), spec["httpGet"]["port"]
        self._ports = ports
        self.result, self._last, self._run = begins, None, 0
        self.asked = 0
        self.slowest = 0.0

    def ask(self):
        """Ask once; return the result that counts from now on."""
        began = time.monotonic()
        try:
            port = self._ports()[self._port]
            answer = ask(port, path=self.path, headers=HEADERS, timeout=self.timeoutSeconds)
            passed = 200 <= answer.status < 400 and answer.took < self.timeoutSeconds
        except (OSError, KeyError):
            passed = False
        self.asked += 1
        self.slowest = max(self.slowest, time.monotonic() - began)
        self._run = self._run + 1 if passed is self._last else 1
        self._last = passed
        if self._run >= (self.successThreshold if passed else self.failureThreshold):
            self.result = passed
        return self.result


class Kubelet:
    """Looks after one container.

    :param pod: the pod's ``spec``.
    :param process: the container's process.
    :param ports: returns the ports by name, as far as the process listens.
    :param scale: what periods and delays are multiplied with; a start has as long as it is said.
    """

    def __init__(self, pod, process, ports, scale=1.0):
        [container] = pod["containers"]
        self._grace = pod.get("terminationGracePeriodSeconds", 30)
        self._stop = container.get("lifecycle", {}).get("preStop")
        self._process, self._scale = process, scale
        named = {"startup": False, "liveness": True, "readiness": False}
        self.probes = {
            name: Probe(container[f"{name}Probe"], ports, begins) for name, begins in named.items()
        }
        self.restarts = 0
        self.changes = []  # of ready, in order
        self.terminating = False
        self.told = None  # when the process was told to end
        self._end = threading.Event()
        self._started = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(name,), daemon=True) for name in named
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._started.set()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    @property
    def ready(self):
        """Whether the container passes its readiness probe."""
        return bool(self.changes) and self.changes[-1]

    @property
    def serving(self):
        """Whether the pod is an endpoint of its Service."""
        return self.ready and not self.terminating

    def terminate(self):
        """Stop the pod; return whether it had to be killed."""
        self.terminating = True
        until = time.monotonic() + self._grace
        if self._stop is not None:
            assert set(self._stop) == {"sleep"}
            time.sleep(self._stop["sleep"]["seconds"] * self._scale)
        self.told = time.monotonic()
        self._process.signal(signal.SIGTERM)
        try:
            self._process.popen.wait(max(2.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.signal(signal.SIGKILL)
            return True
        return False

    def _work(self, name):
        probe = self.probes[name]
        if name != "startup":
            self._started.wait()
        most = probe.failureThreshold / (self._scale if name == "startup" else 1)
        self._end.wait(probe.initialDelaySeconds * self._scale)
        while not self._end.wait(probe.periodSeconds * self._scale):
            if name == "liveness" and self.terminating:
                return
            before = probe.result
            after = probe.ask()
            if name == "readiness" and before is not after:
                self.changes.append(after)
            if name == "startup" and after:
                self._started.set()
                return
            failed = not after and probe._run >= most
            if name != "readiness" and failed:
                self.restarts += 1
                probe._run = 0
