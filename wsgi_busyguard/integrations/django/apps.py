"""``INSTALLED_APPS``: brings the system checks and ``manage.py busyguard``."""

from __future__ import annotations

from django.apps import AppConfig


class BusyGuardConfig(AppConfig):
    """The app. It has no models, no templates and no middleware."""

    name = "wsgi_busyguard.integrations.django"
    label = "busyguard"
    verbose_name = "wsgi_busyguard"

    def ready(self) -> None:
        """Register the system checks."""
        from .checks import register

        register()
