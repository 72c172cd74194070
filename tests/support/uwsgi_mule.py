"""The check port in a mule, as docs/uwsgi.rst has it but for the port; tries an adapter first."""

from __future__ import annotations

import os
import threading

from wsgi_busyguard import Board
from wsgi_busyguard.adapters.readers.uwsgi import UwsgiAdapter
from wsgi_busyguard.board.watcher import Watcher
from wsgi_busyguard.checkport import CheckPort

try:
    UwsgiAdapter()
except RuntimeError as error:
    print(f"in a mule: {error}", flush=True)
check = CheckPort(Watcher(Board(os.environ["BOARD"])), "127.0.0.1:0", "exact").start()
print(f"checks at http://127.0.0.1:{check.address[1]}", flush=True)
threading.Event().wait()
