"""The page on the check port: the figures for a person, live, and as a table without JavaScript.

It asks nobody else for anything. All of it is written here, the charts and the sentences too; the
script in it only puts what has changed in its place, so that there is one place that knows what
the figures mean.

While it is served nothing is imported, logged or locked, see ``checkport/event_loop.py``.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from .history import LookHistory, look_at, names_in
from .html import parts, title

if TYPE_CHECKING:
    from ..counters import Watched
    from ..load_report import LoadReport

HERE = Path(__file__).parent


class Page:
    """Writes the page.

    :param monitor: what the page tells of, for the looks at the last minutes.
    :ivar headers: the headers it is sent with.

    For one thread.
    """

    def __init__(self, monitor: Watched) -> None:
        css, js = (_text(name) for name in ("page.css", "page.js"))
        self.headers = [("Content-Security-Policy", policy(css, js)), *HEADERS]
        template = _text("page.html").replace("@css@", css).replace("@js@", js)
        # What is between the marks, and at every second place a mark.
        self._pieces = re.split(r"@(\w+)@", template)
        self._monitor = monitor
        self._history = LookHistory()

    def look(self, now: float) -> None:
        """Remember how things are now, for the charts. Once a second."""
        self._history.keep(look_at(self._monitor, now))

    def body(self, shown: LoadReport) -> str:
        """Return the page that tells what ``/load`` shows."""
        filled = {"title": escape(title(shown)), **self._parts(shown)}
        return "".join(filled[piece] if n % 2 else piece for n, piece in enumerate(self._pieces))

    def event(self, shown: LoadReport) -> str:
        """Return the same for a page that is open already, as JSON."""
        return json.dumps({"title": title(shown), "parts": self._parts(shown)})

    def _parts(self, shown: LoadReport) -> dict[str, str]:
        names = names_in(shown)
        if names is not None:
            self._history.asking(names)
        return parts(shown, list(self._history.looks))


def policy(css: str, js: str) -> str:
    """Return the content security policy: this style, this script, and events from here."""
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src '{_digest(css)}'",
            f"script-src '{_digest(js)}'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


def _digest(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
