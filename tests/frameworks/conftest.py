from __future__ import annotations

import pytest

from wsgi_busyguard import Monitor
from wsgi_busyguard.checkport import CheckPort


@pytest.fixture
def checkport(adapter):
    """The address of a check port; it tells what ``adapter`` reads."""
    port = CheckPort(Monitor(adapter), "127.0.0.1:0", ready="exact")
    port.start()
    yield "{}:{}".format(*port.address)
    port.stop()
