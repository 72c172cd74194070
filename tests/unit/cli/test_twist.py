"""The arguments of ``twist busyguard``; servers/test_twist.py runs it."""

from __future__ import annotations

import pytest

from wsgi_busyguard.cli.twist import Options


@pytest.mark.parametrize("spelled", ["shop_of_twist.application", "shop_of_twist:application"])
def test_the_app_is_named_with_a_dot_or_with_a_colon(spelled, tmp_path, monkeypatch):
    (tmp_path / "shop_of_twist.py").write_text("def application(environ, start_response): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = Options()
    options.parseOptions([f"--wsgi={spelled}"])
    assert options["app"].__name__ == "application"
