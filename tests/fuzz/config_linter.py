"""The linter of HAProxy configurations: any text is judged, and each finding is of one line."""

from __future__ import annotations

from wsgi_busyguard.haproxy.config_reader import sections
from wsgi_busyguard.haproxy.lint import backends, mistakes


def target(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    lines = len(text.splitlines())
    found = mistakes(text)
    assert found == sorted(found)
    for line, words in found:
        assert 1 <= line <= lines
        assert words
    assert len(backends(text)) <= len(sections(text)) <= lines
