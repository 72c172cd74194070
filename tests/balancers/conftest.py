from __future__ import annotations

import pytest
from support.client import eventually, many, together


@pytest.fixture
def fill(started, held):
    """Fills servers: so many are inside and so many wait, until ``held.let_go()``."""
    threads = []

    def fill(server, active=4, queued=4):
        threads.extend(many(active + queued, server.port, path=held.path)[1])
        eventually(lambda: (server.load["active"], server.load["queued"]) == (active, queued))

    yield fill
    held.let_go()
    together(threads)
