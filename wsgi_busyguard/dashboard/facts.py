"""What is looked at: which host and port, which app, and since when. Figures in, text out."""

from __future__ import annotations

from time import gmtime, strftime
from typing import TYPE_CHECKING

from .._support.text_values import plain
from .formatting import span

if TYPE_CHECKING:
    from ..load_report import LoadReport


def where(shown: LoadReport) -> str:
    """Return the host and the port that is asked, as far as that is known: ``web1:8081``."""
    _, colon, port = shown.get("port", "").rpartition(":")
    return f"{shown.get('host', '')}{colon}{port}"


def facts(shown: LoadReport) -> str:
    """Return what this is: the host, the app, the version, and since when it is up."""
    parts = [where(shown), shown.get("app") or ""]
    if release := shown.get("release"):
        parts.append(f"wsgi_busyguard {release}")
    since = shown.get("since")
    if since is not None:
        day = strftime("%Y-%m-%d %H:%M UTC", gmtime(since))
        parts.append(f"up for {span(max(0.0, shown['at'] - since))}, since {day}")
    return " \N{MIDDLE DOT} ".join(plain(one) for one in parts if one)
