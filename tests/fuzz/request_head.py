"""The head of a request: it ends in one place, and h11 reads the same one."""

from __future__ import annotations

from contextlib import suppress

from support.h11_heads import agrees, ordinary_agrees

from wsgi_busyguard._support.request_head import proxied, read_head, unfinished


def target(data: bytes) -> None:
    agrees(data)
    ordinary_agrees(data)
    size = proxied(data)
    assert size is None or 0 <= size <= len(data)
    with suppress(ValueError):
        if not unfinished(data):
            assert not unfinished(data + b"more")
    with suppress(ValueError):
        head = read_head(data)
        if head is not None:
            assert read_head(data[: head.size]) == head
            assert read_head(data[: head.size - 1]) is None
