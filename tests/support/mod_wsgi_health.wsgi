"""Checks in a process group of their own, as docs/mod_wsgi.rst has it but for the path."""

import os

from wsgi_busyguard import Board
from wsgi_busyguard.checkport import CheckApp
from wsgi_busyguard.board.watcher import Watcher

check = CheckApp(Watcher(Board(os.environ["BOARD"])), "exact")


def application(environ, start_response):
    environ["PATH_INFO"] = "/readyz"
    return check(environ, start_response)
