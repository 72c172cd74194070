"""``INSTALLED_APPS``: the system checks, ``manage.py busyguard``, the limits of bulkheads."""

from __future__ import annotations

from contextlib import suppress

from django.apps import AppConfig

from ...bulkhead import configure


class BusyGuardConfig(AppConfig):
    """The app. It has no models, no templates and no middleware."""

    name = "wsgi_busyguard.integrations.django"
    label = "busyguard"
    verbose_name = "wsgi_busyguard"

    def ready(self) -> None:
        """Register the system checks; give bulkheads their limits, whichever guard is in front."""
        from .checks import register
        from .conf import bulkheads

        register()
        with suppress(ValueError, TypeError, AttributeError):  # a check says it
            configure(bulkheads())
