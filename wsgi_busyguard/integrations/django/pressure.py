"""What a view may want to know of its server and of its client."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from ...deadlines import environ

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest

    View = Callable[..., Any]


def under_pressure(request: HttpRequest) -> bool:
    """Return whether the server is busy, so that a view can serve something cheaper."""
    return environ.under_pressure(request.META)


def time_left(request: HttpRequest) -> float:
    """Return the seconds until the client of this request is taken to give up."""
    return environ.remaining(request.META)


def when_busy(cheaper: View) -> Callable[[View], View]:
    """Decorate a view: while the server is busy ``cheaper`` answers in its place.

    ``cheaper`` is a view with the same arguments, async where the other one is.
    """

    def decorate(view: View) -> View:
        if inspect.iscoroutinefunction(view) is not inspect.iscoroutinefunction(cheaper):
            raise TypeError(f"{cheaper!r} and {view!r} must both be async, or neither of them")

        @functools.wraps(view)
        def choose(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            return (cheaper if under_pressure(request) else view)(request, *args, **kwargs)

        @functools.wraps(view)
        async def choose_async(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            return await choose(request, *args, **kwargs)

        return choose_async if inspect.iscoroutinefunction(view) else choose

    return decorate
