"""A guarded site for mod_wsgi: its options are JSON in the variable SITE.

With ``side`` the process reads the whole group by itself, and answers at a port of its own. With
``found`` the guard is told nothing, and that port shows what it finds.
"""

import json
import os
import sys

from prefork_app import app

from wsgi_busyguard import BusyGuard, Monitor
from wsgi_busyguard.adapters.mod_wsgi import ModWsgiAdapter, guarded_app
from wsgi_busyguard.checkport import CheckPort

options = json.loads(os.environ["SITE"])


def side(monitor):
    port = CheckPort(monitor, "127.0.0.1:0", "exact").start()
    print(f"reads {monitor!r}", f"side at {port.address[1]}", file=sys.stderr, flush=True)


if options.pop("side", False):
    side(Monitor(ModWsgiAdapter()))
if options.pop("found", False):
    application = BusyGuard(app, **options)
    side(application.monitor)
else:
    application = guarded_app(app, **options)
