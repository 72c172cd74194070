from __future__ import annotations

import pytest
from support.losses import Accepts


@pytest.fixture
def accepts(tmp_path):
    """Knows which worker accepted whom, of the gunicorns that have its configuration."""
    accepts = Accepts(tmp_path / "accepts")
    yield accepts
    accepts.close()
