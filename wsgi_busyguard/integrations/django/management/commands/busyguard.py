"""``manage.py busyguard``: the state of the running site."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.management.base import BaseCommand, CommandError

from ....._support.health_client import NO_ANSWER, TIMEOUT_SECONDS, ask, default_target

if TYPE_CHECKING:
    from argparse import ArgumentParser


class Command(BaseCommand):
    """Asks the running site for its state. Needs no database."""

    help = (
        "Ask the running site for its state, by default at its check port. Exits with 0 if it"
        " should get requests, 1 if it is too busy or draining, 2 if there is no answer."
    )
    requires_system_checks: ClassVar[Any] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("url", nargs="?", default=default_target(), metavar="URL")
        parser.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, metavar="S")

    def handle(self, *, url: str, timeout: float, **_: Any) -> None:
        """Ask once."""
        if not timeout > 0:
            raise CommandError(f"timeout must be more than 0 seconds, not {timeout}", returncode=2)
        try:
            result = ask(url, timeout)
        except ValueError as error:
            raise CommandError(str(error), returncode=NO_ANSWER) from error
        (self.stderr if result.code == NO_ANSWER else self.stdout).write(result.text)
        if result.code:
            sys.exit(result.code)
