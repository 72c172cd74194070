"""Flask: an extension with its settings in ``app.config``, and the command ``flask busyguard``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from flask import current_app

from .._support.health_client import NO_ANSWER, TIMEOUT_SECONDS, CheckResult, ask, default_target
from .._support.wsgi_app import wsgi_app
from ..bulkhead import configure
from ..deadlines.deadline import carrying
from ..middleware import BusyGuard as Guard
from .bulkheads import from_settings
from .options import from_capitals

if TYPE_CHECKING:
    from flask import Flask

    from ..monitor import Monitor

NAME = "busyguard"

# What the settings are called, and the key for the limits of bulkheads, by their names.
CONFIG, BULKHEADS = 'app.config["BUSYGUARD"]', "BULKHEADS"


class BusyGuard:
    """The guard as a Flask extension: ``BusyGuard(app)``, or ``BusyGuard()`` and ``init_app(app)``.

    :param options: see :class:`wsgi_busyguard.BusyGuard`. What ``app.config["BUSYGUARD"]`` says in
        capitals, as ``{"SLOTS": 8}``, goes before them.

    It stands around ``app.wsgi_app``, outside of everything that Flask does. What is wrapped around
    ``app.wsgi_app`` later stands outside of it, so make it the last.
    """

    def __init__(self, app: Flask | None = None, **options: Any) -> None:
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Put the guard in front of an app; the guard is ``app.extensions["busyguard"]``.

        :raises ValueError, TypeError: for settings that do not exist or are not valid.
        :raises RuntimeError: if the app has a guard already.
        """
        inner = getattr(app, "wsgi_app", app)  # Quart has none, and is an ASGI app
        wsgi_app("app", inner)
        if NAME in app.extensions:
            raise RuntimeError(f"{app!r} has a guard already: app.extensions[{NAME!r}]")
        config = app.config.get("BUSYGUARD") or {}
        settings = from_capitals(config, CONFIG, [BULKHEADS])
        configure(from_settings(config.get(BULKHEADS) or {}, f'{CONFIG}["{BULKHEADS}"]'))
        guard = Guard(carrying(inner), **{**self._options, **settings})
        app.extensions[NAME] = guard
        app.wsgi_app = guard  # type: ignore[method-assign]

    @property
    def monitor(self) -> Monitor:
        """The :class:`~wsgi_busyguard.Monitor` of the current app's guard."""
        guard: Guard = current_app.extensions[NAME]
        return guard.monitor


@click.command(NAME)
@click.argument("url", required=False)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=TIMEOUT_SECONDS)
def command(url: str | None, timeout: float) -> None:
    """Ask the running site for its state, by default at its check port.

    Exits with 0 if it should get requests, 1 if it is too busy or draining, 2 if there is no
    answer.
    """
    try:
        result = ask(url or default_target(), timeout)
    except ValueError as error:
        result = CheckResult(NO_ANSWER, str(error))
    click.echo(result.text, err=result.code == NO_ANSWER)
    raise SystemExit(result.code)
