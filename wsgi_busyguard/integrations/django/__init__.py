"""Django: the guard around the whole of it, with its settings in ``settings.BUSYGUARD``.

``application`` is for ``WSGI_APPLICATION`` and for servers. It is made when it is first asked for,
because Django imports this package, as an app, before there can be one. What reads modules as
dicts, as uWSGI does, finds it in :mod:`wsgi_busyguard.integrations.django.wsgi`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .conf import guarded
from .pressure import time_left, under_pressure, when_busy

if TYPE_CHECKING:
    from ...middleware import BusyGuard

    application: BusyGuard

__all__ = ["guarded", "time_left", "under_pressure", "when_busy"]


def __getattr__(name: str) -> Any:
    if name != "application":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .wsgi import application

    return application
