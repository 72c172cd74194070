"""What gunicorn's front answers from a peek: gunicorn reads the same check, and nothing after it.

The first byte chooses a configuration, the rest is what a client says.
"""

from __future__ import annotations

from contextlib import suppress

from support.gunicorn_heads import CONFIGS, agrees, connection, replies

from wsgi_busyguard.adapters.gunicorn.partial_heads import PartialHeads
from wsgi_busyguard.policy import Reason


def target(data: bytes) -> None:
    cfg, said = CONFIGS[data[0] % len(CONFIGS) if data else 0], data[1:]
    agrees(cfg, said)
    conn = connection(cfg)
    refusal = replies(cfg).refusal(conn, said, Reason.QUEUE_FULL)
    assert b"503" in refusal
    for is_ssl in (False, True):
        heads = PartialHeads(None, print, is_ssl=is_ssl, is_proxied=replies(cfg).is_proxied)
        with suppress(ValueError):
            heads.unfinished(conn, said)
