"""Have atheris feed a target: ``python -m fuzz NAME [what libFuzzer takes]``, in ``tests/``."""

from __future__ import annotations

import logging
import sys

import atheris

from .machine import settled

# Where a new path is worth a new input; with a module its whole package is.
WATCHED = ["wsgi_busyguard", "gunicorn.http"]


def main() -> None:
    with atheris.instrument_imports(include=WATCHED):
        module = settled(f"fuzz.{sys.argv[1]}")
    logging.disable()  # a line for each input would be all that is read
    atheris.Setup([sys.argv[0], *sys.argv[2:]], module.target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
