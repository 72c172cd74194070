"""PasteDeploy's filters: ``use = egg:wsgi-busyguard`` in an ini file. Pyramid reads those, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..middleware import BusyGuard
from .options import from_strings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from _typeshed.wsgi import WSGIApplication


def filter_app_factory(
    app: WSGIApplication, global_conf: Mapping[str, str], **options: str
) -> BusyGuard:
    """Return ``app`` behind a guard; PasteDeploy's ``paste.filter_app_factory``.

    :param options: see :class:`~wsgi_busyguard.BusyGuard`, as strings.
    :raises ValueError, TypeError: for options that do not exist or are not valid.
    """
    return BusyGuard(app, **from_strings(options, "the filter busyguard"))


def filter_factory(
    global_conf: Mapping[str, str], **options: str
) -> Callable[[WSGIApplication], BusyGuard]:
    """Return what puts a guard in front of an app; PasteDeploy's ``paste.filter_factory``."""
    keywords = from_strings(options, "the filter busyguard")
    return lambda app: BusyGuard(app, **keywords)
