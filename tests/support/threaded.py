"""Guarded waitress and cheroot sites as processes."""

from __future__ import annotations

import json
import sys

from support.processes import HERE, Process, Site


class ThreadedSite(Process):
    """The site of threaded_site.py, with the given options."""

    def __init__(self, *, env=None, python=sys.executable, **options):
        command = [python, HERE / "threaded_site.py", json.dumps(options)]
        super().__init__(command, env=env, server=options["server"])
        try:
            ports = json.loads(self.line("ports: "))
        except BaseException:
            self.reap()  # nobody else has it yet
            raise
        self.port = ports["web"]
        self.check = ports["check"]
        self.agent = ports["agent"]
        self.control = ports["control"]

    tell = Site.tell
    ran = Site.ran
    load = Site.load
    at_rest = Site.at_rest
    filled = Site.filled
