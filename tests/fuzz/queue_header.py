"""When a proxy says that a request came, and how long its client says it waits."""

from __future__ import annotations

from wsgi_busyguard.deadlines.client_timeout import LONGEST_SECONDS, patience
from wsgi_busyguard.deadlines.clock_skew import QueueHeader
from wsgi_busyguard.deadlines.queue_header import HEADERS, OLDEST_SECONDS, arrived

NOW = 1_700_000_000.0
KEPT = QueueHeader(lambda: True, 5.0, lambda: NOW)


def target(data: bytes) -> None:
    text = data.decode("latin-1")
    ago = arrived(text, NOW)
    assert ago is None or 0.0 <= ago <= OLDEST_SECONDS
    # Whoever puts a value in front of the proxy's own can only make its request older.
    proxys = f"t={NOW - 1.5}"
    assert arrived(f"{text},{proxys}", NOW) >= 1.5
    waited = KEPT.ago(dict(zip(HEADERS, text.split("\n"), strict=False)), text[:3])
    assert 0.0 <= waited <= OLDEST_SECONDS
    seconds = patience(text)
    assert seconds is None or 0.0 < seconds <= LONGEST_SECONDS
