"""Have atheris feed a target: ``python -m fuzz NAME [what libFuzzer takes]``, in ``tests/``."""

from __future__ import annotations

import importlib
import logging
import sys

import atheris

# Where a new path is worth a new input. No more than the parsers: each module takes a while.
WATCHED = [
    "wsgi_busyguard._support.request_head",
    "wsgi_busyguard.adapters.gunicorn.partial_heads",
    "wsgi_busyguard.adapters.gunicorn.replies",
    "wsgi_busyguard.adapters.gunicorn.request_heads",
    "wsgi_busyguard.adapters.gunicorn.http2_frames",
    "wsgi_busyguard.board.history",
    "wsgi_busyguard.board.layout",
    "wsgi_busyguard.board.bulkheads",
    "wsgi_busyguard.checkport",
    "wsgi_busyguard.checks",
    "wsgi_busyguard.deadlines",
    "wsgi_busyguard.haproxy",
    "gunicorn.http",
]


def main() -> None:
    with atheris.instrument_imports(include=WATCHED):
        target = importlib.import_module(f"fuzz.{sys.argv[1]}").target
    logging.disable()  # a line for each input would be all that is read
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
