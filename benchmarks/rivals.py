"""What the guard is compared with: other people's middlewares, each as fast as its docs allow.

Everything is imported when it is asked for, and takes the app that it is put around.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from interleaved import App


class NoOp:
    """A middleware that does nothing."""

    def __init__(self, app: App) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Pass on."""
        return self.app(environ, start_response)


def counted(app: App) -> App:
    """Count the requests until their bodies are closed, as one would write it for speed."""
    lock = threading.Lock()
    inside = 0

    def leave() -> None:
        nonlocal inside
        with lock:
            inside -= 1

    class Closing:
        __slots__ = ("body",)

        def __init__(self, body: Iterable[bytes]) -> None:
            self.body = body

        def __iter__(self) -> Iterator[bytes]:
            return iter(self.body)

        def close(self) -> None:
            try:
                close = getattr(self.body, "close", None)
                if close is not None:
                    close()
            finally:
                leave()

    def count(environ: dict[str, Any], start_response: Callable[..., Any]) -> Closing:
        nonlocal inside
        with lock:
            inside += 1
        try:
            return Closing(app(environ, start_response))
        except BaseException:
            leave()
            raise

    return count


def gauged(app: App) -> tuple[App, App]:
    """Return the two ways in which prometheus_client's gauge counts who is in a call.

    It sees calls, not the bodies that are iterated after them.
    """
    from prometheus_client import CollectorRegistry, Gauge

    gauge = Gauge("inside", "Requests in the app.", registry=CollectorRegistry())
    inside = gauge.track_inprogress()  # made once: making one for each request is slower

    def inc_dec(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        gauge.inc()
        try:
            return app(environ, start_response)
        finally:
            gauge.dec()

    def tracked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        with inside:
            return app(environ, start_response)

    return inc_dec, tracked


def whitened(app: App) -> App:
    """Return ``app`` behind whitenoise, which knows one file that nobody asks for."""
    from whitenoise import WhiteNoise

    with tempfile.TemporaryDirectory() as static:
        Path(static, "site.css").write_text("body { color: black }")
        return WhiteNoise(app, root=static, prefix="static/")


def dispatched(app: App) -> App:
    """Return ``app`` behind werkzeug's dispatcher, with another that nobody asks for beside it."""
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    return DispatcherMiddleware(app, {"/metrics": app})


def proxied(app: App) -> App:
    """Return ``app`` behind werkzeug's ProxyFix, for one proxy and the usual three headers."""
    from werkzeug.middleware.proxy_fix import ProxyFix

    return ProxyFix(app, x_for=1, x_proto=1, x_host=1)


def traced(app: App) -> dict[str, App]:
    """Return ``app`` behind OpenTelemetry's middleware: without its SDK and, if it is here, with.

    The SDK has neither an exporter nor a reader, which spares it the greater part of its work.
    """
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    alone = {"OpenTelemetry, API only": OpenTelemetryMiddleware(app)}
    try:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.trace import TracerProvider
    except ImportError:
        return alone
    sdk = {"tracer_provider": TracerProvider(), "meter_provider": MeterProvider()}
    return {**alone, "OpenTelemetry, SDK, no exporter": OpenTelemetryMiddleware(app, **sdk)}


STARTPROJECT = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]


def django_projects() -> tuple[App, App]:
    """Return a project whose view says "free": without middleware, and with startproject's."""
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.urls import path

    def healthz(request: object) -> HttpResponse:
        headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}
        return HttpResponse(b"free", headers=headers)

    apps = ("contenttypes", "auth", "sessions", "messages")
    settings.configure(
        ALLOWED_HOSTS=["shop.example"],
        SECRET_KEY="signs nothing here",
        ROOT_URLCONF=type("urls", (), {"urlpatterns": [path("healthz", healthz)]}),
        INSTALLED_APPS=[f"django.contrib.{name}" for name in apps],
        MIDDLEWARE=[],
    )
    bare = get_wsgi_application()
    settings.MIDDLEWARE = STARTPROJECT
    return bare, get_wsgi_application()
