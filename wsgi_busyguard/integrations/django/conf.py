"""From ``settings.BUSYGUARD`` to a guard."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.wsgi import get_wsgi_application

from ..._support.import_by_name import named
from ..._support.wsgi_app import wsgi_app
from ...bulkhead import configure
from ...deadlines.deadline import carrying
from ...middleware import BusyGuard
from ..bulkheads import from_settings
from ..options import from_capitals
from . import signals

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed.wsgi import WSGIApplication

#: The app behind the guard, by its dotted path; Django's own application if it is not set.
INNER = "WSGI_APPLICATION"

#: The limits of bulkheads, by their names: ``{"rates": {"AT_MOST": 3}}``.
BULKHEADS = "BULKHEADS"

_importing = threading.local()


def our_settings() -> dict[str, Any]:
    """Return ``settings.BUSYGUARD``."""
    return getattr(settings, "BUSYGUARD", None) or {}


def options() -> dict[str, Any]:
    """Return the keyword arguments that ``settings.BUSYGUARD`` stands for.

    :raises ValueError, TypeError, ImportError: if it is wrong.
    """
    return from_capitals(our_settings(), "BUSYGUARD", [INNER, BULKHEADS])


def bulkheads() -> dict[str, Mapping[str, Any]]:
    """Return the limits of bulkheads that the settings have.

    :raises ValueError, TypeError: if they are wrong.
    """
    return from_settings(our_settings().get(BULKHEADS) or {}, f'BUSYGUARD["{BULKHEADS}"]')


def guarded(application: WSGIApplication | None = None) -> BusyGuard:
    """Return an app behind a guard that has its settings from ``settings.BUSYGUARD``.

    :param application: Django's own, or ``BUSYGUARD["WSGI_APPLICATION"]``, if not given.
    :raises ImproperlyConfigured: if the settings are wrong.
    """
    inner = _inner() if application is None else application
    try:
        wsgi_app("application" if application is not None else f'BUSYGUARD["{INNER}"]', inner)
        guard = BusyGuard(carrying(inner), **options())
        configure(bulkheads())
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise ImproperlyConfigured(str(error)) from error
    signals.watch(guard.monitor)
    return guard


def _inner() -> WSGIApplication:
    given = our_settings()
    path = given.get(INNER) if isinstance(given, dict) else None
    if path is None:
        own: WSGIApplication = get_wsgi_application()
        return own
    if getattr(_importing, "path", None) is not None:
        raise ImproperlyConfigured(
            f'BUSYGUARD["{INNER}"] is {path!r}, which is the guarded application itself: name the'
            " app that is to be guarded, or leave it out"
        )
    _importing.path = path
    try:
        inner: WSGIApplication = named(path)
    except ImportError as error:
        raise ImproperlyConfigured(f'BUSYGUARD["{INNER}"]: {error}') from error
    finally:
        _importing.path = None
    return inner
