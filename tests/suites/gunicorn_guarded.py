"""Has gunicorn's own tests make guarded workers: a plugin for ``pytest -p``.

Those that start a gunicorn find them by the names of the stock ones, see ``processes/``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gunicorn.workers import gthread
from processes import sitecustomize  # its folder is on the path of those processes

from wsgi_busyguard.adapters.gunicorn import GuardedThreads

FOLDER = str(Path(sitecustomize.__file__).parent)


class LoadedThreads(GuardedThreads):
    """One that has loaded its app, which the tests of single methods leave out.

    What the guard then makes is made again with each poller that a test gives it.
    """

    _poller: Any = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._load()

    @property
    def poller(self) -> Any:
        return self._poller

    @poller.setter
    def poller(self, poller: Any) -> None:
        self._poller = poller
        if poller is not None:
            self._load()

    def _load(self) -> None:
        self.get_thread_pool()
        self._take_a_place()


gthread.ThreadWorker = LoadedThreads
os.environ["PYTHONPATH"] = os.pathsep.join([FOLDER, os.environ["PYTHONPATH"]])
