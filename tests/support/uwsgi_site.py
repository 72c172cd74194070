"""A guarded site for uWSGI: its options are JSON in the variable SITE.

With ``side`` the first worker reads the whole server by itself, and answers at a port of its own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import uwsgi

sys.path.insert(0, str(Path(__file__).parent))

from prefork_app import app

from wsgi_busyguard import Monitor
from wsgi_busyguard.adapters.readers.uwsgi import UwsgiAdapter
from wsgi_busyguard.adapters.uwsgi import guarded_app
from wsgi_busyguard.checkport import CheckPort

options = json.loads(os.environ["SITE"])
side = options.pop("side", False)
stock = options.pop("stock", False)
ports = []


def open_side():
    if uwsgi.worker_id() == 1:
        ports.append(CheckPort(Monitor(UwsgiAdapter()), "127.0.0.1:0", "exact").start())
        print(f"side at {ports[0].address[1]}", flush=True)


if side:
    import uwsgidecorators

    uwsgidecorators.postfork(open_side)
    open_side()
application = app if stock else guarded_app(app, **options)
