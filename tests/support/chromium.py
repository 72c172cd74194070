"""A headless Chromium that does what it is result, over a pipe: no port, no client library.

Its protocol: https://chromedevtools.github.io/devtools-protocol/. Messages are JSON, each with a
null byte at its end, and come in at descriptor 3 of the browser and out at 4.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from support.client import PATIENCE

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
]


def chromium():
    """Return where it is; its absence is a mistake of whoever set the tests up."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "the page is tested in Chromium: apt-get install chromium"
    return found


class Browser:
    """A Chromium with one page, in a session of its own and an empty profile.

    :ivar asked: the URLs that the page has asked for.
    :ivar complaints: what it said on its console: errors, and breaches of the policy.
    """

    def __init__(self):
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Descriptors 3 and 4 are whatever they are here, so a shell puts ours there.
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = [chromium(), *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self.popen = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.asked, self.complaints = [], []
        self._rest, self._number, self._session, self._answers = b"", 0, None, {}
        try:
            [target] = [
                one["targetId"]
                for one in self.tell("Target.getTargets", within=60)["targetInfos"]
                if one["type"] == "page"
            ]
            attached = self.tell("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Network", "Log", "Runtime"):
                self.tell(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def tell(self, method, within=PATIENCE, **params):
        """Give an order and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + within
        while self._number not in self._answers:
            self._hear(until, method)
        answer = self._answers.pop(self._number)
        assert "error" not in answer, answer
        return answer["result"]

    def _hear(self, until, what):
        """Read some of what it says."""
        wait = max(0.0, until - time.monotonic())
        assert select.select([self._in], [], [], wait)[0], f"no answer to {what} in time"
        data = os.read(self._in, 1 << 20)
        assert data, f"the browser ended instead of {what}"
        *messages, self._rest = (self._rest + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message["method"], message["params"])

    def _note(self, method, params):
        if method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))

    def look(self, *, wide=1100, high=900, dark=False, script=True):
        """Be a screen of this size, with these colours, that runs scripts or not."""
        size = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": wide < 600}
        self.tell("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[scheme])
        self.tell("Emulation.setScriptExecutionDisabled", value=not script)

    def open(self, url):
        """Go there."""
        assert "errorText" not in self.tell("Page.navigate", url=url)
        self.eventually("document.readyState === 'complete'")

    def run(self, expression):
        """Return the value of an expression in the page; the debugger may where no script may."""
        result = self.tell("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def eventually(self, expression, within=PATIENCE):
        """Wait until it holds in the page, and return its value."""
        until = time.monotonic() + within
        while True:
            with contextlib.suppress(AssertionError):  # the page is just being replaced
                if seen := self.run(expression):
                    return seen
            assert time.monotonic() < until, f"{expression} never came; the page says:\n{self.text}"
            time.sleep(0.05)

    @property
    def text(self):
        """What a person reads there."""
        return self.run("document.body.innerText")

    def picture(self, file):
        """Write what a person sees, the whole page, as PNG."""
        result = self.tell("Page.captureScreenshot", captureBeyondViewport=True)
        Path(file).write_bytes(base64.b64decode(result["data"]))

    def close(self):
        """End it, and all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(PATIENCE)
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)
