"""Have atheris feed a target: ``python -m fuzz NAME [what libFuzzer takes]``, in ``tests/``."""

from __future__ import annotations

import logging
import signal
import sys

import atheris

from .machine import settled

# Where a new path is worth a new input; with a module its whole package is.
WATCHED = ["wsgi_busyguard", "gunicorn.http"]

# Seconds of the processor for one input: a parser that takes as many does not end. On the clock, by
# which libFuzzer goes, a machine that is busy elsewhere took 46 s for one that needs a millisecond.
MOST_SECONDS = 30


class NoEnd(BaseException):
    """No exception that a parser could outlive."""


def too_long(*_: object) -> None:
    raise NoEnd(f"within {MOST_SECONDS} s of the processor")


def main() -> None:
    signal.signal(signal.SIGPROF, too_long)
    with atheris.instrument_imports(include=WATCHED):
        module = settled(f"fuzz.{sys.argv[1]}")
    logging.disable()  # a line for each input would be all that is read

    def target(data: bytes) -> None:
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        module.target(data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
