"""What can be guarded: a WSGI app, and nothing that only looks like one. Judged before any call."""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any

WAY = (
    "give the framework's WSGI app (Django: get_wsgi_application()); a2wsgi.ASGIMiddleware(app)"
    " makes one of any ASGI app"
)


def wsgi_app(name: str, app: object) -> None:
    """Raise :exc:`TypeError` for what cannot be called as a WSGI app is.

    :param name: what it is called in the error.

    An ASGI app passes for one until its first request, and then every request fails. Where nobody
    can tell, an app is taken to be what it should be.
    """
    if not callable(app):
        raise TypeError(f"{name} must be a WSGI app, not {app!r}")
    if _is_async(app):
        raise TypeError(f"{name} must be a WSGI app, not {app!r}, which is an ASGI app: {WAY}")
    if not _takes(app, {}, None):
        makes_it = "if it makes the app, call it, and give what it returns"
        raise TypeError(
            f"{name} must be a WSGI app, not {app!r}, which cannot be called with environ and"
            f" start_response; {makes_it if _takes(app) else f'if it is an ASGI app, {WAY}'}"
        )


def _is_async(app: Any) -> bool:
    """Return whether a call makes a coroutine. Of a class, whether a call of an instance does."""
    while isinstance(app, functools.partial):
        app = app.func
    call = (app if inspect.isclass(app) else type(app)).__call__
    return any(
        inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) for one in (app, call)
    )


def _takes(app: Any, *arguments: object) -> bool:
    """Return whether it can be called so, as far as anybody can tell."""
    try:
        # Not what a decorator says of the function that it stands around: it may be called
        # otherwise than that one.
        signature = inspect.signature(app, follow_wrapped=False)
    except Exception:  # made in C, or a proxy of something that is not there yet
        return True
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def app_name(app: object) -> str:
    """Return what people call an app: Django's settings, Flask's module, or a function's place."""
    owner = getattr(app, "__self__", app)
    name = getattr(owner, "import_name", None)
    if isinstance(name, str):
        return name
    kind = app if hasattr(app, "__qualname__") else type(app)
    module = str(getattr(kind, "__module__", ""))
    if module.startswith("django."):
        return os.environ.get("DJANGO_SETTINGS_MODULE", module).removesuffix(".settings")
    return f"{module}.{getattr(kind, '__qualname__', kind)}"
